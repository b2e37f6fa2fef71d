"""Layouts and types of what the operators take, the same in every form."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(y: Tensor) -> torch.dtype:
    """The type of sums over a map."""
    return torch.promote_types(y.dtype, torch.float32)


def memory_format(y: Tensor) -> torch.memory_format:
    """The layout used for a map: channels_last if it has this layout, else contiguous."""
    return torch.channels_last if y.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def laid_out(x: Tensor, y: Tensor) -> Tensor:
    """A map in the layout used for y."""
    return x.contiguous(memory_format=memory_format(y))


def floats(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.float().contiguous()


def pixel_weights(basis: Tensor | None, y: Tensor) -> Tensor | None:
    """A basis [C, H, W] in the layout used for y."""
    return None if basis is None else laid_out(basis.float()[None], y)
