"""Transformations of images, from the `data` group of the config."""

from __future__ import annotations

import torch
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import InterpolationMode, v2

from attn.config.schema import Data


def train_transform(data: Data) -> v2.Transform:
    """PIL image to a normalised float tensor [3, S, S], with the random augmentation of the config."""
    mode, size = InterpolationMode(data.interpolation), data.image_size
    steps: list[torch.nn.Module | object] = []
    if data.crop == "random_resized":
        scale, ratio = tuple(data.crop_scale), tuple(data.crop_ratio)
        steps.append(v2.RandomResizedCrop(size, scale=scale, ratio=ratio, interpolation=mode))
    else:
        steps.append(v2.Resize((size, size), interpolation=mode))
        if data.crop == "pad":
            steps.append(v2.RandomCrop(size, padding=data.pad))
    if data.hflip:
        steps.append(v2.RandomHorizontalFlip(data.hflip))
    if data.rotate:
        steps.append(v2.RandomRotation(data.rotate, interpolation=InterpolationMode.BILINEAR))
    if data.auto_augment:
        hints = {"translate_const": int(size * 0.45), "img_mean": tuple(round(255 * m) for m in data.mean)}
        make = rand_augment_transform if data.auto_augment.startswith("rand") else auto_augment_transform
        try:
            steps.append(make(data.auto_augment, hints))
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"data.auto_augment={data.auto_augment}: timm refuses it ({error}); "
                "use rand-m9-mstd0.5-inc1, original, v0 ..."
            ) from None
    if data.color_jitter:
        steps.append(v2.ColorJitter(*3 * (data.color_jitter,)))
    steps += _to_tensor(data)
    if data.random_erasing:
        steps.append(RandomErasing(data.random_erasing, mode="pixel", device="cpu"))
    return v2.Compose(steps)


def eval_transform(data: Data) -> v2.Transform:
    """PIL image to a normalised float tensor [3, S, S]: resize the shorter side, crop the centre."""
    resize = v2.Resize(data.test_resize, interpolation=InterpolationMode(data.test_interpolation))
    return v2.Compose([resize, v2.CenterCrop(data.image_size), *_to_tensor(data)])


def _to_tensor(data: Data) -> list[object]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)]
