"""Single images that a figure shows: of the validation set by number, or files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attn.analysis.images import pixels
from attn.analysis.subjects import Subject
from attn.data.imagefolder import UnreadableImage, read_rgb
from attn.errors import UserError


@dataclass(frozen=True)
class Picture:
    """An image.

    Attributes:
        title: its class, or the name of its file.
        label: its class; None for a file.
        tensor: as the network gets it, [3, H, W].
        pixels: as it looks, [H, W, 3], from 0 to 1.
    """

    title: str
    label: int | None
    tensor: Tensor
    pixels: np.ndarray


def load(subject: Subject, wanted: Sequence[str]) -> list[Picture]:
    """The images with the transform of a subject.

    Args:
        subject: its validation images, and its transform.
        wanted: numbers of validation images, or paths of files.

    Raises:
        UserError: there is no such image, or it cannot be read.
    """
    if not wanted:
        raise UserError("images=[] is empty: name numbers of validation images, or files")
    found = []
    for name in wanted:
        label: int | None = None
        if name.isdecimal():
            if int(name) >= len(subject.data):
                raise UserError(f"images={name}: there are {len(subject.data)} validation images, numbered from 0")
            tensor, label, *_ = subject.data[0, int(name)]
            tensor = subject.data.pixels.normalised(tensor, torch.contiguous_format)
            title = f"{name}: {subject.classes[label]}" if subject.classes else f"{name}: class {label}"
        else:
            try:
                tensor = subject.data.transform.normalised(read_rgb(str(Path(name).expanduser())))
            except (UnreadableImage, OSError) as error:
                raise UserError(f"images: {error}") from None
            title = Path(name).name
        shown = pixels(tensor[None], subject.cfg.data)[0]
        found.append(Picture(title, label, tensor, shown))
    return found


def batch(pictures: Sequence[Picture], device: torch.device) -> Tensor:
    """The images as the network gets them, [N, 3, H, W]."""
    return torch.stack([picture.tensor for picture in pictures]).to(device)


def two_lines(name: str) -> str:
    """A name that is too long for a small panel, broken at its first space."""
    return name.replace(" ", "\n", 1)
