"""The interface: two operators, from which the end of a block is composed.

Both take maps [N, C, H, W] of any floating type and return vectors in float32 (float64 for float64 maps).

`moments(y)` computes, in one pass,

    mean, var    [N, C]  of each channel of each sample over H W (var: divided by H W)
    mu, sigma2   [C]     of each channel over N H W, as batch norm uses them
    through      [N, C, H, W]  zeros without memory, in the role of y - y.detach(): carries `affine`'s gradient back to y

`affine(y, through, centre, scale, shift, shortcut, relu, pool)` computes, in one pass,

    out          relu((y - centre[c]) * scale[n, c] + shift[n, c] + shortcut), in the type and layout of y
    pooled       [N, C], the mean of out over H W; empty without `pool`

y is a constant to `affine`; its gradient goes through `through`, and `moments` adds the vectors' gradients to it in its one
backward pass. So autograd differentiates everything computed between the two, using vectors only, and only y, out and
vectors are stored. The gradients are those of the formulas; second derivatives are not supported.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attn.kernels import cpu, reference
from attn.kernels.reference import memory_format, wide


def form(y: Tensor) -> ModuleType:
    return cpu if y.device.type == "cpu" and cpu.serves(y) else reference


def no_map(y: Tensor) -> Tensor:
    return y.new_zeros(()).expand(y.shape)


@torch.library.custom_op("attn::moments", mutates_args=())
def moments(y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See the docstring of this file."""
    return (*form(y).moments(y), no_map(y))


@moments.register_fake
def _(y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (n, c), dtype = y.shape[:2], wide(y)
    mean, variance = y.new_empty(n, c, dtype=dtype), y.new_empty(n, c, dtype=dtype)
    return mean, variance, y.new_empty(c, dtype=dtype), y.new_empty(c, dtype=dtype), no_map(y)


@torch.library.custom_op("attn::moments_backward", mutates_args=())
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
    """The gradient of `moments` with respect to y: `through`, plus a linear function of y per channel and sample."""
    return form(y).moments_backward(through, y, mean, mu, grad_mean, grad_var, grad_mu, grad_sigma2)


@moments_backward.register_fake
def _(through: Tensor, y: Tensor, *vectors: Tensor) -> Tensor:
    return like(y)


def keep_moments(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[0], output[2])


def differentiate_moments(
    ctx: Any, grad_mean: Tensor, grad_var: Tensor, grad_mu: Tensor, grad_sigma2: Tensor, through: Tensor
) -> Tensor:
    y, mean, mu = ctx.saved_tensors
    return torch.ops.attn.moments_backward(through, y, mean, mu, grad_mean, grad_var, grad_mu, grad_sigma2)


moments.register_autograd(differentiate_moments, setup_context=keep_moments)


@torch.library.custom_op("attn::affine", mutates_args=())
def affine(
    y: Tensor,
    through: Tensor,
    centre: Tensor,
    scale: Tensor,
    shift: Tensor,
    shortcut: Tensor | None,
    relu: bool,
    pool: bool,
) -> tuple[Tensor, Tensor]:
    """See the docstring of this file.

    Args:
        centre: [C].
        scale, shift: both [N, C], or both [1, C].
        shortcut: in the shape and type of y.
    """
    return form(y).affine(y, centre, scale, shift, shortcut, relu, pool)


@affine.register_fake
def _(
    y: Tensor,
    through: Tensor,
    centre: Tensor,
    scale: Tensor,
    shift: Tensor,
    shortcut: Tensor | None,
    relu: bool,
    pool: bool,
) -> tuple[Tensor, Tensor]:
    return like(y), y.new_empty(y.shape[:2] if pool else (0,), dtype=wide(y))


@torch.library.custom_op("attn::affine_backward", mutates_args=())
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
    """The gradients of `affine` with respect to `through`, `shortcut` (empty without one), scale and shift (both [N, C])."""
    return form(y).affine_backward(grad, grad_pooled, out, y, centre, scale, relu, with_shortcut)


@affine_backward.register_fake
def _(
    grad: Tensor,
    grad_pooled: Tensor | None,
    out: Tensor,
    y: Tensor,
    centre: Tensor,
    scale: Tensor,
    relu: bool,
    with_shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dscale, dshift = (y.new_empty(y.shape[:2], dtype=wide(y)) for _ in range(2))
    return like(y), like(y) if with_shortcut else y.new_empty(0), dscale, dshift


def keep_affine(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    y, _, centre, scale, _, shortcut, ctx.relu, ctx.pool = inputs
    ctx.with_shortcut = shortcut is not None
    # Without ReLU the gradient does not need the output.
    ctx.save_for_backward(y, output[0] if ctx.relu else y, centre, scale)


def differentiate_affine(ctx: Any, grad: Tensor, grad_pooled: Tensor) -> tuple[Any, ...]:
    y, out, centre, scale = ctx.saved_tensors
    through, dshortcut, dscale, dshift = torch.ops.attn.affine_backward(
        grad, grad_pooled if ctx.pool else None, out, y, centre, scale, ctx.relu, ctx.with_shortcut
    )
    shared = scale.shape[0] == 1
    dcentre = -(dshift * scale).sum(0)
    if shared:
        dscale, dshift = dscale.sum(0, keepdim=True), dshift.sum(0, keepdim=True)
    return None, through, dcentre, dscale, dshift, dshortcut if ctx.with_shortcut else None, None, None


affine.register_autograd(differentiate_affine, setup_context=keep_affine)


def like(y: Tensor) -> Tensor:
    return torch.empty_like(y, memory_format=memory_format(y))
