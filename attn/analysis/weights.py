"""Mean channel weights per class after the last block of each stage, and their variance over the channels. BA-Net, Figure 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from attn.analysis import images, style
from attn.analysis.files import Table
from attn.analysis.readings import channel_profile, nothing
from attn.analysis.subjects import Subject
from attn.analysis.trace import forward
from attn.config.analysis import Weights
from attn.data.loader import Seeded


@dataclass(frozen=True)
class ChannelWeights:
    """The weights of one network.

    Attributes:
        name: the network.
        classes: the K classes.
        blocks: the last block with channel weights of each of S stages.
        mean: for each of them the mean over the images of a class, [K, C].
        variance: over the channels of that mean, [K, S].
    """

    name: str
    classes: list[str]
    blocks: list[str]
    mean: list[np.ndarray]
    variance: np.ndarray


@torch.inference_mode()
def measure(
    name: str,
    model: nn.Module,
    data: Seeded,
    classes: Mapping[int, str],
    each: int = 50,
    batch_size: int = 64,
    workers: int | None = 0,
) -> ChannelWeights:
    """The channel weights of a network.

    Args:
        name: the network, for the titles.
        model: the network; the same afterwards.
        data: the images with their transform.
        classes: labels with their names.
        each: images per class.
        batch_size, workers: of the loader.

    Raises:
        UserError: a class has no image, or no attention of the network has weights of channels.
    """
    device = next(model.parameters()).device
    labels = images.labels_of(data.dataset)
    sums: dict[int, dict[str, Tensor]] = {label: {} for label in classes}
    counts = dict.fromkeys(classes, 0)
    blocks: dict[int, str] = {}
    chosen = images.of_classes(labels, list(classes), each)
    for batch in images.batches(data, chosen, batch_size, device, name, workers):
        profiles: dict[int, tuple[str, Tensor]] = {}
        for block in forward(model, batch.images).blocks:
            profile = channel_profile(block.readings())
            if profile is not None:
                profiles[block.stage] = (block.label, profile.double())
        blocks = {stage: label for stage, (label, _) in profiles.items()}
        for label in batch.labels.unique().tolist():
            own = batch.labels == label
            counts[label] += int(own.sum())
            for block_label, profile in profiles.values():
                before = sums[label].get(block_label, torch.zeros_like(profile[0]))
                sums[label][block_label] = before + profile[own].sum(0)
    if not blocks:
        raise nothing(name, model, "no weights of channels")
    order = [blocks[stage] for stage in sorted(blocks)]
    mean = [np.stack([(sums[label][b] / counts[label]).cpu().numpy() for label in classes]) for b in order]
    return ChannelWeights(name, list(classes.values()), order, mean, np.stack([m.var(1) for m in mean], 1))


@style.styled
def draw(found: Sequence[ChannelWeights]) -> Figure:
    """A row per network, a column per stage, a curve per class; the range of their variances is in the title."""
    columns = max(len(f.blocks) for f in found)
    figure, axes = style.panels(len(found), columns, height=2.2, sharey=True)
    for row, one in zip(axes, found, strict=True):
        style.hide_rest(row, len(one.blocks))
        for column, (panel, block, mean) in enumerate(zip(row, one.blocks, one.mean, strict=False)):
            for number, curve in enumerate(mean):
                label = one.classes[number]
                panel.plot(
                    curve, color=style.colour(number), linestyle=style.dash(number), linewidth=0.8, alpha=0.8, label=label
                )
            spread = one.variance[:, column]
            panel.set_title(f"{one.name}, block {block}\nvariance {spread.min():.1e} to {spread.max():.1e}")
            panel.margins(x=0)
        row[0].set_ylabel("mean weight")
    for panel in axes[-1]:
        panel.set_xlabel("channel")
    style.legend_below(figure, axes[0, 0], len(found[0].classes))
    return figure


def table(found: Sequence[ChannelWeights]) -> Table:
    """A row per network, block, class and channel, with the variance of the class's curve."""
    rows = [
        (one.name, block, label, channel, float(value), float(one.variance[k, s]))
        for one in found
        for s, (block, mean) in enumerate(zip(one.blocks, one.mean, strict=True))
        for k, label in enumerate(one.classes)
        for channel, value in enumerate(mean[k])
    ]
    return Table(("network", "block", "class", "channel", "mean", "variance_over_channels"), rows)


def run(subjects: Sequence[Subject], options: Weights) -> tuple[Figure, Table]:
    """The job of `scripts/analyse.py weights`."""
    count = subjects[0].cfg.data.num_classes
    classes = images.choose_classes(options.classes, subjects[0].classes, count)
    settings = (classes, options.each, options.batch_size, options.workers)
    found = [measure(s.name, s.model, s.data, *settings) for s in subjects]
    return draw(found), table(found)
