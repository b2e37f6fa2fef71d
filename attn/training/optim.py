"""The optimizer, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from attn.config.schema import Schedule
from attn.training import optimizers

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def total_epochs(schedule: Schedule) -> float:
    """Epochs of the whole run, a warm-up that comes before the schedule included."""
    return schedule.epochs + (schedule.warmup_epochs if schedule.warmup_mode == "before" else 0)


def total_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run; whole epochs."""
    return math.ceil(total_epochs(schedule)) * steps_per_epoch


def learning_rate(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, from 0.

    During warm-up it grows linearly: lr * (s + 1) / W over W steps, or from `warmup_lr` at the first step. Then it follows
    the curve: cosine from lr to min_lr, or lr * gamma^k after the k-th milestone.
    """
    if schedule.update == "epoch":
        step = step // steps_per_epoch * steps_per_epoch
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        if schedule.warmup_lr is None:
            per_epoch = steps_per_epoch if schedule.update == "epoch" else 1
            return schedule.lr * min((step + per_epoch) / warmup, 1.0)  # the last epoch may reach past the warm-up's end
        return schedule.warmup_lr + (schedule.lr - schedule.warmup_lr) * step / warmup
    before = 0 if schedule.warmup_mode == "overlap" else warmup
    if schedule.curve == "cosine":
        length = schedule.epochs * steps_per_epoch - (warmup if schedule.warmup_mode == "inside" else 0)
        progress = min((step - before) / max(length, 1), 1.0)
        return schedule.min_lr + (schedule.lr - schedule.min_lr) * (1 + math.cos(math.pi * progress)) / 2
    if schedule.curve == "step":
        epoch = (step - (warmup if schedule.warmup_mode == "before" else 0)) / steps_per_epoch
        return schedule.lr * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    return schedule.lr


def build_optimizer(schedule: Schedule, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over two groups: with and without weight decay, by `schedule.no_decay`.

    SGD and AdamW are torch's fused forms, which are at least as fast as the others on a CPU as on a GPU and can leave an update
    out by a value that is on the device; see `update_if`.

    Raises:
        ValueError: as `attn.training.optimizers.check`.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter, exempt in classify(model, set(schedule.no_decay)):
        (free if exempt else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": schedule.weight_decay}]
    if free:
        groups.append({"params": free, "weight_decay": 0.0})
    optimizer = optimizers.build(schedule, groups)
    _with_momentum(optimizer)
    return optimizer


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer is torch's fused form, which takes `update_if`'s decision on the device."""
    return bool(optimizer.defaults.get("fused"))


def _with_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Lets momentum begin at zero, which is what the first step makes of it; torch would not initialise it if that step is left out."""
    if not (isinstance(optimizer, torch.optim.SGD) and is_fused(optimizer)):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def update_if(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Updates the parameters if a bool on their device is true; else neither they nor the optimizer's state change.

    Nothing waits for the device, unless the optimizer has no fused form.
    """
    if not is_fused(optimizer):
        if bool(finite):
            optimizer.step()
        return
    skip: Any = optimizer
    skip.grad_scale, skip.found_inf = None, (~finite).float()
    try:
        optimizer.step()
    finally:
        del skip.grad_scale, skip.found_inf


def load_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Loads the state of the same optimizer, also of one that was not fused or had parameters in another layout.

    The settings of its groups stay: the config decides, and with force=true it may differ from the checkpoint's. The fused form
    takes state and parameters as they lie in memory, so that each state gets its parameter's layout.
    """
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    groups = [{**old, **own} for old, own in zip(saved["param_groups"], settings, strict=True)]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    _with_momentum(optimizer)


def classify(model: nn.Module, no_decay: set[str]) -> Iterator[tuple[nn.Parameter, bool]]:
    """Every trainable parameter once, and whether it is exempt from weight decay.

    Kinds: `norm` (of normalisation layers), `batchnorm` (of BatchNorm alone), `bias` (named bias), `vector` (at most one
    dimension), `depthwise` (of convolutions with as many groups as channels).
    """
    seen: set[int] = set()
    for module in model.modules():
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            kinds = {
                "norm": isinstance(module, NORMS),
                "batchnorm": isinstance(module, _NormBase),
                "bias": name.endswith("bias"),
                "vector": parameter.ndim <= 1,
                "depthwise": depthwise and name == "weight",
            }
            yield parameter, any(kinds[kind] for kind in no_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of all groups of parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
