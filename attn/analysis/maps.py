"""Single channels of a block's or stage's output, as pictures. BA2M, Figure 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from attn.analysis import pictures, style
from attn.analysis.files import Table
from attn.analysis.gradcam import find, stage_output
from attn.analysis.pictures import Picture
from attn.analysis.subjects import Subject, same_size
from attn.analysis.trace import as_map, forward
from attn.config.analysis import Maps
from attn.errors import UserError

SHOWN = 8


@dataclass(frozen=True)
class Channels:
    """Channels of one network.

    Attributes:
        name: the network.
        place: `stage 3` or `block 3.2`.
        channels: their numbers, [J].
        maps: [N, J, H, W].
    """

    name: str
    place: str
    channels: list[int]
    maps: np.ndarray


@torch.inference_mode()
def measure(name: str, model: nn.Module, images: Tensor, at: str | None = None, channels: Sequence[int] = ()) -> Channels:
    """Channels of a block or stage.

    Args:
        name: the network, for the titles.
        model: the network; the same afterwards.
        images: [N, 3, H, W], normalised, on the device of the network.
        at: a stage (`3`) or block (`3.2`), counted from 1; None for the last block of the last stage but one.
        channels: their numbers; empty for the eight whose mean over the images is largest.

    Raises:
        UserError: there is no such place or channel.
    """
    seen = forward(model, images)
    blocks = [block for block in seen.blocks if not block.label.endswith(".end")]
    label = at or [b.label for b in blocks if b.stage == max(1, blocks[-1].stage - 1)][-1]
    place = f"block {label}" if "." in label else f"stage {label}"
    output = find(seen, label).passage.output if "." in label else stage_output(seen, label)
    maps = as_map(output, model, (images.shape[2], images.shape[3])).float()
    wrong = [number for number in channels if not 0 <= number < maps.shape[1]]
    if wrong:
        raise UserError(f"channels={wrong[0]}: {place} of {name} has {maps.shape[1]} channels, numbered from 0")
    chosen = list(channels) or sorted(maps.mean((0, 2, 3)).topk(min(SHOWN, maps.shape[1])).indices.tolist())
    return Channels(name, place, chosen, maps[:, chosen].cpu().numpy())


@style.styled
def draw(found: Sequence[Channels], shown: Sequence[Picture]) -> Figure:
    """A row per network and image; the image, then its channels, each channel on one scale over the images."""
    columns = max(len(one.channels) for one in found)
    figure, axes = style.panels(len(found) * len(shown), 1 + columns, width=1.15, height=1.3)
    rows = [(one, n) for one in found for n in range(len(shown))]
    for row, (one, n) in zip(axes, rows, strict=True):
        row[0].imshow(shown[n].pixels)
        row[0].set_ylabel(f"{pictures.two_lines(one.name)}\n{one.place}")
        for panel, j in zip(row[1:], range(len(one.channels)), strict=False):
            low, high = one.maps[:, j].min(), one.maps[:, j].max()
            panel.imshow(one.maps[n, j], cmap=style.RAMP, vmin=low, vmax=max(high, low + 1e-12))
            if n == 0:
                panel.set_title(f"channel {one.channels[j]}")
        for panel in row[1 + len(one.channels) :]:
            panel.set_axis_off()
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
    return figure


def table(found: Sequence[Channels], shown: Sequence[Picture]) -> Table:
    """A row per network, image, channel and pixel."""
    rows = [
        (one.name, one.place, shown[n].title, one.channels[j], int(y), int(x), float(one.maps[n, j, y, x]))
        for one in found
        for n, j, y, x in np.ndindex(one.maps.shape)
    ]
    return Table(("network", "place", "image", "channel", "row", "column", "value"), rows)


def run(subjects: Sequence[Subject], options: Maps) -> tuple[Figure, Table]:
    """The job of `scripts/analyse.py maps`."""
    subjects = same_size(subjects)
    shown = pictures.load(subjects[0], options.images)
    found = []
    for subject in subjects:
        images = pictures.batch(shown, next(subject.model.parameters()).device)
        found.append(measure(subject.name, subject.model, images, options.at, options.channels))
    return draw(found, shown), table(found, shown)
