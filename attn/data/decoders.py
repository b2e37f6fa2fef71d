"""From the content of an image file to the pixels of a crop, by one of several decoders that give the same pixels.

`pil` always works. `region` (attn/data/region.py) decodes no more of a JPEG file than the crop needs. `torchcodec` decodes whole
JPEG files, by the package of that name. What the latter two do not support, Pillow decodes. The resizing is Pillow's in all.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from attn.data import region
from attn.data.imagefolder import Encoded

RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class Rectangle(NamedTuple):
    left: int
    top: int
    width: int
    height: int


class Cut(NamedTuple):
    """What becomes of an image: the rectangle `box` of it is resized to `size` (width, height), and of that `kept` is kept."""

    box: Rectangle
    size: tuple[int, int]
    kept: Rectangle


class Opened(Protocol):
    """An image whose size is known.

    Attributes:
        size: width and height in pixels.
    """

    @property
    def size(self) -> tuple[int, int]: ...

    def cut(self, cut: Cut, interpolation: str) -> np.ndarray:
        """The pixels, uint8 [height, width, 3].

        Raises:
            UnreadableImage: only the decoding shows that it is damaged.
        """
        ...


class Whole:
    """An image that is decoded."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def cut(self, cut: Cut, interpolation: str) -> np.ndarray:
        image = cropped(self.image, cut.box)
        if image.size != cut.size:
            image = image.resize(cut.size, RESAMPLE[interpolation])
        return np.array(cropped(image, cut.kept))


def cropped(image: Image.Image, box: Rectangle) -> Image.Image:
    """A rectangle of an image; the image itself if that is all of it."""
    if box == (0, 0, *image.size):
        return image
    return image.crop((box.left, box.top, box.left + box.width, box.top + box.height))


class Region:
    """A JPEG file of which only a region will be decoded."""

    def __init__(self, encoded: Encoded, size: tuple[int, int]) -> None:
        self.encoded, self.size = encoded, size

    def cut(self, cut: Cut, interpolation: str) -> np.ndarray:
        if interpolation == "nearest" and cut.size != (cut.box.width, cut.box.height):
            return Whole(self.encoded.rgb()).cut(cut, interpolation)
        pixels = region.resized(self.encoded.content, cut.box, cut.size, cut.kept, interpolation)
        return Whole(self.encoded.rgb()).cut(cut, interpolation) if pixels is None else pixels


def open_whole(encoded: Encoded) -> Opened:
    return Whole(encoded.rgb())


def open_region(encoded: Encoded) -> Opened:
    size = region.size(encoded.content)
    return Whole(encoded.rgb()) if size is None else Region(encoded, size)


def open_torchcodec(encoded: Encoded) -> Opened:
    content = encoded.content
    # It would turn an image as its EXIF data say.
    if not content.startswith(region.JPEG) or b"Exif\0" in content[: 1 << 16]:
        return open_whole(encoded)
    from torchcodec.decoders import decode_jpeg

    try:
        decoded = decode_jpeg(content, mode="RGB")
    except (RuntimeError, ValueError):  # damaged, or of a kind that only Pillow reads
        return open_whole(encoded)
    assert not isinstance(decoded, list)  # one file
    return Whole(Image.fromarray(decoded.permute(1, 2, 0).numpy()))


OPENERS: dict[str, Callable[[Encoded], Opened]] = {
    "pil": open_whole,
    "region": open_region,
    "torchcodec": open_torchcodec,
}


def here(name: str) -> str:
    """The decoder that `data.decoder` means on this machine: `auto` is region where it is built, else pil.

    Raises:
        ValueError: it is not built or not installed here.
    """
    if name == "auto":
        return "region" if region.library() is not None else "pil"
    if name == "region" and region.library() is None:
        raise ValueError(
            f"data.decoder=region is not built here: build it ({region.BUILD}), or take data.decoder=pil, which gives the same pixels"
        )
    if name == "torchcodec" and importlib.util.find_spec("torchcodec") is None:
        raise ValueError("data.decoder=torchcodec needs the package torchcodec: pip install 'attn[torchcodec]'")
    return name
