"""The operators of `ops.py` in plain PyTorch: their definition. Sums and vectors are float32; float64 for float64 maps."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(y: Tensor) -> torch.dtype:
    """The type of sums over a map."""
    return torch.promote_types(y.dtype, torch.float32)


def memory_format(y: Tensor) -> torch.memory_format:
    """The layout used for a map: channels_last if it has this layout, else contiguous."""
    return torch.channels_last if y.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def over_map(vector: Tensor) -> Tensor:
    """Reshapes [N or 1, C] or [C] so that it broadcasts over [N, C, H, W]."""
    return vector[..., None, None]


def moments(y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    variance, mean = torch.var_mean(y.to(wide(y)), (2, 3), correction=0)
    mu = mean.mean(0)
    sigma2 = variance.mean(0) + (mean - mu).square().mean(0)
    return mean, variance, mu, sigma2


def moments_backward(
    through: Tensor,
    y: Tensor,
    mean: Tensor,
    mu: Tensor,
    grad_mean: Tensor,
    grad_var: Tensor,
    grad_mu: Tensor,
    grad_sigma2: Tensor,
) -> Tensor:
    n, pixels = y.shape[0], y.shape[2] * y.shape[3]
    offset = (grad_mean + (grad_mu + 2 * grad_sigma2 * (mean - mu)) / n) / pixels
    slope = 2 * (grad_var + grad_sigma2 / n) / pixels
    grad = through.to(offset.dtype) + over_map(offset) + over_map(slope) * (y.to(offset.dtype) - over_map(mean))
    return grad.to(y.dtype, memory_format=memory_format(y))


def affine(
    y: Tensor, centre: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool, pool: bool
) -> tuple[Tensor, Tensor]:
    out = (y.to(scale.dtype) - over_map(centre)) * over_map(scale) + over_map(shift)
    if shortcut is not None:
        out = out + shortcut
    if relu:
        out = out.relu()
    pooled = out.mean((2, 3)) if pool else out.new_empty(0)
    return out.to(y.dtype, memory_format=memory_format(y)), pooled


def affine_backward(
    grad: Tensor,
    grad_pooled: Tensor | None,
    out: Tensor,
    y: Tensor,
    centre: Tensor,
    scale: Tensor,
    relu: bool,
    with_shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    masked = grad.to(scale.dtype)
    if grad_pooled is not None:
        masked = masked + over_map(grad_pooled) / (y.shape[2] * y.shape[3])
    if relu:
        masked = masked.masked_fill(out <= 0, 0.0)
    through = (masked * over_map(scale)).to(y.dtype, memory_format=memory_format(y))
    dscale = (masked * (y.to(scale.dtype) - over_map(centre))).sum((2, 3))
    dshortcut = masked.to(y.dtype, memory_format=memory_format(y)) if with_shortcut else y.new_empty(0)
    return through, dshortcut, dscale, masked.sum((2, 3))
