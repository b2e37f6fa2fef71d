"""Gradient checkpointing: activations are recomputed in the backward pass instead of stored."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpointed(owner: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """Calls a function whose activations are recomputed in the backward pass.

    The second computation does not change the buffers of `owner`: `torch.utils.checkpoint` alone would update running
    statistics twice per step, and the trained network would give other results than without checkpointing.

    Args:
        owner: the module whose buffers the function may change.
        function: `owner` itself, or a part of its forward.
        inputs: the function's inputs, tensors in any nesting of tuples.
    """
    # When compiled, both passes are functions of one graph, which writes a buffer once; `context_fn` is not allowed there.
    if torch.compiler.is_compiling():
        return checkpoint(function, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), OnCopiedBuffers(owner)

    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


class OnCopiedBuffers(AbstractContextManager[None]):
    """Makes a module use copies of its buffers, which are discarded at the end; can be entered again."""

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
