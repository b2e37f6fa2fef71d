"""The operators of `ops.py` in plain PyTorch: their definition. Sums and vectors are float32; float64 for float64 maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attn.kernels.layout import memory_format, wide

ACTS = ("none", "relu", "relu6", "hard_swish", "silu")


def over_map(vector: Tensor) -> Tensor:
    """Reshapes [N or 1, C] or [C] so that it broadcasts over [N, C, H, W]."""
    return vector[..., None, None]


def act_value(z: Tensor, act: str) -> Tensor:
    functions = {"relu": F.relu, "relu6": F.relu6, "hard_swish": F.hardswish, "silu": F.silu}
    return functions[act](z) if act != "none" else z


def act_slope(z: Tensor, act: str) -> Tensor:
    """The derivative of an activation."""
    if act == "relu":
        return (~(z <= 0)).to(z.dtype)
    if act == "relu6":
        return (~((z <= 0) | (z >= 6))).to(z.dtype)
    if act == "hard_swish":
        return torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, z / 3 + 0.5))
    if act == "silu":
        s = z.sigmoid()
        return s * (1 + z * (1 - s))
    return torch.ones_like(z)


def batch_norm(
    mean: Tensor,
    variance: Tensor,
    pixels: int,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
) -> Tensor:
    """`norm` [5, C]: centre, scale, bias, 1 / standard deviation, and the batch's unbiased variance, from moments [N, C] of y."""
    count = mean.shape[0] * pixels
    if running_mean is None or running_var is None:
        centre = mean.mean(0)
        spread = variance.mean(0) + (mean - centre).square().mean(0)
    else:
        centre, spread = running_mean.to(mean.dtype), running_var.to(mean.dtype)
    inverse = (spread + eps).rsqrt()
    return torch.stack(
        [centre, weight.to(mean.dtype) * inverse, bias.to(mean.dtype), inverse, spread * (count / max(1, count - 1))]
    )


def normed(y: Tensor, norm: Tensor) -> Tensor:
    return (y.to(norm.dtype) - over_map(norm[0])) * over_map(norm[1]) + over_map(norm[2])


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(y.to(wide(y)), (2, 3), correction=0)
    return mean, variance


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
    mean, variance = moments(y)
    norm = batch_norm(mean, variance, y.shape[2] * y.shape[3], weight, bias, running_mean, running_var, eps)
    off = y.to(norm.dtype) - over_map(norm[0])
    raw = torch.stack([mean - norm[0], variance, *([] if basis is None else [(off * basis).sum((2, 3))])])
    activated = act_value(normed(y, norm), act)
    if act != "none":
        raw, variance = raw.new_empty(0), raw.new_empty(0)
    else:
        variance = variance * norm[1].square()
    pooled = activated.mean((2, 3)) if basis is None else (activated * basis).sum((2, 3))
    return pooled, variance, norm, raw


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
    pixels = y.shape[2] * y.shape[3]
    off = y.to(norm.dtype) - over_map(norm[0])
    grad = masked.to(norm.dtype) * over_map(link[0])
    grad = grad + (over_map(grad_mean / pixels) if basis is None else over_map(grad_mean) * basis)
    if act == "none":
        grad = grad + over_map(2 * grad_variance * norm[1] / pixels) * (off - over_map(raw[0]))
    return through_norm(grad * act_slope(normed(y, norm), act), off, norm, training, y)


def through_norm(dz: Tensor, off: Tensor, norm: Tensor, training: bool, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm's gradients, from that of its output: with respect to y, the weight and the bias."""
    dbias, dweight = dz.sum((0, 2, 3)), (dz * off).sum((0, 2, 3)) * norm[3]
    if training:
        count = y.numel() // y.shape[1]
        dz = dz - over_map(dbias / count) - off * over_map(norm[3] * dweight / count)
    return (dz * over_map(norm[1])).to(y.dtype, memory_format=memory_format(y)), dweight, dbias


def scale(y: Tensor, norm: Tensor, weights: Tensor, shortcut: Tensor | None, act: str, relu: bool) -> Tensor:
    out = act_value(normed(y, norm), act) * over_map(weights)
    if shortcut is not None:
        out = out + shortcut
    if relu:
        out = out.relu()
    return out.to(y.dtype, memory_format=memory_format(y))


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
    masked = grad.to(norm.dtype)
    if relu:
        masked = masked.masked_fill(out <= 0, 0.0)
    off, z = y.to(norm.dtype) - over_map(norm[0]), normed(y, norm)
    slope = act_slope(z, act)
    pooling = slope / (y.shape[2] * y.shape[3]) if basis is None else slope * basis
    link = [masked * slope, masked * slope * off, pooling, pooling * off]
    sums = torch.stack([weights, *(part.sum((2, 3)) for part in link)])
    dweights = (masked * act_value(z, act)).sum((2, 3))
    return masked.to(y.dtype, memory_format=memory_format(y)) if relu else y.new_empty(0), sums, dweights


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
    mean, variance = moments(y)
    norm = batch_norm(mean, variance, y.shape[2] * y.shape[3], weight, bias, running_mean, running_var, eps)
    out = act_value(normed(y, norm), act)
    pooled = out.mean((2, 3)) if pool else out.new_empty(0)
    return out.to(y.dtype, memory_format=memory_format(y)), pooled, norm


def norm_act_backward(
    grad: Tensor, grad_pooled: Tensor | None, y: Tensor, norm: Tensor, training: bool, act: str
) -> tuple[Tensor, Tensor, Tensor]:
    grad = grad.to(norm.dtype)
    if grad_pooled is not None:
        grad = grad + over_map(grad_pooled / (y.shape[2] * y.shape[3]))
    off = y.to(norm.dtype) - over_map(norm[0])
    return through_norm(grad * act_slope(normed(y, norm), act), off, norm, training, y)
