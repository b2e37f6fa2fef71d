"""One forward pass of a network in evaluation mode, block by block, with what its attentions computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attn.attention import Attention, Reading, StageAttention
from attn.backbones.native import native_reading
from attn.backbones.network import Network
from attn.backbones.trace import Passage
from attn.errors import UserError


@dataclass(frozen=True)
class Block:
    """A block of a network in a forward pass.

    Attributes:
        label: stage and number in it, both from 1, as in `3.2`; `3.end` is an attention after the last block of stage 3.
        stage: number of the stage, from 1.
        module: name of the module in the network.
        passage: what it got and gave.
    """

    label: str
    stage: int
    module: str
    passage: Passage

    def readings(self) -> list[Reading]:
        """What the attentions in it computed, those in place of a convolution first; also the backbone's own squeeze-and-excitation."""
        found = []
        for call in self.passage.calls:
            if isinstance(call.module, Attention):
                found.append(call.module.reading(call.feats, call.state))
            elif call.module is not None:
                found.append(native_reading(call.module, call.feats[-1]))
        return [reading for reading in found if reading is not None]


@dataclass(frozen=True)
class Pass:
    """A forward pass.

    Attributes:
        logits: [N, K].
        pooled: the features that the classifier gets, [N, D].
        blocks: in the order of the network.
        stages: outputs of the stages, as in `attn.backbones.trace.Trace`.
    """

    logits: Tensor
    pooled: Tensor
    blocks: list[Block]
    stages: tuple[Tensor, ...]


def forward(model: nn.Module, images: Tensor) -> Pass:
    """Runs a network in evaluation mode on images [N, 3, H, W]; the network is the same afterwards, its mode included.

    Raises:
        UserError: the network is of a family that has no blocks here.
    """
    network = traceable(model)
    with evaluating(model):
        trace = network.trace(images)
        pooled = network.forward_head(trace.output, pre_logits=True)
        logits = network.forward_head(trace.output)
    return Pass(logits, pooled, blocks_of(model, trace.passages), trace.stages)


def traceable(model: nn.Module) -> Any:
    """The network itself.

    Raises:
        UserError: it is of a family that has no blocks here.
    """
    if not isinstance(model, Network):
        raise UserError(f"{type(model).__name__} is a network whose blocks attn does not know: it has no sites of attention")
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def blocks_of(model: nn.Module, passages: tuple[Passage, ...]) -> list[Block]:
    """The passages with their positions. A stage is what holds the blocks: `layer1`, `blocks.2`, `stages.0.blocks` ..."""
    names = {module: name for name, module in model.named_modules()}
    stages: list[str] = []
    blocks, number = [], 0
    for passage in passages:
        name = names[passage.block]
        if isinstance(passage.block, StageAttention):
            blocks.append(Block(f"{len(stages)}.end", len(stages), name, passage))
            continue
        holder = name.rpartition(".")[0]
        if holder not in stages:
            stages.append(holder)
            number = 0
        number += 1
        blocks.append(Block(f"{len(stages)}.{number}", len(stages), name, passage))
    return blocks


def labels_of(model: nn.Module, image_size: int) -> list[str]:
    """The labels of all blocks that a network has, without its attentions at the ends of stages."""
    device = next(model.parameters()).device
    with torch.no_grad():
        found = forward(model, torch.zeros(1, 3, image_size, image_size, device=device)).blocks
    return [block.label for block in found if not block.label.endswith(".end")]


def as_map(x: Tensor, model: nn.Module, like: tuple[int, int]) -> Tensor:
    """Whatever a family passes between blocks as a map [N, C, H, W]; class tokens are left out.

    Args:
        x: [N, C, H, W], [N, tokens, C], or in a Swin Transformer [N, H, W, C].
        model: the network.
        like: height and width of the images, whose proportions tokens have.
    """
    if x.ndim == 4:
        return traceable(model).feature(x)
    prefix = getattr(model, "num_prefix_tokens", 0)
    tokens = x[:, prefix:]
    height = round((tokens.shape[1] * like[0] / like[1]) ** 0.5)
    if height < 1 or tokens.shape[1] % height:
        raise UserError(
            f"{tokens.shape[1]} tokens are no map in the proportions of an image of {like[0]} x {like[1]} pixels"
        )
    return tokens.transpose(1, 2).unflatten(2, (height, -1))
