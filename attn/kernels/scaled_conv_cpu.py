"""The C++ form of the operator of `scaled_conv.py` (`scaled_conv.cpp`): on the CPU, in float32; bfloat16 is widened for it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from attn.kernels import cpu
from attn.kernels.reference import memory_format

LANES = 16  # channels of a group are taken so many at a time


def takes(dtype: torch.dtype, weight: Tensor, groups: int) -> bool:
    """Whether this form supports a type of maps with filters [C2, C1 / groups, h, w]."""
    return dtype in cpu.DTYPES and weight.shape[1] % LANES == 0 and weight.shape[0] // groups % LANES == 0


def serves(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether this form can compute an operator here."""
    return takes(x.dtype, weight, groups) and cpu.library() is not None


def scaled_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *output_size(x, weight, stride, padding, dilation))
    y = torch.empty(shape, memory_format=torch.channels_last)
    settings = sizes(x, weight, y, stride, padding, dilation, groups)
    given = (nhwc(x), nhwc(weight), factors(scale))
    call("attn_scaled_conv", settings, *given, y, torch.empty_like(given[1]))
    return y.to(x.dtype, memory_format=memory_format(x))


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
    settings = sizes(x, weight, grad, stride, padding, dilation, groups)
    given = (nhwc(grad), nhwc(x), nhwc(weight), factors(scale))
    dx = torch.empty_like(given[1]) if with_input else None
    dweight, dscale = torch.empty_like(given[2]), torch.empty_like(given[3])
    call("attn_scaled_conv_backward", settings, *given, dx, dweight, dscale, torch.empty_like(given[2]))
    return (
        x.new_empty(0) if dx is None else dx.to(x.dtype, memory_format=memory_format(x)),
        dweight.to(weight.dtype, memory_format=memory_format(weight)),
        dscale.transpose(1, 2).reshape(scale.shape).to(scale.dtype).contiguous(),
    )


def output_size(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    return height, width


def sizes(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> ctypes.Array[ctypes.c_int64]:
    """As `shape_of` in the C++ file reads them."""
    channels = (x.shape[1] // groups, y.shape[1] // groups)
    flat = (x.shape[0], groups, *channels, *x.shape[2:], *y.shape[2:], *weight.shape[2:], *stride, *padding, *dilation)
    return (ctypes.c_int64 * len(flat))(*flat)


def nhwc(x: Tensor) -> Tensor:
    """In float32 and channels_last; of filters [C2, C1, h, w] that is [C2, h, w, C1]."""
    return x.to(torch.float32, memory_format=torch.channels_last).contiguous(memory_format=torch.channels_last)


def factors(scale: Tensor) -> Tensor:
    """[N, taps, C2] from [N, C2, h, w]."""
    return scale.flatten(2).transpose(1, 2).to(torch.float32).contiguous()


def call(name: str, settings: ctypes.Array[ctypes.c_int64], *tensors: Tensor | None) -> None:
    """Calls a function of the library; a tensor is passed as its address, None as a null pointer."""
    function = getattr(cpu.library(), name)
    function.restype = None
    addresses = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
    function(settings, ctypes.c_int(torch.get_num_threads()), *addresses)
