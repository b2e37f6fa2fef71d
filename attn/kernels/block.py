"""The end of a residual block with the operators of `ops.py`, and with plain modules wherever they do not apply."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attn.attention import Gate, Recorded, attend
from attn.kernels.cpu import DTYPES
from attn.kernels.ops import affine, moments


def pooled_by(module: nn.Module | None, features: int, x: Tensor, devices: tuple[str, ...]) -> frozenset[int] | None:
    """Which features of a block a gate pools, if the block's end can run fused; else None.

    Args:
        module: the content of the slot.
        features: how many features the block offers it.
        x: the block's input.
        devices: as from `fused_devices`.
    """
    if x.device.type not in devices or not isinstance(module, Gate) or not pools_alone(module):
        return None
    return frozenset(range(features)[module.sources])


def runs_fused(
    module: nn.Module | None, norm: nn.Module, device: torch.device, dtype: torch.dtype, on: tuple[str, ...]
) -> bool:
    """Whether a block's end runs fused for maps of a given device and type; `on` are the devices from `fused_devices`."""
    return device.type in on and isinstance(module, Gate) and pools_alone(module) and known_norm(norm) and dtype in DTYPES


def pools_alone(module: Gate) -> bool:
    """Whether a gate can be computed from means and variances alone, and has no hooks."""
    return module.takes_moments() and not hooked(module)


def norm_act(y: Tensor, norm: Any, act: nn.Module, pool: bool) -> tuple[Tensor, Tensor | None]:
    """act(norm(y)) and, with `pool`, its mean over H W [N, C] in the type of y.

    Fused only with `pool`, because else nothing is gained.
    """
    if not pool:
        return act(norm(y)), None
    if not (fits(norm, y) and type(act) is nn.ReLU and not hooked(act)):
        out = act(norm(y))
        return out, out.mean((2, 3))
    through, centre, scale, _, _ = normalisation(norm, y)
    out, pooled = affine(y, through, centre, scale[None], wide(norm.bias)[None], None, True, True)
    return out, pooled.to(y.dtype)


def block_end(
    y: Tensor,
    norm: Any,
    module: nn.Module | None,
    features: tuple[Tensor, ...],
    means: dict[int, Tensor | None] | None,
    state: Any,
    drop_path: nn.Module | None,
    shortcut: Tensor,
    act: nn.Module,
) -> tuple[Tensor, Any]:
    """act(drop_path(attention(norm(y))) + shortcut), and the state for the next site.

    Args:
        y: the last convolution's output, [N, C, H, W].
        norm: its batch norm.
        module: the content of the block slot.
        features: the block's features before norm(y), its input first.
        means: for each feature that the gate pools, its mean over H W [N, C], or None if unknown; None for all: do not fuse.
        state: the state of the slot.
        drop_path: that of the branch, if any.
        shortcut: the shortcut's output, in the shape of norm(y).
        act: the last activation.
    """
    # Whoever records the call wants the unweighted map, which the operators do not store.
    if means is None or isinstance(state, Recorded) or not (isinstance(module, Gate) and fits(norm, y)):
        out, state = attend(module, (*features, norm(y)), state)
        if drop_path is not None:
            out = drop_path(out)
        return act(out + shortcut), state

    through, centre, scale, mean, variance = normalisation(norm, y)
    bias = wide(norm.bias)
    known = {i: module.squeeze(features[i]) if m is None else module.squeeze_moments(m, None) for i, m in means.items()}
    own = module.squeeze_moments(((mean - centre) * scale + bias).to(y.dtype), variance * scale.square())
    weights, state = module.weigh([*(known[i] for i in sorted(known)), own], state)

    weights = weights.to(scale.dtype)
    if drop_path is not None and drop_path.training:
        weights = weights * drop_path(y.new_ones(y.shape[0], 1)).to(scale.dtype)
    scale, shift = scale * weights, bias * weights
    if shortcut.dtype != y.dtype or shortcut.shape != y.shape:
        out, _ = affine(y, through, centre, scale, shift, None, False, False)
        return act(out + shortcut), state
    relu = type(act) is nn.ReLU and not hooked(act)
    out, _ = affine(y, through, centre, scale, shift, shortcut, relu, False)
    return out if relu else act(out), state


def normalisation(norm: Any, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Batch norm as (y - centre) * scale + bias, all [C]; in training it updates the running statistics.

    Returns:
        `through`, as from `moments`; centre; scale; mean and variance of y, [N, C].
    """
    mean, variance, mu, sigma2, through = moments(y)
    if norm.training:
        count = y.numel() // y.shape[1]
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            for running, batch in ((norm.running_mean, mu), (norm.running_var, sigma2 * (count / (count - 1)))):
                running.mul_(1 - norm.momentum).add_(batch.detach().to(running.dtype), alpha=norm.momentum)
        centre, spread = mu, sigma2
    else:
        centre, spread = wide(norm.running_mean), wide(norm.running_var)
    return through, centre, wide(norm.weight) * (spread + norm.eps).rsqrt(), mean, variance


def wide(vector: Tensor) -> Tensor:
    return vector.float()


def fits(norm: Any, y: Tensor) -> bool:
    """Whether the operators support a norm and a map.

    Not supported: a batch of a single value per channel in training (torch raises its error), float16 and float64.
    """
    return known_norm(norm) and y.dtype in DTYPES and y.numel() > (y.shape[1] if norm.training else 0)


def known_norm(norm: Any) -> bool:
    """Whether the operators support a norm.

    Not supported: SyncBN (its statistics are those of all ranks), no running statistics, a cumulative average (momentum
    None), no weight.
    """
    return (
        type(norm) is nn.BatchNorm2d
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.affine
        and not hooked(norm)
    )


def hooked(module: nn.Module) -> bool:
    """Whether the module has hooks, so that it must really be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
