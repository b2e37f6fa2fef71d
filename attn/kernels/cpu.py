"""The C++ form of the operators (`cpu.cpp`): float32 and bfloat16 on the CPU, called as plain C functions."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from attn.kernels.build import library_path
from attn.kernels.layout import floats, laid_out, memory_format, pixel_weights
from attn.kernels.reference import ACTS

DTYPES = (torch.float32, torch.bfloat16)
HEAD = [ctypes.c_int] * 3 + [ctypes.c_int64] * 3  # bf16, channels_last, threads; N, C, H W
# After the head: p a tensor's address or null, i an integer, d a double.
SIGNATURES = {
    "attn_squeeze": "pppppdpipppp",
    "attn_squeeze_backward": "ppppppppiippp",
    "attn_scale": "ppppiip",
    "attn_scale_backward": "ppppppiippp",
    "attn_norm_act": "pppppdippp",
    "attn_norm_act_backward": "ppppiippp",
}
KINDS: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled form, None if it has not been built. See `attn.kernels.build`."""
    path = library_path()
    if not path.exists():
        return None
    found = ctypes.CDLL(str(path))
    for name, kinds in SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = None, HEAD + [KINDS[kind] for kind in kinds]
    return found


def serves(y: Tensor) -> bool:
    """Whether this form supports a map."""
    return y.dtype in DTYPES and y.numel() > 0 and library() is not None


def squeeze(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    basis: Tensor | None,
    eps: float,
    act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = laid_out(y, y)
    (n, c), plain = y.shape[:2], act == "none"
    mean, variance = torch.empty(n, c), torch.empty((n, c) if plain else (0,))
    norm, raw = torch.empty(5, c), torch.empty((2 if basis is None else 3, n, c) if plain else (0,))
    given = (floats(weight), floats(bias), floats(running_mean), floats(running_var))
    call("attn_squeeze", y, y, *given, eps, pixel_weights(basis, y), ACTS.index(act), mean, variance, norm, raw)
    return mean, variance, norm, raw


def squeeze_backward(
    masked: Tensor,
    link: Tensor,
    y: Tensor,
    norm: Tensor,
    raw: Tensor,
    grad_mean: Tensor,
    grad_variance: Tensor,
    basis: Tensor | None,
    training: bool,
    act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    y = laid_out(y, y)
    dy, dweight, dbias = torch.empty_like(y), torch.empty(y.shape[1]), torch.empty(y.shape[1])
    vectors = (norm, raw, floats(grad_mean), floats(grad_variance))
    settings = (pixel_weights(basis, y), training, ACTS.index(act))
    call("attn_squeeze_backward", y, laid_out(masked, y), floats(link), y, *vectors, *settings, dy, dweight, dbias)
    return dy, dweight, dbias


def scale(y: Tensor, norm: Tensor, weights: Tensor, shortcut: Tensor | None, act: str, relu: bool) -> Tensor:
    y = laid_out(y, y)
    shortcut = None if shortcut is None else laid_out(shortcut, y)
    out = torch.empty_like(y)
    call("attn_scale", y, y, norm, floats(weights), shortcut, ACTS.index(act), relu, out)
    return out


def scale_backward(
    grad: Tensor,
    out: Tensor,
    y: Tensor,
    norm: Tensor,
    weights: Tensor,
    basis: Tensor | None,
    act: str,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y = laid_out(y, y)
    masked = torch.empty_like(y) if relu else y.new_empty(0)
    link, dweights = torch.empty(5, *y.shape[:2]), torch.empty(y.shape[:2])
    given = (laid_out(grad, y), laid_out(out, y), y, norm, floats(weights), pixel_weights(basis, y))
    call("attn_scale_backward", y, *given, ACTS.index(act), relu, masked, link, dweights)
    return masked, link, dweights


def norm_act(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    act: str,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y = laid_out(y, y)
    out, pooled, norm = torch.empty_like(y), torch.empty(y.shape[:2] if pool else (0,)), torch.empty(5, y.shape[1])
    given = (floats(weight), floats(bias), floats(running_mean), floats(running_var))
    call("attn_norm_act", y, y, *given, eps, ACTS.index(act), out, pooled if pool else None, norm)
    return out, pooled, norm


def norm_act_backward(
    grad: Tensor, grad_pooled: Tensor | None, y: Tensor, norm: Tensor, training: bool, act: str
) -> tuple[Tensor, Tensor, Tensor]:
    y = laid_out(y, y)
    dy, dweight, dbias = torch.empty_like(y), torch.empty(y.shape[1]), torch.empty(y.shape[1])
    given = (laid_out(grad, y), floats(grad_pooled), y, norm)
    call("attn_norm_act_backward", y, *given, training, ACTS.index(act), dy, dweight, dbias)
    return dy, dweight, dbias


def call(name: str, y: Tensor, *arguments: Tensor | float | None) -> None:
    """Calls a function of the library. A tensor is passed as its address, None as a null pointer, True as 1."""
    found = library()
    assert found is not None, "`serves` has checked it"
    n, c, h, w = y.shape
    nhwc = memory_format(y) == torch.channels_last
    passed = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    getattr(found, name)(y.dtype == torch.bfloat16, nhwc, torch.get_num_threads(), n, c, h * w, *passed)
