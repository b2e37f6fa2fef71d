"""Helpers shared by several papers: norms, poolings, and checks of convolutions and options. No attention belongs here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_act_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attn.attention import Site


class VectorBatchNorm(nn.BatchNorm1d):
    """BatchNorm over descriptors [N, C] that also trains at one image per device.

    A batch of one has no variance: `nn.BatchNorm1d` raises an error. Here such a batch is normalised by the running
    statistics, which stay unchanged. With two images or more it is the same as `nn.BatchNorm1d`. Parameter names are the
    same.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class MapBatchNorm(nn.BatchNorm2d):
    """BatchNorm over maps [N, C, H, W] that also trains where every channel has a single value (N = H = W = 1).

    Such a batch is normalised by the running statistics, as in `VectorBatchNorm`. Otherwise it is the same as
    `nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class VectorConv2d(nn.Conv2d):
    """A 1x1 convolution of descriptors [N, C], computed as the linear layer that it is.

    On a CPU a convolution of maps of one pixel takes three times as long. Parameter names, shapes and the initialisation are
    those of `nn.Conv2d`.

    Args:
        channels: C of the input.
        out_channels: C of the output.
        bias: whether it adds a bias.
    """

    def __init__(self, channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


def norm_as_affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift [C], in float64, with which a batch norm in evaluation maps x to scale x + shift."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None, "a norm in evaluation has running statistics"
    assert variance is not None, "a norm in evaluation has running statistics"
    scale = (variance.detach().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean.detach().double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def bin_average(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of [N, C, H, W] to [N, C, *size]."""
    if size == (1, 1):
        return x.mean((2, 3), keepdim=True)
    if not torch.are_deterministic_algorithms_enabled():
        return F.adaptive_avg_pool2d(x, size)
    # CUDA's adaptive pooling has no deterministic gradient; slices have one.
    for axis, bins in zip((2, 3), size, strict=True):
        length = x.shape[axis]
        edges = [(i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)]
        x = torch.stack([x.narrow(axis, start, end - start).mean(axis) for start, end in edges], axis)
    return x


def scale_channels(x: Tensor, weights: Tensor) -> Tensor:
    """Multiplies [N, C, H, W] by [N, C]."""
    return x * weights[:, :, None, None]


def dense_conv(site: Site, name: str) -> nn.Conv2d:
    """The convolution of a `conv` site.

    Raises:
        ValueError: there is none, it has groups, or it is not a plain zero-padded `nn.Conv2d` that keeps the size at stride
            1.
    """
    conv = site.conv
    if conv is None:
        raise ValueError(f"{name} replaces a convolution: use it in the conv slot")
    if conv.groups != 1:
        raise ValueError(
            f"{name} replaces dense convolutions, but the one at stage {site.stage} has {conv.groups} groups; "
            "where the backbone has a choice, convs=pointwise picks dense ones"
        )
    kernel, dilation, padding = conv.kernel_size, conv.dilation, conv.padding
    same = not isinstance(padding, str) and all(2 * padding[i] == dilation[i] * (kernel[i] - 1) for i in (0, 1))
    if type(conv).forward is not nn.Conv2d.forward or conv.padding_mode != "zeros" or not same or len(set(conv.stride)) > 1:
        raise ValueError(
            f"{name} cannot replace {type(conv).__name__} (kernel_size={kernel}, padding={padding}, stride={conv.stride}); "
            "it replaces an nn.Conv2d with zero padding of half the kernel and one stride"
        )
    return conv


def working_stride(site: Site, downsample: Sequence[int]) -> int:
    """Input pixels per pixel of the maps that the attention works on."""
    return site.stride * (2 if site.stage in downsample else 1)


def conv_settings(conv: nn.Conv2d) -> dict[str, Any]:
    """Arguments of `nn.Conv2d` that make a convolution like this one."""
    keys = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {key: getattr(conv, key) for key in keys} | {"bias": conv.bias is not None}


def activation(name: str, key: str) -> type[nn.Module]:
    """timm's class for an activation.

    Args:
        name: timm's name.
        key: the attention and its option, for the error message, for example `BA: act`.

    Raises:
        ValueError: timm has no activation of this name.
    """
    try:
        found = get_act_layer(name)
    except (KeyError, AssertionError):
        found = None
    if found is None:
        raise ValueError(f"{key}={name!r} is not an activation of timm; use relu, relu6, silu, sigmoid, hard_sigmoid ...")
    return found
