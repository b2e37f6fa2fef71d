"""The interface: three differentiable operators, of which blocks are composed.

Maps are [N, C, H, W] of any floating type; vectors are float32 (float64 for float64 maps). norm is batch norm, act one of `ACTS`.

`squeeze` and `scale` are the two ends of a channel gate; what is computed between them sees only vectors:

    mean, variance, norm, raw, through, link = squeeze(y, ...)    one pass over y, two if act is not none
        mean     [N, C]  of act(norm(y)) over H W; with a basis [C, H, W] the sums over H W of basis * act(norm(y)) instead
        variance [N, C]  of norm(y) over H W, divided by H W; empty if act is not none
    out = scale(y, through, link, norm, weights, ...)             one pass
        out      [N, C, H, W]  after(act(norm(y)) * weights[n, c] + shortcut); after is ReLU or nothing

Only y, out and vectors are stored. `scale` differentiates with respect to weights and shortcut; what y, weight and bias need from
its output goes to `squeeze`, whose backward pass reads maps once for all gradients: `through` [N, C, H, W] (without memory) brings
it the gradient before the gate, `link` [5, N, C] the gate's weights and sums over H W. So the two are not derivatives in
themselves, and each `through` and `link` must be passed to exactly one `scale`. norm [5, C] and raw carry no gradient.

`norm_act` is act(norm(y)), and its mean over H W, in two passes; two in the backward pass, for which it keeps only y.

The gradients are those of the formulas; second derivatives are not supported. Batch statistics are used where no running ones are
given; norm[0] and norm[4] are then the batch's mean and unbiased variance, for the running statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attn.kernels import cpu, reference
from attn.kernels.cuda import form as cuda
from attn.kernels.layout import memory_format, wide

# The quick form for a type of device.
FORMS = {"cpu": cpu, "cuda": cuda}


def form(y: Tensor) -> ModuleType:
    found = FORMS.get(y.device.type)
    return found if found is not None and found.serves(y) else reference


def has_form(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a quick form for maps of a type on a device, be it built or not."""
    return device.type in FORMS and dtype in FORMS[device.type].DTYPES


def eager(y: Tensor) -> bool:
    """Whether an operator may be called without torch's dispatcher: not while a graph is traced, nor for tensors without values."""
    return type(y) is Tensor and not torch.compiler.is_compiling()


