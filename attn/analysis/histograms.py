"""The attention values of every block as histograms. DCANet, Figure 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from attn.analysis import images, style
from attn.analysis.files import Table
from attn.analysis.readings import nothing, values
from attn.analysis.subjects import Subject
from attn.analysis.trace import forward
from attn.config.analysis import Histograms
from attn.data.loader import Seeded


@dataclass(frozen=True)
class Histogram:
    """The attention values of one network.

    Attributes:
        name: the network.
        kind: which of its weights they are, as in `attn.attention.Reading`.
        blocks: the blocks that have some.
        edges: of the bins, [bins + 1], from 0 to 1.
        counts: [blocks, bins].
        outside: values below 0 or above 1, [blocks].
    """

    name: str
    kind: str
    blocks: list[str]
    edges: np.ndarray
    counts: np.ndarray
    outside: np.ndarray


@torch.inference_mode()
def measure(
    name: str,
    model: nn.Module,
    data: Seeded,
    indices: Sequence[int] | np.ndarray,
    of: str | None = None,
    bins: int = 50,
    batch_size: int = 64,
    workers: int | None = 0,
) -> Histogram:
    """The histograms of a network.

    Args:
        name: the network, for the titles.
        model: the network; the same afterwards.
        data: the images with their transform.
        indices: those to look at.
        of: which weights; None for those of channels where there are any, else what there is.
        bins: number of bins from 0 to 1.
        batch_size, workers: of the loader.

    Raises:
        UserError: no attention of the network has such weights.
    """
    device = next(model.parameters()).device
    counts: dict[str, np.ndarray] = {}
    outside: dict[str, int] = {}
    kinds: dict[str, None] = {}
    edges = np.linspace(0, 1, bins + 1)
    for batch in images.batches(data, indices, batch_size, device, name, workers):
        for block in forward(model, batch.images).blocks:
            chosen = values(block.readings(), of)
            if chosen is None:
                continue
            kinds[chosen[0]] = None
            flat = chosen[1].detach().float().cpu().numpy().ravel()
            counts[block.label] = counts.get(block.label, 0) + np.histogram(flat, edges)[0]
            outside[block.label] = outside.get(block.label, 0) + int(((flat < 0) | (flat > 1)).sum())
    if not counts:
        raise nothing(name, model, f"no {of or 'attention'} weights")
    labels = list(counts)
    return Histogram(
        name, "/".join(kinds), labels, edges, np.stack([*counts.values()]), np.array([outside[label] for label in labels])
    )


@style.styled
def draw(found: Sequence[Histogram]) -> Figure:
    """A panel per block with the networks over each other; heights are shares of a block's values."""
    labels = sorted({block for one in found for block in one.blocks}, key=_order)
    figure, axes = style.panels(*style.grid(len(labels)), width=2.4, height=1.5, sharex=True)
    style.hide_rest(axes, len(labels))
    for panel, block in zip(axes.ravel(), labels, strict=False):
        panel.set_title(f"block {block}")
        for number, one in enumerate(found):
            if block in one.blocks:
                counts = one.counts[one.blocks.index(block)]
                shares = counts / max(counts.sum(), 1)
                look = {"color": style.colour(number), "label": f"{one.name} ({one.kind})"}
                panel.stairs(shares, one.edges, fill=True, alpha=0.35, color=look["color"])
                panel.stairs(shares, one.edges, linewidth=1.0, **look)
        panel.set_xlim(0, 1)
        panel.set_yticks([])
    for panel in axes[-1]:
        panel.set_xlabel("attention value")
    for row in axes:
        row[0].set_ylabel("share")
    panels = dict(zip(labels, axes.ravel(), strict=False))
    complete = next((b for b in labels if all(b in one.blocks for one in found)), None)
    if complete is not None:
        style.legend_below(figure, panels[complete], len(found))
    else:
        for panel in panels.values():
            panel.legend(frameon=False)
    return figure


def _order(label: str) -> tuple[int, float]:
    stage, _, number = label.partition(".")
    return int(stage), float("inf") if number == "end" else int(number)


def table(found: Sequence[Histogram]) -> Table:
    """A row per network, block and bin; the values outside of 0 to 1 have rows without a bin."""
    rows: list[tuple[object, ...]] = []
    for one in found:
        for block, counts, outside in zip(one.blocks, one.counts, one.outside, strict=True):
            rows += [
                (one.name, one.kind, block, float(low), float(high), int(count))
                for low, high, count in zip(one.edges[:-1], one.edges[1:], counts, strict=True)
            ]
            rows.append((one.name, one.kind, block, "", "", int(outside)))
    return Table(("network", "weights", "block", "from", "to", "count"), rows)


def run(subjects: Sequence[Subject], options: Histograms) -> tuple[Figure, Table]:
    """The job of `scripts/analyse.py histograms`."""
    settings = (options.of, options.bins, options.batch_size, options.workers)
    found = [
        measure(s.name, s.model, s.data, images.sample(len(s.data), options.images, options.seed), *settings)
        for s in subjects
    ]
    return draw(found), table(found)
