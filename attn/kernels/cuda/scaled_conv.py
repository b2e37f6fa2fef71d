"""A convolution whose filters are scaled per sample, in Triton:

    y[n] = conv(x[n], weight * scale[n])
        x       [N, C1, H, W], float32, float16 or bfloat16
        weight  [C2, C1 / groups, h, w] of the same type
        scale   [N, C2, h, w]: one value per sample, filter and tap, for all input channels

That is AW-convolution (arXiv 2108.08205). The scale does not depend on the input channel, so that each tap is one matrix product, scaled
as it is added: neither a sample's filters nor a tap's map is stored, and forward and backward take as many products as the plain
convolution's. Sums are float32; products of float32 follow `torch.backends.cudnn.allow_tf32`, as torch's convolutions do.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn.kernels.cuda.form import DTYPES, PROGRAMS, ceil, power_of_two, vector
from attn.kernels.layout import laid_out, memory_format

# The tensor cores' smallest side, and the largest sides of a tile: three stages of tiles fit in the 99 KiB that a program can have.
SIDE, PIXELS, CHANNELS = 16, 128, 64


@functools.cache
def kernels() -> ModuleType | None:
    """The module `convolutions`; None where Triton cannot be imported."""
    try:
        from attn.kernels.cuda import convolutions
    except ImportError:
        return None
    return convolutions


def takes(dtype: torch.dtype, weight: Tensor, groups: int) -> bool:
    """Whether this form supports a type of maps with filters [C2, C1 / groups, h, w]."""
    return dtype in DTYPES and min(weight.shape[1], weight.shape[0] // groups) >= SIDE


def serves(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether this form can compute an operator, here and for these values."""
    if x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device) < (8, 0):
        return False
    return x.numel() > 0 and takes(x.dtype, weight, groups) and kernels() is not None


class Sizes(NamedTuple):
    """The sizes of an operator, as its kernels take them; c1 and c2 are channels of a group."""

    c1: int
    c2: int
    groups: int
    height: int
    width: int
    rows: int
    columns: int
    x_pixel: int
    x_channel: int
    y_pixel: int
    y_channel: int

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, rows: int, columns: int, groups: int) -> Sizes:
        c1, c2, (height, width) = x.shape[1], weight.shape[0], x.shape[2:]
        nhwc = memory_format(x) == torch.channels_last
        strides = (c1, 1, c2, 1) if nhwc else (1, height * width, 1, rows * columns)
        return cls(c1 // groups, c2 // groups, groups, height, width, rows, columns, *strides)


def settings(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> dict[str, Any]:
    """The constants of all kernels."""
    tf32 = torch.version.hip is None and torch.backends.cudnn.allow_tf32
    return {
        "TAPS": weight.shape[2] * weight.shape[3],
        "GEOMETRY": (weight.shape[3], *stride, *padding, *dilation),
        "PRECISION": "tf32" if tf32 else "ieee",
        "BLOCK_K": 32 if x.dtype == torch.float32 else 64,
        "num_stages": 3,
    }


def block(size: int, largest: int) -> int:
    return max(SIDE, min(largest, power_of_two(size)))


def start(name: str, x: Tensor, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        getattr(kernels(), name)[grid](*arguments, **constants)


def filters(weight: Tensor) -> Tensor:
    """[C2, h, w, C1 / groups], in memory."""
    return weight.permute(0, 2, 3, 1).contiguous()


def factors(scale: Tensor) -> Tensor:
    """[N, taps, C2] from [N, C2, h, w]."""
    return scale.flatten(2).transpose(1, 2).float().contiguous()


def scaled_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """y, in the layout of x."""
    x = laid_out(x, x)
    rows, columns = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    sizes = Sizes.of(x, weight, rows, columns, groups)
    y = x.new_empty(x.shape[0], weight.shape[0], rows, columns).contiguous(memory_format=memory_format(x))
    blocks = {"BLOCK_P": block(rows * columns, PIXELS), "BLOCK_C": block(sizes.c2, CHANNELS)}
    grid = (x.shape[0], ceil(rows * columns, blocks["BLOCK_P"]), groups * ceil(sizes.c2, blocks["BLOCK_C"]))
    constants = settings(x, weight, stride, padding, dilation)
    start("forward", x, grid, x, filters(weight), factors(scale), y, *sizes, **constants, **blocks)
    return y


def scaled_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    with_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x (empty if `with_input` is false), weight and scale."""
    x, grad, n = laid_out(x, x), laid_out(grad, x), x.shape[0]
    sizes = Sizes.of(x, weight, grad.shape[2], grad.shape[3], groups)
    constants = settings(x, weight, stride, padding, dilation)
    own, taps = (filters(weight), factors(scale)), constants["TAPS"]
    dx = torch.empty_like(x) if with_input else x.new_empty(0)
    if with_input:
        pixels = sizes.height * sizes.width
        blocks = {"BLOCK_P": block(pixels, PIXELS), "BLOCK_C": block(sizes.c1, CHANNELS)}
        grid = (n, ceil(pixels, blocks["BLOCK_P"]), groups * ceil(sizes.c1, blocks["BLOCK_C"]))
        start("backward_input", x, grid, grad, *own, dx, *sizes, **constants, **blocks)

    blocks = {"BLOCK_O": block(sizes.c2, CHANNELS), "BLOCK_C": block(sizes.c1, CHANNELS)}
    across, down = ceil(sizes.c1, blocks["BLOCK_C"]), groups * ceil(sizes.c2, blocks["BLOCK_O"])
    span = ceil(n, min(n, ceil(PROGRAMS, taps * across * down)))
    dweight = vector(x, ceil(n, span), *own[0].shape)
    dscale = vector(x, across, *own[1].shape)
    given = (grad, x, *own, dweight, dscale, n, span)
    start("backward_filters", x, (ceil(n, span), taps * across, down), *given, *sizes, **constants, **blocks)
    return (
        dx,
        dweight.sum(0).permute(0, 3, 1, 2).to(weight.dtype, memory_format=memory_format(weight)),
        dscale.sum(0).transpose(1, 2).reshape(scale.shape).to(scale.dtype),
    )
