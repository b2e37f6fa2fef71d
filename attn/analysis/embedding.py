"""t-SNE of the pooled features of some classes, and how well the classes are apart. BA2M, Figure 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import nn

from attn.analysis import images, style
from attn.analysis.files import Table
from attn.analysis.subjects import Subject
from attn.analysis.trace import forward
from attn.config.analysis import Embedding
from attn.data.loader import Seeded
from attn.errors import UserError


@dataclass(frozen=True)
class Embedded:
    """The features of one network.

    Attributes:
        name: the network.
        classes: names of the K classes.
        label: number of the class in `classes`, [N].
        features: what the classifier gets, [N, D].
        points: the same on the plane, [N, 2].
        silhouette: mean silhouette of the classes among the features, from -1 to 1.
        silhouette_plane: the same among the points.
    """

    name: str
    classes: list[str]
    label: np.ndarray
    features: np.ndarray
    points: np.ndarray
    silhouette: float
    silhouette_plane: float


def measure(
    name: str,
    model: nn.Module,
    data: Seeded,
    classes: Mapping[int, str],
    each: int = 50,
    perplexity: float = 30.0,
    seed: int = 0,
    batch_size: int = 64,
    workers: int | None = 0,
) -> Embedded:
    """The features of a network on the plane.

    Args:
        name: the network, for the titles.
        model: the network; the same afterwards.
        data: the images with their transform.
        classes: labels with their names, two or more.
        each: images per class.
        perplexity: of t-SNE; at most a third of the images are used.
        seed: of t-SNE.
        batch_size, workers: of the loader.

    Raises:
        UserError: there are fewer than two classes, or a class has no image.
    """
    if len(classes) < 2:
        raise UserError(f"classes={list(classes.values())}: at least two are needed to be apart")
    device = next(model.parameters()).device
    chosen = images.of_classes(images.labels_of(data.dataset), list(classes), each)
    features, labels = [], []
    with torch.inference_mode():
        for batch in images.batches(data, chosen, batch_size, device, name, workers):
            features.append(forward(model, batch.images).pooled.float().cpu())
            labels.append(batch.labels.cpu())
    x, numbers = torch.cat(features).numpy(), list(classes)
    label = np.array([numbers.index(int(value)) for value in torch.cat(labels)])
    if len(x) <= len(classes):
        raise UserError(f"{len(x)} images of {len(classes)} classes: more are needed for a silhouette, see each=")
    points = TSNE(perplexity=min(perplexity, max((len(x) - 1) / 3, 1.0)), init="pca", random_state=seed).fit_transform(x)
    apart = (float(silhouette_score(values, label)) for values in (x, points))
    return Embedded(name, list(classes.values()), label, x, points, *apart)


@style.styled
def draw(found: Sequence[Embedded]) -> Figure:
    """A panel per network, a colour and a marker per class."""
    figure, axes = style.panels(*style.grid(len(found), 3), width=3.2, height=3.0)
    style.hide_rest(axes, len(found))
    for panel, one in zip(axes.ravel(), found, strict=False):
        for number, name in enumerate(one.classes):
            points = one.points[one.label == number]
            shape = style.marker(number + number // len(style.COLOURS))
            panel.scatter(*points.T, s=12, color=style.colour(number), marker=shape, linewidths=0, alpha=0.85, label=name)
        panel.set_title(f"{one.name}\nsilhouette {one.silhouette:.3f}")
        panel.set_xticks([])
        panel.set_yticks([])
    style.legend_below(figure, axes[0, 0], len(found[0].classes))
    return figure


def table(found: Sequence[Embedded]) -> Table:
    """A row per network and image."""
    rows = [
        (one.name, one.classes[int(k)], float(x), float(y), one.silhouette, one.silhouette_plane)
        for one in found
        for k, (x, y) in zip(one.label, one.points, strict=True)
    ]
    return Table(("network", "class", "x", "y", "silhouette_of_features", "silhouette_on_plane"), rows)


def run(subjects: Sequence[Subject], options: Embedding) -> tuple[Figure, Table]:
    """The job of `scripts/analyse.py embedding`."""
    classes = images.choose_classes(options.classes, subjects[0].classes, subjects[0].cfg.data.num_classes, default=10)
    settings = (classes, options.each, options.perplexity, options.seed, options.batch_size, options.workers)
    found = [measure(s.name, s.model, s.data, *settings) for s in subjects]
    return draw(found), table(found)
