"""The C++ form of the operator of `scaled_conv.py` (`scaled_conv.cpp`): on the CPU, in float32 and bfloat16.

Where the CPU has no products of bfloat16 (AVX512-BF16), maps and filters are widened to float32.
"""

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
    dtype = multiplied(x.dtype)
    y = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    settings = sizes(x, weight, y, stride, padding, dilation, groups)
    given = (nhwc(x, dtype), nhwc(weight, dtype), factors(scale))
    call("attn_scaled_conv", settings, dtype, *given, y, torch.empty_like(given[1]))
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
    dtype = multiplied(x.dtype)
    given = (nhwc(grad, dtype), nhwc(x, dtype), nhwc(weight, dtype), factors(scale))
    dx = torch.empty_like(given[1]) if with_input else None
    dweight, dscale = torch.empty_like(given[2], dtype=torch.float32), torch.empty_like(given[3])
    call("attn_scaled_conv_backward", settings, dtype, *given, dx, dweight, dscale, torch.empty_like(given[2]))
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


def multiplied(dtype: torch.dtype) -> torch.dtype:
    """The type in which the library computes maps and filters of a type."""
    return dtype if dtype == torch.float32 or multiplies_bf16() else torch.float32


@torch.compiler.assume_constant_result
def multiplies_bf16() -> bool:
    """Whether the library was built for a CPU with products of bfloat16."""
    found = cpu.library()
    return found is not None and bool(found.attn_scaled_conv_takes_bf16())


def nhwc(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In a type and channels_last; of filters [C2, C1, h, w] that is [C2, h, w, C1]."""
    return x.to(dtype, memory_format=torch.channels_last).contiguous(memory_format=torch.channels_last)


def factors(scale: Tensor) -> Tensor:
    """[N, taps, C2] from [N, C2, h, w]."""
    return scale.flatten(2).transpose(1, 2).to(torch.float32).contiguous()


def call(name: str, settings: ctypes.Array[ctypes.c_int64], dtype: torch.dtype, *tensors: Tensor | None) -> None:
    """Calls a function of the library for maps of a type; a tensor is passed as its address, None as a null pointer."""
    function = getattr(cpu.library(), name)
    function.restype = None
    addresses = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
    function(settings, ctypes.c_int(dtype == torch.bfloat16), ctypes.c_int(torch.get_num_threads()), *addresses)
