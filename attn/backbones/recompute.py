"""Gradient checkpointing: activations computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpointed(owner: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """Calls a function whose activations are computed again in the backward pass.

    The second computation leaves the buffers of `owner` as they are: `torch.utils.checkpoint` alone would move running
    statistics twice a step, and the network would evaluate to something else than without checkpointing.

    Args:
        owner: the module whose buffers the function may change.
        function: `owner` itself, or a part of its forward.
        inputs: of the function, tensors in any nesting of tuples.
    """
    # Compiled, both passes are functions of one graph, in which a buffer is written once; own contexts are refused there.
    if torch.compiler.is_compiling():
        return checkpoint(function, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), OnCopiedBuffers(owner)

    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


class OnCopiedBuffers(AbstractContextManager[None]):
    """Lets a module work on copies of its buffers, which are dropped at the end; can be entered again."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        self.kept = [
            (owner, name, buffer) for owner in self.module.modules() for name, buffer in owner.named_buffers(recurse=False)
        ]
        for owner, name, buffer in self.kept:
            setattr(owner, name, buffer.clone())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for owner, name, buffer in self.kept:
            setattr(owner, name, buffer)
