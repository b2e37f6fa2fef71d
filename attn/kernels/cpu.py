"""The C++ form of the operators (`cpu.cpp`): float32 and bfloat16 on the CPU, called as plain C functions."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from attn.kernels.build import library_path
from attn.kernels.reference import memory_format

DTYPES = (torch.float32, torch.bfloat16)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled form, None if it has not been built. See `attn.kernels.build`."""
    path = library_path()
    return ctypes.CDLL(str(path)) if path.exists() else None


def serves(y: Tensor) -> bool:
    """Whether this form supports a map."""
    return y.dtype in DTYPES and y.numel() > 0 and library() is not None


def moments(y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = laid_out(y, y)
    mean, variance = vectors(y, y.shape[0]), vectors(y, y.shape[0])
    mu, sigma2 = vectors(y, 1)[0], vectors(y, 1)[0]
    call("attn_moments", y, y, mean, variance, mu, sigma2)
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
    y = laid_out(y, y)
    grad = torch.empty_like(y)
    vectors = [v.contiguous() for v in (mean, mu, grad_mean, grad_var, grad_mu, grad_sigma2)]
    call("attn_moments_backward", y, laid_out(through, y), y, *vectors, grad)
    return grad


def affine(
    y: Tensor, centre: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool, pool: bool
) -> tuple[Tensor, Tensor]:
    y = laid_out(y, y)
    shortcut = None if shortcut is None else laid_out(shortcut, y)
    out = torch.empty_like(y)
    pooled = vectors(y, y.shape[0]) if pool else vectors(y, 0).flatten()
    scales = (scale.contiguous(), shift.contiguous(), row_step(scale))
    call("attn_affine", y, y, centre.contiguous(), *scales, shortcut, int(relu), out, pooled if pool else None)
    return out, pooled


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
    y = laid_out(y, y)
    grad_pooled = None if grad_pooled is None else grad_pooled.contiguous()
    through = torch.empty_like(y)
    dshortcut = torch.empty_like(y) if with_shortcut else None
    dscale, dshift = vectors(y, y.shape[0]), vectors(y, y.shape[0])
    maps = (laid_out(grad, y), grad_pooled, laid_out(out, y), y)
    scales = (centre.contiguous(), scale.contiguous(), row_step(scale))
    call("attn_affine_backward", y, *maps, *scales, int(relu), through, dshortcut, dscale, dshift)
    return through, y.new_empty(0) if dshortcut is None else dshortcut, dscale, dshift


def laid_out(x: Tensor, y: Tensor) -> Tensor:
    return x.contiguous(memory_format=memory_format(y))


def vectors(y: Tensor, rows: int) -> Tensor:
    return torch.empty(rows, y.shape[1])


def row_step(scale: Tensor) -> int:
    """Values from one sample's vector to the next one's: 0 if all samples share one."""
    return 0 if scale.shape[0] == 1 else scale.shape[1]


def call(name: str, y: Tensor, *arguments: Tensor | int | None) -> None:
    """Calls a function of the library. A tensor is passed as its address, None as a null pointer, an int as an int64."""
    found = library()
    assert found is not None, "`serves` has checked it"
    n, c, h, w = y.shape
    head = (int(y.dtype == torch.bfloat16), int(memory_format(y) == torch.channels_last), torch.get_num_threads())
    passed = [
        ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(None if a is None else a.data_ptr()) for a in arguments
    ]
    getattr(found, name)(*head, ctypes.c_int64(n), ctypes.c_int64(c), ctypes.c_int64(h * w), *passed)