def shortened(op: Any, compute: Callable[..., Any], keep: Callable[..., None], differentiate: Callable[..., Any]) -> Any:
    """`op`, which in eager mode is called without the dispatcher: that takes longer than some maps' passes.

    Args:
        op: the operator, registered with torch.
        compute: its forward.
        keep, differentiate: its autograd.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = compute(*inputs)
        keep(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(once_differentiable(differentiate))}
    function: Any = type(op._qualname, (torch.autograd.Function,), members)

    def call(*inputs: Any) -> Any:
        return function.apply(*inputs) if eager(inputs[0]) else op(*inputs)

    return call


def backward_of(y: Tensor, name: str) -> Callable[..., Any]:
    return getattr(form(y), name) if eager(y) else getattr(torch.ops.attn, name)


def no_map(y: Tensor) -> Tensor:
    return y.new_zeros(()).expand(y.shape)


def like(y: Tensor) -> Tensor:
    return torch.empty_like(y, memory_format=memory_format(y))


def vector(y: Tensor, *shape: int) -> Tensor:
    return y.new_empty(shape, dtype=wide(y))


def operator(name: str, schema: str, compute: Callable[..., Any]) -> torch.library.CustomOpDef:
    """An operator that torch knows, on any device. The schema is its signature; forms have the same, unless said."""
    return torch.library.custom_op(f"attn::{name}", compute, mutates_args=(), schema=schema)


def squeezed(y: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    found = form(y).squeeze(y, *settings)
    return (*found, no_map(y), found[2].new_zeros(()).expand(5, *y.shape[:2]))


# See the docstring of this file.
squeeze = operator(
    "squeeze",
    "(Tensor y, Tensor weight, Tensor bias, Tensor? running_mean, Tensor? running_var, Tensor? basis, float eps, str act)"
    " -> (Tensor mean, Tensor variance, Tensor norm, Tensor raw, Tensor through, Tensor link)",
    squeezed,
)


@squeeze.register_fake
def _(
    y: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, basis: Tensor | None, eps: float, act: str
) -> Any:
    n, c = y.shape[:2]
    variance, raw = ((n, c), (2 if basis is None else 3, n, c)) if act == "none" else ((0,), (0,))
    link = vector(y, 1)[0].expand(5, n, c)
    return vector(y, n, c), vector(y, *variance), vector(y, 5, c), vector(y, *raw), no_map(y), link


squeeze_backward = operator(
    "squeeze_backward",
    "(Tensor masked, Tensor link, Tensor y, Tensor norm, Tensor raw, Tensor grad_mean, Tensor grad_variance, Tensor? basis, "
    "bool training, str act) -> (Tensor dy, Tensor dweight, Tensor dbias)",
    lambda masked, link, y, *rest: form(y).squeeze_backward(masked, link, y, *rest),
)


@squeeze_backward.register_fake
def _(masked: Tensor, link: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return like(y), vector(y, y.shape[1]), vector(y, y.shape[1])


def keep_squeeze(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, weight, bias, running_mean, _, basis, _, ctx.act = inputs
    ctx.training, ctx.types = running_mean is None, (weight.dtype, bias.dtype)
    ctx.save_for_backward(y, output[2], output[3], basis)


def differentiate_squeeze(
    ctx: Any, grad_mean: Tensor, grad_variance: Tensor, _norm: Tensor, _raw: Tensor, masked: Tensor, link: Tensor
) -> tuple[Any, ...]:
    y, norm, raw, basis = ctx.saved_tensors
    dy, dweight, dbias = backward_of(y, "squeeze_backward")(
        masked, link, y, norm, raw, grad_mean, grad_variance, basis, ctx.training, ctx.act
    )
    return dy, dweight.to(ctx.types[0]), dbias.to(ctx.types[1]), None, None, None, None, None


squeeze.register_autograd(differentiate_squeeze, setup_context=keep_squeeze)


def scaled(y: Tensor, through: Tensor, link: Tensor, *rest: Any) -> Tensor:
    norm, weights, shortcut, _basis, act, relu = rest
    return form(y).scale(y, norm, weights, shortcut, act, relu)


# Weights are [N, C], the shortcut is as y, in shape and type; basis as given to `squeeze`. Forms do without through, link and basis.
scale = operator(
    "scale",
    "(Tensor y, Tensor through, Tensor link, Tensor norm, Tensor weights, Tensor? shortcut, Tensor? basis, str act, bool relu)"
    " -> Tensor",
    scaled,
)


@scale.register_fake
def _(y: Tensor, *rest: Any) -> Tensor:
    return like(y)


# The gradient before ReLU (empty without it), `link`, and the gradient of weights [N, C].
scale_backward = operator(
    "scale_backward",
    "(Tensor grad, Tensor out, Tensor y, Tensor norm, Tensor weights, Tensor? basis, str act, bool relu)"
    " -> (Tensor masked, Tensor link, Tensor dweights)",
    lambda grad, out, y, *rest: form(y).scale_backward(grad, out, y, *rest),
)


@scale_backward.register_fake
def _(grad: Tensor, out: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    n, c = y.shape[:2]
    relu = rest[-1]
    return like(y) if relu else y.new_empty(0), vector(y, 5, n, c), vector(y, n, c)


def keep_scale(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, _, _, norm, weights, shortcut, basis, ctx.act, ctx.relu = inputs
    ctx.with_shortcut = shortcut is not None
    # Without ReLU the gradient does not need the output.
    ctx.save_for_backward(y, output if ctx.relu else y, norm, weights, basis)


def differentiate_scale(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    y, out, norm, weights, basis = ctx.saved_tensors
    masked, link, dweights = backward_of(y, "scale_backward")(grad, out, y, norm, weights, basis, ctx.act, ctx.relu)
    before = masked if ctx.relu else grad
    return None, before, link, None, dweights.to(weights.dtype), before if ctx.with_shortcut else None, None, None, None


scale.register_autograd(differentiate_scale, setup_context=keep_scale)


def normed(y: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    return form(y).norm_act(y, *settings)


# act(norm(y)), its mean over H W [N, C] (empty without `pool`), and norm [5, C].
norm_act = operator(
    "norm_act",
    "(Tensor y, Tensor weight, Tensor bias, Tensor? running_mean, Tensor? running_var, float eps, str act, bool pool)"
    " -> (Tensor out, Tensor pooled, Tensor norm)",
    normed,
)


@norm_act.register_fake
def _(y: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    pool = settings[-1]
    return like(y), vector(y, *(y.shape[:2] if pool else (0,))), vector(y, 5, y.shape[1])


norm_act_backward = operator(
    "norm_act_backward",
    "(Tensor grad, Tensor? grad_pooled, Tensor y, Tensor norm, bool training, str act)"
    " -> (Tensor dy, Tensor dweight, Tensor dbias)",
    lambda grad, grad_pooled, y, *rest: form(y).norm_act_backward(grad, grad_pooled, y, *rest),
)


@norm_act_backward.register_fake
def _(grad: Tensor, grad_pooled: Tensor | None, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return like(y), vector(y, y.shape[1]), vector(y, y.shape[1])


def keep_norm_act(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, weight, bias, running_mean, _, _, ctx.act, ctx.pool = inputs
    ctx.training, ctx.types = running_mean is None, (weight.dtype, bias.dtype)
    ctx.save_for_backward(y, output[2])


def differentiate_norm_act(ctx: Any, grad: Tensor, grad_pooled: Tensor, _norm: Tensor) -> tuple[Any, ...]:
    y, norm = ctx.saved_tensors
    dy, dweight, dbias = backward_of(y, "norm_act_backward")(
        grad, grad_pooled if ctx.pool else None, y, norm, ctx.training, ctx.act
    )
    return dy, dweight.to(ctx.types[0]), dbias.to(ctx.types[1]), None, None, None, None, None


norm_act.register_autograd(differentiate_norm_act, setup_context=keep_norm_act)

# As the blocks call them.
squeeze_map = shortened(squeeze, squeezed, keep_squeeze, differentiate_squeeze)
scale_map = shortened(scale, scaled, keep_scale, differentiate_scale)
norm_act_map = shortened(norm_act, normed, keep_norm_act, differentiate_norm_act)
