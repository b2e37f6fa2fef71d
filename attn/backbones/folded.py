"""The blocks of a network whose norms are folded (`attn.fuse`): the gate's weights and the shortcut in one pass over the map, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn.attention import Attention, Gate, State, attend, global_average
from attn.backbones import resnet
from attn.kernels.block import hooked


class Folded(nn.Module):
    """In the place of a norm that is part of the layer before it, or of a dropout: only the activation that it brought
    along.

    `train()` raises an error: without these layers, a network would train, but as another one.

    Args:
        act: what follows; None for nothing.
    """

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.act = act
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return x if self.act is None else self.act(x)

    def train(self, mode: bool = True) -> Folded:
        if mode:
            raise RuntimeError(
                "a model of attn.fuse cannot be trained: its norms are folded into other layers and its dropout is removed; "
                "train the model that it was made of"
            )
        return super().train(False)


class BasicBlock(resnet.BasicBlock):
    """As `resnet.BasicBlock`, with a gate or without attention, and without norms."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        f1, conv_state = attend(self.conv1, (x,), conv_state)
        f1 = self.aa(self.act1(self.bn1(f1)))  # type: ignore[misc]
        y = self.conv2(f1)
        shortcut = x if self.downsample is None else self.downsample(x)
        y, block_state = gated(self.se, (x, f1), self.conv2, y, block_state, shortcut)
        return self.act2(y), (conv_state, block_state)


class Bottleneck(resnet.Bottleneck):
    """As `resnet.Bottleneck`, with a gate or without attention, and without norms."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        f1 = self.act1(self.bn1(self.conv1(x)))
        f2, conv_state = attend(self.conv2, (f1,), conv_state)
        f2 = self.aa(self.act2(self.bn2(f2)))  # type: ignore[misc]
        y = self.conv3(f2)
        shortcut = x if self.downsample is None else self.downsample(x)
        y, block_state = gated(self.se, (x, f1, f2), self.conv3, y, block_state, shortcut)
        return self.act3(y), (conv_state, block_state)


CLASSES: dict[type[nn.Module], type[nn.Module]] = {resnet.BasicBlock: BasicBlock, resnet.Bottleneck: Bottleneck}


def adopt_blocks(model: nn.Module) -> None:
    """Changes the class of every block to its form here, if its last norm is folded and its gate allows it. In place."""
    for block in model.modules():
        if type(block) not in CLASSES:
            continue
        own: Any = block
        conv, norm = (own.conv3, own.bn3) if isinstance(block, resnet.Bottleneck) else (own.conv2, own.bn2)
        nothing = (Folded, nn.Identity, type(None))
        plain = isinstance(norm, Folded) and isinstance(own.drop_path, nothing) and isinstance(own.drop_block, nothing)
        if plain and not hooked(conv) and (own.se is None or by_mean(own.se) or by_map(own.se)):
            block.__class__ = CLASSES[type(block)]


def by_mean(module: nn.Module | None) -> bool:
    """Whether an attention is a gate that needs nothing but the means of the maps."""
    return (
        isinstance(module, Gate)
        and module.takes_moments()
        and all(type(gate).squeeze is Gate.squeeze for gate in module.modules() if isinstance(gate, Gate))
    )


def by_map(module: nn.Module | None) -> bool:
    """Whether an attention multiplies its last map by the weights that `excite` and `squeeze` give for it, and does no more."""
    steps = ("refine", "scale", "weigh")
    return (
        isinstance(module, Gate)
        and type(module).forward is Attention.forward
        and all(getattr(type(module), name) is getattr(Gate, name) for name in steps)
    )


def gated(
    gate: Any, features: Sequence[Tensor], conv: nn.Conv2d, y: Tensor, state: Any, shortcut: Tensor
) -> tuple[Tensor, Any]:
    """shortcut + w y, and the state for the next site.

    Args:
        gate: of a kind that `by_mean` or `by_map` takes; None for w = 1.
        features: the block's features before y, its input first.
        conv: computes y from the last of them.
        y: [N, C, H, W]; overwritten where no gradient is asked for.
        state: of the slot.
        shortcut: as y.
    """
    # A large map in new memory costs ten times as much as one in memory that is in use. Compilers decide on this themselves.
    in_place = not torch.compiler.is_compiling() and not (
        torch.is_grad_enabled() and (y.requires_grad or shortcut.requires_grad)
    )
    if gate is None:
        return (y.add_(shortcut) if in_place else y + shortcut), state
    if by_mean(gate):
        means = [global_average(features[i]) for i in range(len(features) + 1)[gate.sources] if i < len(features)]
        if conv.kernel_size == (1, 1) and type(conv) is nn.Conv2d and conv.groups == 1:
            # The mean of a 1x1 convolution is the 1x1 convolution of the mean: the wide map is not read.
            before = means[-1] if means else global_average(features[-1])
            means.append(F.linear(before, conv.weight.flatten(1), conv.bias))
        else:
            means.append(global_average(y))
        weights, state = gate.weigh([gate.squeeze_moments(mean, None) for mean in means], state)
    else:
        weights = gate.excite(gate.squeeze(y))
    weights = weights[:, :, None, None].to(y.dtype)
    return (torch.addcmul(shortcut, y, weights, out=y) if in_place else shortcut + y * weights), state
