"""What the blocks of a network get and give in a forward pass: recorded in the state that passes through them, only on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from attn.attention import Call, Recorded, StageAttention, State, attend
from attn.backbones.recompute import checkpointed


@dataclass(frozen=True)
class Passage:
    """One block in a forward pass.

    Attributes:
        block: the module; a `StageAttention` at the end of a stage.
        input: its input, in the layout that the family has inside a stage; a list of maps in a DenseNet.
        output: what it returned.
        calls: the calls of `attend` in it, those of the conv slot first.
    """

    block: nn.Module
    input: Any
    output: Tensor
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Traced:
    """The state between two blocks, together with the blocks so far."""

    state: State
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True)
class Trace:
    """A forward pass up to pooling and classifier.

    Attributes:
        output: as `forward_features` returns it.
        passages: all blocks, in order.
        stages: for each entry of `feature_info`, the output of the step that computes it, in the layout of the steps.
    """

    output: Tensor
    passages: tuple[Passage, ...]
    stages: tuple[Tensor, ...]


def run_block(
    block: nn.Module,
    inputs: tuple[Any, Any],
    *others: Any,
    checkpointing: bool = False,
    call: Callable[..., tuple[Any, Any]] | None = None,
) -> tuple[Any, Any]:
    """Runs a block on (map, state); a `Traced` state comes back with its passage added.

    Args:
        block: maps (map, state) to (map, state).
        inputs: map and state.
        others: further arguments of the block.
        checkpointing: recompute its activations in the backward pass, unless it is traced.
        call: what to call instead of the block itself.
    """
    run = block if call is None else call
    x, state = inputs
    if not isinstance(state, Traced):
        return checkpointed(block, run, inputs, *others) if checkpointing else run(inputs, *others)
    if isinstance(block, StageAttention):  # the state of the blocks passes it by
        y, own = attend(block.attention, (x,), Recorded(None))
        return y, replace(state, passages=(*state.passages, Passage(block, x, y, own.calls)))
    conv_state, block_state = state.state
    y, (conv, end) = run((x, (Recorded(conv_state), Recorded(block_state))), *others)
    return y, Traced((conv.state, end.state), (*state.passages, Passage(block, x, y, conv.calls + end.calls)))
