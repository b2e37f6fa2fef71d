"""Norms, activations and gates of blocks with the operators of `ops.py`, and with plain modules wherever they do not apply."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from attn.attention import Gate, Recorded, attend
from attn.kernels import ops

NAMES = {
    nn.Identity: "none",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hard_swish",
    nn.SiLU: "silu",
}


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
    """Whether a block's gate runs fused for maps of a given device and type; `on` are the devices from `fused_devices`."""
    typed = device.type in on and ops.has_form(device, dtype)
    return typed and isinstance(module, Gate) and pools_alone(module) and known_norm(norm)


def gates_activated(
    module: nn.Module | None, norm: Any, device: torch.device, dtype: torch.dtype, on: tuple[str, ...]
) -> bool:
    """As `runs_fused`, for a gate after the activation that a norm ends with."""
    if not (runs_fused(module, norm, device, dtype, on) and isinstance(module, Gate)):
        return False
    name = act_name(getattr(norm, "act", None))
    return name is not None and (name == "none" or module.takes_means())


def pools_alone(module: Gate) -> bool:
    """Whether a gate can be computed from vectors alone, and has no hooks."""
    return module.takes_moments() and not hooked(module)


def norm_act(
    y: Tensor, norm: Any, act: nn.Module, pooled_by_gate: frozenset[int] | None, index: int
) -> tuple[Tensor, Tensor | None]:
    """act(norm(y)), feature number `index` of its block, and its mean over H W [N, C] in the type of y if the gate pools it.

    Args:
        pooled_by_gate: as from `pooled_by`; None: the block does not run fused.
    """
    pool = pooled_by_gate is not None and index in pooled_by_gate
    name = act_name(act)
    # On a CPU torch's own norm and activation are quicker where no mean is needed.
    alone = pooled_by_gate is None or (y.device.type == "cpu" and not pool)
    if alone or name is None or not fits(norm, y):
        out = act(norm(y))
        return out, out.mean((2, 3)) if pool else None
    out, pooled, vectors = ops.norm_act_map(y, norm.weight, norm.bias, *statistics(norm), norm.eps, name, pool)
    update(norm, vectors)
    return out, pooled.to(y.dtype) if pool else None


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

    known = []
    for i in sorted(means):
        mean = means[i]
        known.append(module.squeeze(features[i]) if mean is None else module.squeeze_moments(mean, None))

    squeezed = Squeezed(y, norm, module, "none")
    weights, state = module.weigh([*known, squeezed.descriptor], state)
    if drop_path is not None and drop_path.training:
        weights = weights.float() * drop_path(y.new_ones(y.shape[0], 1)).float()
    if shortcut.dtype != y.dtype or shortcut.shape != y.shape:
        return act(squeezed.scaled(weights, None, False) + shortcut), state
    relu = type(act) is nn.ReLU and not hooked(act)
    out = squeezed.scaled(weights, shortcut, relu)
    return out if relu else act(out), state


def gate_activated(
    y: Tensor, norm: Any, module: nn.Module | None, features: tuple[Tensor, ...], state: Any, devices: tuple[str, ...]
) -> tuple[Tensor, Any]:
    """attention(norm(y)), where the norm ends with its activation (timm's `BatchNormAct2d`), and the state for the next site.

    Args:
        y: the convolution's output, [N, C, H, W].
        norm: the norm after it.
        module: the content of the block slot.
        features: the block's features before norm(y), its input first.
        state: the state of the slot.
        devices: as from `fused_devices`.
    """
    fused = gates_activated(module, norm, y.device, y.dtype, devices) and not isinstance(state, Recorded)
    if not (fused and isinstance(module, Gate) and fits(norm, y)):
        return attend(module, (*features, norm(y)), state)
    squeezed = Squeezed(y, norm, module, act_name(getattr(norm, "act", None)) or "none")
    earlier = [module.squeeze(f) for f in (*features, y)[module.sources][:-1]]
    weights, state = module.weigh([*earlier, squeezed.descriptor], state)
    return squeezed.scaled(weights, None, False), state


class Squeezed:
    """A map between the two ends of a gate: its descriptor [N, C], and what is needed to scale it."""

    def __init__(self, y: Tensor, norm: Any, gate: Gate, act: str) -> None:
        """Args: y, the norm's input; the norm, which updates its running statistics in training; the gate; act, by `ops.ACTS`."""
        self.y, self.act, self.basis = y, act, gate.basis(y.shape[2], y.shape[3])
        mean, variance, self.vectors, _, self.through, self.link = ops.squeeze_map(
            y, norm.weight, norm.bias, *statistics(norm), self.basis, norm.eps, act
        )
        update(norm, self.vectors)
        self.descriptor = gate.squeeze_moments(mean.to(y.dtype), variance if act == "none" else None)

    def scaled(self, weights: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
        """act(norm(y)) times weights [N, C], plus the shortcut, with ReLU or without. To be called once."""
        ends = (self.through, self.link, self.vectors)
        return ops.scale_map(self.y, *ends, weights, shortcut, self.basis, self.act, relu)


def statistics(norm: Any) -> tuple[Tensor | None, Tensor | None]:
    """The running mean and variance where a norm uses them; else None."""
    return (None, None) if norm.training else (norm.running_mean, norm.running_var)


def update(norm: Any, vectors: Tensor) -> None:
    """Moves the running statistics in training; `vectors` [5, C] as from the operators."""
    if not norm.training:
        return
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        mean, variance = (vectors[i].detach().to(norm.running_mean.dtype) for i in (0, 4))
        torch._foreach_lerp_([norm.running_mean, norm.running_var], [mean, variance], norm.momentum)


def fits(norm: Any, y: Tensor) -> bool:
    """Whether the operators support a norm and a map.

    Not supported: a batch of a single value per channel in training (torch raises its error), maps without pixels, float64, and
    float16 on the CPU.
    """
    return known_norm(norm) and ops.has_form(y.device, y.dtype) and y.numel() > (y.shape[1] if norm.training else 0)


def known_norm(norm: Any) -> bool:
    """Whether the operators support a norm.

    Not supported: SyncBN (its statistics are those of all ranks), no running statistics, a cumulative average (momentum None), no
    weight, and dropping between norm and activation.
    """
    return (
        (type(norm) is nn.BatchNorm2d or (type(norm) is BatchNormAct2d and isinstance(norm.drop, nn.Identity)))
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.affine
        and not hooked(norm)
    )


def act_name(act: nn.Module | None) -> str | None:
    """The name of an activation in `ops.ACTS`; None for one that is not there, or has hooks."""
    if act is None:
        return "none"
    return None if hooked(act) else NAMES.get(type(act))


def hooked(module: nn.Module) -> bool:
    """Whether the module has hooks, so that it must really be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
