"""Parameters that no forward pass uses: they are named, so that DDP does not wait for their gradients.

DistributedDataParallel waits in every step for the gradient of every parameter. An attention names those that it never uses
(`Attention.unused_parameters`); `ignore_unused` passes the names to DDP, which ignores these parameters. All ranks have
equal values of them, because they start from one seed or one checkpoint, and no optimizer changes a parameter without a
gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attn.attention import Attention
from attn.models.meta import AllocatedNorms


def unused_parameters(model: nn.Module, objectives: bool = True) -> list[str]:
    """Names, in `model`, of the parameters that its attentions contain but never use.

    Args:
        model: any network with attentions in it.
        objectives: whether the training adds the attentions' own objectives; without them, their parameters are unused.
    """
    found = []
    for prefix, module in model.named_modules():
        if isinstance(module, Attention):
            names = module.unused_parameters() + ([] if objectives else module.objective_parameters())
            found += [f"{prefix}.{name}" if prefix else name for name in names]
    return found


def ignore_unused(model: nn.Module, loss: Callable[[nn.Module, torch.device], Tensor], objectives: bool = True) -> None:
    """Makes DDP ignore the unused parameters, after a check that exactly these get no gradient.

    Args:
        model: not wrapped yet. It is not run itself: a copy of it runs without data on the meta device.
        loss: computes the scalar training loss of a given copy of the model on a given device.
        objectives: as for `unused_parameters`.

    Raises:
        ValueError: a parameter gets no gradient and is not named, or is named and gets one.
    """
    named = unused_parameters(model, objectives)
    without = _without_gradient(model, loss)
    missing = [name for name in without if name not in named]
    if missing:
        raise ValueError(
            f"{_some(missing)}: no gradient reaches {'it' if len(missing) == 1 else 'them'}, and training on several ranks "
            "would wait for it: use or remove what is not used, or name it in `unused_parameters` of its Attention"
        )
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong = [name for name in named if name in trained and name not in without]
    if wrong:
        raise ValueError(f"{_some(wrong)}: named in `unused_parameters`, but used: ranks would drift apart; do not name it")
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, named)


def _without_gradient(model: nn.Module, loss: Callable[[nn.Module, torch.device], Tensor]) -> list[str]:
    meta = torch.device("meta")
    memo: dict[int, Tensor] = {id(b): b.to(meta) for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to(meta), p.requires_grad) for p in model.parameters()}
    try:
        return _run(copy.deepcopy(model, memo), loss, meta)
    except (RuntimeError, NotImplementedError, ValueError, AssertionError):
        # Something in the model needs values: run two images on the CPU instead.
        with torch.random.fork_rng(devices=[]):
            return _run(copy.deepcopy(model).cpu(), loss, torch.device("cpu"))


def _run(twin: nn.Module, loss: Callable[[nn.Module, torch.device], Tensor], device: torch.device) -> list[str]:
    twin.train()
    with torch.enable_grad(), AllocatedNorms():
        loss(twin, device).backward()
    return [name for name, parameter in twin.named_parameters() if parameter.requires_grad and parameter.grad is None]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
