"""How much each bridged layer decides on the weights of a block. BA-Net, Algorithm 1 and Figure 5.

For each block a random forest predicts the channel weights [N, C] from the squeezed descriptors x = cat([S_1, ..., S_k], 1), each
[N, c] after its norm. A layer's importance is the sum of the forest's feature importances over its c columns, divided by the
largest of the block. (The algorithm prints a reshape of [N, c, k], which would interleave the layers, and a count of c - 1 columns;
both are slips: its text takes whole layers.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.ensemble import RandomForestRegressor
from torch import Tensor, nn

from attn.analysis import images, style
from attn.analysis.files import Table
from attn.analysis.readings import nothing
from attn.analysis.subjects import Subject
from attn.analysis.trace import forward
from attn.config.analysis import Importance
from attn.data.loader import Seeded


@dataclass(frozen=True)
class LayerImportance:
    """The importances of one network.

    Attributes:
        name: the network.
        blocks: those with bridge attention.
        importance: [k, blocks], the last layer of each block in the last row; NaN where a block bridges fewer layers.
        fit: share of the weights' variance that the forest explains on the images that it was fitted to, [blocks].
    """

    name: str
    blocks: list[str]
    importance: np.ndarray
    fit: np.ndarray


def measure(
    name: str,
    model: nn.Module,
    data: Seeded,
    indices: Sequence[int] | np.ndarray,
    trees: int = 50,
    seed: int = 0,
    batch_size: int = 64,
    workers: int | None = 0,
) -> LayerImportance:
    """The importances of a network's bridged layers.

    Args:
        name: the network, for the titles.
        model: the network; the same afterwards.
        data: the images with their transform.
        indices: those to look at.
        trees: per forest.
        seed: of the forests.
        batch_size, workers: of the loader.

    Raises:
        UserError: the network has no bridge attention.
    """
    seen = read_bridges(name, model, data, indices, batch_size, workers)
    if not seen:
        raise nothing(name, model, "no bridge")
    most = max(len(bridged) for bridged, _ in seen.values())
    columns, fit = [], []
    for bridged, weights in images.bar(seen.values(), f"{name}: forests", len(seen)):
        sums, score = importance(bridged, weights, trees, seed)
        columns.append(np.concatenate([np.full(most - len(sums), np.nan), sums / max(sums.max(), 1e-12)]))
        fit.append(score)
    return LayerImportance(name, list(seen), np.stack(columns, 1), np.array(fit))


@torch.inference_mode()
def read_bridges(
    name: str,
    model: nn.Module,
    data: Seeded,
    indices: Sequence[int] | np.ndarray,
    batch_size: int = 64,
    workers: int | None = 0,
) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
    """For each block with bridge attention, the squeezed descriptors of its layers, each [N, c], and the weights [N, C]."""
    device = next(model.parameters()).device
    parts: dict[str, list[tuple[tuple[Tensor, ...], Tensor]]] = {}
    for batch in images.batches(data, indices, batch_size, device, name, workers):
        for block in forward(model, batch.images).blocks:
            for reading in block.readings():
                if reading.bridged:
                    parts.setdefault(block.label, []).append((reading.bridged, reading.weights["channel"]))

    def joined(tensors: Sequence[Tensor]) -> np.ndarray:
        return torch.cat([t.float() for t in tensors]).cpu().numpy()

    return {
        label: ([joined(layer) for layer in zip(*(b for b, _ in found), strict=True)], joined([w for _, w in found]))
        for label, found in parts.items()
    }


def importance(
    bridged: Sequence[np.ndarray], weights: np.ndarray, trees: int = 50, seed: int = 0
) -> tuple[np.ndarray, float]:
    """The importance of each layer, [k], with the sum 1; and the share of the variance that the forest explains.

    Args:
        bridged: k descriptors [N, c].
        weights: [N, C].
        trees: of the forest.
        seed: of the forest.
    """
    x = np.concatenate(bridged, 1)
    y = principal(weights)
    forest = RandomForestRegressor(trees, random_state=seed, n_jobs=-1).fit(x, y[:, 0] if y.shape[1] == 1 else y)
    ends = np.cumsum([layer.shape[1] for layer in bridged])
    sums = np.array([part.sum() for part in np.split(forest.feature_importances_, ends[:-1])])
    left = ((y - forest.predict(x).reshape(y.shape)) ** 2).sum()
    return sums, float(1 - left / max((y**2).sum(), 1e-30))


def principal(weights: np.ndarray, share: float = 0.999) -> np.ndarray:
    """The weights [N, C] in as few coordinates as hold a share of their variance, [N, D].

    A tree splits where the squared error, summed over the outputs, falls most. A rotation does not change that sum, so the
    forest is the same, up to what is left out; with D in place of C outputs it grows many times faster.
    """
    centred = weights - weights.mean(0)
    rotated, sizes, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    held = np.cumsum(sizes**2)
    kept = int(np.searchsorted(held, share * held[-1])) + 1
    return (rotated * sizes)[:, :kept]


@style.styled
def draw(found: Sequence[LayerImportance]) -> Figure:
    """A heat map per network: layers from the first (S1) to the last, over the blocks."""
    figure, axes = style.panels(len(found), 1, width=2 + 0.4 * max(len(f.blocks) for f in found), height=1.9)
    for panel, one in zip(axes[:, 0], found, strict=True):
        picture = panel.imshow(one.importance, vmin=0, vmax=1, cmap=style.RAMP, aspect="auto")
        panel.set(title=one.name, xlabel="block")
        panel.set_xticks(range(len(one.blocks)), one.blocks)
        panel.set_yticks(range(len(one.importance)), [f"S{i + 1}" for i in range(len(one.importance))])
        for (i, j), value in np.ndenumerate(one.importance):
            if not np.isnan(value):
                panel.text(
                    j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value < 0.6 else "black"
                )
        figure.colorbar(picture, ax=panel, label="importance")
    return figure


def table(found: Sequence[LayerImportance]) -> Table:
    """A row per network, block and layer."""
    rows = [
        (one.name, block, f"S{i + 1}", float(one.importance[i, j]), float(one.fit[j]))
        for one in found
        for j, block in enumerate(one.blocks)
        for i in range(len(one.importance))
        if not np.isnan(one.importance[i, j])
    ]
    return Table(("network", "block", "layer", "importance", "explained_variance"), rows)


def run(subjects: Sequence[Subject], options: Importance) -> tuple[Figure, Table]:
    """The job of `scripts/analyse.py importance`."""
    settings = (options.trees, options.seed, options.batch_size, options.workers)
    found = [
        measure(s.name, s.model, s.data, images.sample(len(s.data), options.images, options.seed), *settings)
        for s in subjects
    ]
    return draw(found), table(found)
