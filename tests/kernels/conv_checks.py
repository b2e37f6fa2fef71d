"""A form of the convolution with scaled filters against its definition, on any device."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F


def each_sample(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """Sample by sample, with its own filters."""
    own = zip(x, scale, strict=True)
    return torch.stack([F.conv2d(one, weight * s[:, None], None, stride, padding, dilation, groups) for one, s in own])


# Channels (input, output), image, kernel, stride, padding, dilation, groups: 1x1 maps, odd sizes, more than one tile, uneven ones.
CASES = [
    (16, 16, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (16, 20, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (72, 40, (5, 6), (3, 1), (2, 1), (1, 0), (1, 1), 2),
    (16, 70, (13, 12), (1, 2), (1, 2), (0, 1), (1, 2), 1),
]


def compare(
    form: ModuleType,
    case: tuple,
    samples: int = 2,
    layout: torch.memory_format = torch.channels_last,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    tolerance: float = 1e-5,
) -> None:
    """Output and gradients, with errors of `tolerance` times the largest value at most."""
    c1, c2, image, kernel, *settings, groups = case
    g = torch.Generator().manual_seed(0)
    x = torch.randn(samples, c1, *image, generator=g).to(device, dtype).contiguous(memory_format=layout)
    weight = torch.randn(c2, c1 // groups, *kernel, generator=g).to(device, dtype)
    scale = (torch.rand(samples, c2, *kernel, generator=g) + 1).to(device)
    assert form.serves(x, weight, groups)
    exact = [t.double().requires_grad_() for t in (x, weight, scale)]
    truth = each_sample(*exact, *settings, groups)
    grad = torch.randn(truth.shape, generator=g).to(device, dtype)
    truths = [truth.detach(), *torch.autograd.grad(truth, exact, grad.double())]
    y = form.scaled_conv(x, weight, scale, *settings, groups)
    assert y.is_contiguous(memory_format=layout)
    found = [y, *form.scaled_conv_backward(grad, x, weight, scale, *settings, groups, True)]
    for ours, theirs, given in zip(found, truths, (x, x, weight, scale), strict=True):
        assert ours.dtype == given.dtype
        assert ours.shape == theirs.shape
        assert float((ours.double() - theirs).abs().max()) <= tolerance * float(theirs.abs().max())
