"""What the tests of the modules' formulas share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attn.attention import Site


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode with every parameter and statistic random, so that no term is hidden by its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(0.5 + noise.abs() if name.endswith("running_var") else noise)
    return module.eval()


def logistic(z: Tensor) -> Tensor:
    return 1 / (1 + (-z).exp())


def batch_norm(norm: Any, x: Tensor, of_the_batch: bool = False) -> Tensor:
    """BatchNorm of [N, C, ...] written out, by its running statistics or by those of the batch."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    weight, bias = norm.weight.view(shape), norm.bias.view(shape)
    if of_the_batch:
        axes = [0, *range(2, x.ndim)]
        mean, var = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
    else:
        mean, var = norm.running_mean.view(shape), norm.running_var.view(shape)
    return (x - mean) / (var + norm.eps).sqrt() * weight + bias


def sites(width: int | tuple[int, ...], **defaults: Any) -> Callable[..., Site]:
    """`site(width, prev, **fields)` with defaults; one number stands for the widths of input and output."""

    def site(width: int | tuple[int, ...] = width, prev: int | tuple[int, ...] | None = None, **fields: Any) -> Site:
        known = {"stage": 1, "block": 0, "depth": 0, "stride": 8} | defaults | fields
        return Site(widths=_pair(width), prev=None if prev is None else _pair(prev), **known)

    return site


def _pair(width: int | tuple[int, ...]) -> tuple[int, ...]:
    return (width, width) if isinstance(width, int) else width
