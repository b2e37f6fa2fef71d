"""Transformations of images, from the `data` group of the config."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from attn.config.schema import Data
from attn.data.decoders import OPENERS, Cut, Opened, Rectangle, Whole
from attn.data.imagefolder import Encoded


@dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation of the three channels on the scale 0 to 1, by which pixels are normalised."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalised(self, images: Tensor, layout: torch.memory_format = torch.preserve_format) -> Tensor:
        """uint8 images [..., 3, S, S] as normalised float32, on their device and in a layout; float images only change the layout.

        The bits are those of torchvision's ToDtype and Normalize on one image.
        """
        if images.dtype != torch.uint8:
            return images.to(memory_format=layout)
        mean, std = _constants(self.mean, images.device), _constants(self.std, images.device)
        if images.ndim == 4 and images.device.type == "cpu":
            return _batch_normalised(images, layout, mean, std)
        return images.to(torch.float32, memory_format=layout).mul_(1.0 / 255).sub_(mean).div_(std)


def _batch_normalised(images: Tensor, layout: torch.memory_format, mean: Tensor, std: Tensor) -> Tensor:
    """A batch on the CPU, in memory from numpy, which asks for large pages: the faults of small ones take longer than the rest."""
    n, c, h, w = images.shape
    if layout == torch.channels_last or (layout == torch.preserve_format and images.stride(1) == 1):
        out = torch.from_numpy(np.empty((n, h, w, c), np.float32)).copy_(images.permute(0, 2, 3, 1))
        # Constants for a whole row: operations on three channels at a time are slow.
        out.view(n, h, w * c).mul_(1.0 / 255).sub_(mean.flatten().repeat(w)).div_(std.flatten().repeat(w))
        return out.permute(0, 3, 1, 2)
    return torch.from_numpy(np.empty((n, c, h, w), np.float32)).copy_(images).mul_(1.0 / 255).sub_(mean).div_(std)


@functools.lru_cache(maxsize=16)
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """On the device once: a copy in every step would wait for it."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


class Transform:
    """From an image to the input of the network: uint8 [3, S, S], to be normalised on the device.

    With `erasing` the result is normalised already, because the values that it fills in are.

    Args:
        data: sizes, interpolation is separate.
        cut: for width and height of an image, what is cut out of it; may draw random numbers.
        interpolation: of the resizing.
        steps: further transformations of the PIL image.
        hflip: probability of a flip after the cut, where there are no further steps.
        erasing: of the normalised tensor.
    """

    def __init__(
        self,
        data: Data,
        cut: Callable[[int, int], Cut],
        interpolation: str,
        steps: list[Callable[[Any], Any]] | None = None,
        hflip: float = 0.0,
        erasing: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.cut, self.interpolation, self.steps, self.hflip, self.erasing = cut, interpolation, steps or [], hflip, erasing
        self.decoder = data.decoder
        self.pixels = Pixels(tuple(data.mean), tuple(data.std))

    def __call__(self, image: Encoded | Image.Image) -> Tensor:
        """
        Raises:
            UnreadableImage: it is damaged.
        """
        opened: Opened = OPENERS[self.decoder](image) if isinstance(image, Encoded) else Whole(image)
        cut = self.cut(*opened.size)
        if self.hflip:
            cut = cut._replace(mirrored=bool(torch.rand(1) < self.hflip))
        pixels = opened.cut(cut, self.interpolation)
        if self.steps:
            changed = Image.fromarray(pixels)
            for step in self.steps:
                changed = step(changed)
            pixels = np.array(changed)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        return tensor if self.erasing is None else self.erasing(self.pixels.normalised(tensor, torch.contiguous_format))

    def normalised(self, image: Encoded | Image.Image) -> Tensor:
        """One image as the network takes it, float32 [3, S, S].

        Raises:
            UnreadableImage: it is damaged.
        """
        return self.pixels.normalised(self(image), torch.contiguous_format)


def train_transform(data: Data) -> Transform:
    """The transformation of training images, with the random augmentation of the config."""
    size = data.image_size
    cut: Callable[[int, int], Cut] = functools.partial(_whole, size)
    if data.crop == "random_resized":
        crop = v2.RandomResizedCrop(size, scale=tuple(data.crop_scale), ratio=tuple(data.crop_ratio))
        cut = functools.partial(_random, crop, size)
    steps: list[Callable[[Any], Any]] = []
    if data.crop == "pad":
        steps.append(v2.RandomCrop(size, padding=data.pad))
    later: list[Callable[[Any], Any]] = []
    if data.rotate:
        later.append(v2.RandomRotation(data.rotate, interpolation=InterpolationMode.BILINEAR))
    if data.auto_augment:
        hints = {"translate_const": int(size * 0.45), "img_mean": tuple(round(255 * m) for m in data.mean)}
        make = rand_augment_transform if data.auto_augment.startswith("rand") else auto_augment_transform
        try:
            later.append(make(data.auto_augment, hints))
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"data.auto_augment={data.auto_augment}: timm refuses it ({error}); "
                "use rand-m9-mstd0.5-inc1, original, v0 ..."
            ) from None
    if data.color_jitter:
        later.append(v2.ColorJitter(*3 * (data.color_jitter,)))
    # On pixels where it is the only step; on a PIL image between two of them.
    hflip = data.hflip if not (steps or later) else 0.0
    if data.hflip and (steps or later):
        steps.append(v2.RandomHorizontalFlip(data.hflip))
    erasing = RandomErasing(data.random_erasing, mode="pixel", device="cpu") if data.random_erasing else None
    return Transform(data, cut, data.interpolation, [*steps, *later], hflip, erasing)


def eval_transform(data: Data) -> Transform:
    """The transformation of test images: resize the shorter side, crop the centre."""
    return Transform(data, functools.partial(_centre, data.test_resize, data.image_size), data.test_interpolation)


def _whole(size: int, width: int, height: int) -> Cut:
    return Cut(Rectangle(0, 0, width, height), (size, size), Rectangle(0, 0, size, size))


def _random(crop: v2.RandomResizedCrop, size: int, width: int, height: int) -> Cut:
    """torchvision draws; it asks an image for nothing but its size."""
    drawn = crop.make_params([torch.empty(1).expand(3, height, width)])
    box = Rectangle(drawn["left"], drawn["top"], drawn["width"], drawn["height"])
    return Cut(box, (size, size), Rectangle(0, 0, size, size))


def _centre(shorter: int, size: int, width: int, height: int) -> Cut:
    """As torchvision's Resize and CenterCrop; `size` is not above `shorter`."""
    wide = (shorter * width // height, shorter) if width > height else (shorter, shorter * height // width)
    left, top = (round((side - size) / 2) for side in wide)
    return Cut(Rectangle(0, 0, width, height), wide, Rectangle(left, top, size, size))
