"""Optimizers by name: SGD and AdamW of torch, and those of `timm.optim`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from torch import nn

from attn.config import groups
from attn.config.schema import OWN_OPTIMIZERS, Schedule
from attn.errors import reason

TORCH: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
ELSEWHERE = {"fused": "NVIDIA's apex", "bnb": "bitsandbytes"}  # by the beginning of the names that need another package
SET_BY_KEYS = {"self", "params", "lr", "weight_decay"}


def names() -> list[str]:
    """The optimizers that can be used here, sorted."""
    return sorted({*TORCH, *(name for name in map(str, list_optimizers()) if _refusal(name) is None)})


def _refusal(name: str) -> str | None:
    """Why an optimizer of timm cannot be used, or None."""
    if get_optimizer_info(name).second_order:
        return "it needs a backward pass through the gradients (create_graph), which the training loop does not make"
    if name.startswith("kron"):
        return "timm compiles it anew for each shape of a parameter, which takes many minutes for a convolutional network"
    needed = next((package for start, package in ELSEWHERE.items() if name.startswith(start)), None)
    return None if needed is None else f"it needs {needed}, which cannot be installed with this project"


def check(schedule: Schedule) -> None:
    """Checks `schedule.optimizer` and its options, by building one.

    Raises:
        ValueError: an unknown name or option, a value that the optimizer refuses, or an optimizer that cannot be used here; the
            message says which there are.
    """
    build(schedule, [{"params": [nn.Parameter(torch.zeros(2, 2))]}, {"params": [nn.Parameter(torch.zeros(2))]}])


def build(schedule: Schedule, parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of a schedule.

    SGD and AdamW read `momentum`, `nesterov` and `betas` of the schedule. All others have timm's defaults, which are those of
    their papers. `optimizer_options` come on top, by the names of the class's arguments.

    Args:
        schedule: for the name, the rates and the options.
        parameters: groups of parameters, each with its `weight_decay` where it is not the schedule's.

    Raises:
        ValueError: as `check`.
    """
    name = schedule.optimizer
    options = _checked(name, schedule.optimizer_options)
    given: dict[str, Any] = {"lr": schedule.lr, "weight_decay": schedule.weight_decay}
    if not {"fused", "foreach", "differentiable"} & set(options):
        given["fused"] = True
    try:
        if name == "adamw":
            beta1, beta2 = schedule.betas
            return torch.optim.AdamW(parameters, betas=(beta1, beta2), **given, **options)
        if name == "sgd":
            return torch.optim.SGD(parameters, momentum=schedule.momentum, nesterov=schedule.nesterov, **given, **options)
        return create_optimizer_v2(parameters, name, lr=schedule.lr, weight_decay=schedule.weight_decay, **options)
    except (TypeError, ValueError, IndexError, RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"schedule.optimizer={name} schedule.optimizer_options={dict(options)}: {reason(error)}") from None


def _checked(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if name not in TORCH:
        if name not in list_optimizers():
            raise ValueError(f"schedule.optimizer={name}: {groups.unknown('optimizer', name, names())}")
        refused = _refusal(name)
        if refused is not None:
            raise ValueError(f"schedule.optimizer={name} cannot be used: {refused}; choose from {', '.join(names())}")
    cls: Any = TORCH.get(name) or get_optimizer_class(name, bind_defaults=False)
    known = {parameter for parameter in inspect.signature(cls.__init__).parameters if parameter not in SET_BY_KEYS}
    known -= set(OWN_OPTIMIZERS.get(name, ()))
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"schedule.optimizer={name}: {groups.unknown('option', option, sorted(known))}")
        if not _plain(value):
            raise ValueError(
                f"schedule.optimizer_options.{option}={value}: must be a finite number, a name, or a list of them"
            )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
