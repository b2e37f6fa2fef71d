"""A convolution whose filters are scaled per sample, as one differentiable operator, registered with torch.

    y[n] = conv(x[n], weight * scale[n])
        x       [N, C1, H, W] of any floating type
        weight  [C2, C1 / groups, h, w] of the same type
        scale   [N, C2, h, w]: one value per sample, filter and tap, for all input channels

That is AW-convolution (arXiv 2108.08205) with its own choice of ratios. With a scale that does not depend on the input channel, y
is a sum over the taps of scale[n, o, tap] * conv1x1(x shifted, weight[..., tap]), so no sample's filters need to be stored: only x,
weight and scale are kept for the backward. `scaled_conv_reference` is the definition in plain PyTorch, `scaled_conv_cpu` the C++
form, `cuda.scaled_conv` that in Triton. Second derivatives are not supported.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attn.kernels import scaled_conv_cpu, scaled_conv_reference
from attn.kernels.cuda import scaled_conv as scaled_conv_cuda
from attn.kernels.ops import eager, operator, shortened
from attn.kernels.reference import memory_format

# The quick form for a type of device.
FORMS = {"cpu": scaled_conv_cpu, "cuda": scaled_conv_cuda}


def form(x: Tensor, weight: Tensor, groups: int) -> ModuleType:
    found = FORMS.get(x.device.type)
    return found if found is not None and found.serves(x, weight, groups) else scaled_conv_reference


def has_form(device: torch.device, dtype: torch.dtype, weight: Tensor, groups: int) -> bool:
    """Whether there is a quick form for maps of a type on a device, and for these filters, be it built or not."""
    return device.type in FORMS and FORMS[device.type].takes(dtype, weight, groups)


def convolved(x: Tensor, weight: Tensor, scale: Tensor, *settings: Any) -> Tensor:
    """What the operator computes; settings are stride, padding, dilation and groups."""
    return form(x, weight, settings[-1]).scaled_conv(x, weight, scale, *settings)


def gradients(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x (empty if `with_input` is false), weight and scale; settings are those of `convolved` and `with_input`."""
    return form(x, weight, settings[-2]).scaled_conv_backward(grad, x, weight, scale, *settings)


# See the docstring of this file.
scaled_conv = operator(
    "scaled_conv",
    "(Tensor x, Tensor weight, Tensor scale, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups) -> Tensor",
    convolved,
)
scaled_conv_backward = operator(
    "scaled_conv_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor scale, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, "
    "bool with_input) -> (Tensor dx, Tensor dweight, Tensor dscale)",
    gradients,
)


@scaled_conv.register_fake
def _(x: Tensor, weight: Tensor, scale: Any, stride: Any, padding: Any, dilation: Any, groups: Any) -> Tensor:
    size = scaled_conv_cpu.output_size(x, weight, stride, padding, dilation)
    return torch.empty_like(x.new_empty(x.shape[0], weight.shape[0], *size), memory_format=memory_format(x))


@scaled_conv_backward.register_fake
def _(grad: Any, x: Tensor, weight: Tensor, scale: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=memory_format(x)) if settings[-1] else x.new_empty(0)
    return dx, torch.empty_like(weight, memory_format=memory_format(weight)), scale.new_empty(scale.shape)


def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, scale, *ctx.settings = inputs
    ctx.save_for_backward(x, weight, scale)


def differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, scale = ctx.saved_tensors
    settings = (*ctx.settings, ctx.needs_input_grad[0])
    own = eager(x)
    backward = form(x, weight, ctx.settings[-1]).scaled_conv_backward if own else torch.ops.attn.scaled_conv_backward
    dx, dweight, dscale = backward(grad, x, weight, scale, *settings)
    return dx if ctx.needs_input_grad[0] else None, dweight, dscale, None, None, None, None


scaled_conv.register_autograd(differentiate, setup_context=keep)

# As modules call it.
convolve = shortened(scaled_conv, convolved, keep, differentiate)
