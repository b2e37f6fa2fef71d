"""The operator of `scaled_conv.py` in plain PyTorch: its definition, one convolution with N * groups groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attn.kernels.reference import memory_format


def per_sample(
    x: Tensor, filters: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """Convolves sample n of x [N, C1, H, W] with filters[n], [N, C2, C1 / groups, h, w]."""
    n, c, height, width = x.shape
    y = F.conv2d(x.reshape(1, n * c, height, width), filters.flatten(0, 1), None, stride, padding, dilation, n * groups)
    return y.reshape(n, filters.shape[1], *y.shape[2:])


def scaled_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    y = per_sample(x, (weight * scale[:, :, None]).to(x.dtype), stride, padding, dilation, groups)
    return y.contiguous(memory_format=memory_format(x))


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
    n, c, height, width = x.shape
    filters = (weight * scale[:, :, None]).to(x.dtype)
    dx, dfilters, _ = torch.ops.aten.convolution_backward(
        grad.reshape(1, -1, *grad.shape[2:]),
        x.reshape(1, n * c, height, width),
        filters.flatten(0, 1),
        None,
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        n * groups,
        [with_input, True, False],
    )
    dfilters = dfilters.reshape(filters.shape).to(torch.promote_types(x.dtype, torch.float32))
    dweight = (dfilters * scale[:, :, None]).sum(0).to(weight.dtype, memory_format=memory_format(weight))
    dscale = (dfilters * weight).sum(2).to(scale.dtype)
    dx = dx.reshape(x.shape).contiguous(memory_format=memory_format(x)) if with_input else x.new_empty(0)
    return dx, dweight, dscale
