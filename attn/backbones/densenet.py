"""timm's DenseNet. Huang et al.: Densely Connected Convolutional Networks, CVPR 2017."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import densenet as timm_densenet
from torch import Tensor, nn

from attn.attention import Site, State, attend
from attn.backbones.family import Family, Slot, Socket, blocks_of, stage_sockets
from attn.backbones.network import Network, Step, stateless
from attn.backbones.recompute import checkpointed
from attn.backbones.trace import run_block


class DenseLayer(timm_densenet.DenseLayer):
    """timm's layer with the slots `conv2` (conv) and `se` (block, on the new features)."""

    norm1: nn.Module
    conv1: nn.Conv2d
    norm2: nn.Module
    conv2: nn.Module

    def forward(self, inputs: tuple[list[Tensor], State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps (all earlier features [N, C_i, H, W], state) to (the new features [N, growth, H, W], state)."""
        previous, (conv_state, block_state) = inputs
        attention = getattr(self, "se", None)

        if self.grad_checkpointing and any(x.requires_grad for x in previous):
            f1 = checkpointed(self, lambda *xs: self.bottleneck_fn(list(xs)), *previous)
            x = previous[0] if attention is None else torch.cat(previous, 1)
        else:
            x = torch.cat(previous, 1)
            f1 = self.conv1(self.norm1(x))
        f2, conv_state = attend(self.conv2, (self.norm2(f1),), conv_state)

        y, block_state = attend(attention, (x, f1, f2), block_state)
        if self.drop_rate > 0:
            y = F.dropout(y, p=self.drop_rate, training=self.training)
        return y, (conv_state, block_state)


class DenseBlock(timm_densenet.DenseBlock):
    """timm's block; the last one ends with the slot `attn` (stage)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, C, H, W], state) to ([N, C + layers * growth, H, W], state)."""
        x, state = inputs
        features = [x]
        for layer in layers(self):
            y, state = run_block(layer, (list(features), state))
            features.append(y)
        x = torch.cat(features, 1)
        return run_block(self["attn"], (x, state)) if "attn" in self else (x, state)


class DenseTransition(timm_densenet.DenseTransition):
    """timm's transition; ends with the slot `attn` (stage)."""

    norm: nn.Module
    conv: nn.Conv2d
    pool: nn.Module

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / 2, W / 2], state)."""
        x, state = inputs
        x = self.pool(self.conv(self.norm(x)))
        attention = getattr(self, "attn", None)
        return (x, state) if attention is None else run_block(attention, (x, state))


class DenseNet(Network, timm_densenet.DenseNet):
    """timm's network; dense blocks and transitions pass (map, state)."""

    def steps(self) -> list[Step]:
        modules: Any = self.features
        return [m if isinstance(m, (DenseBlock, DenseTransition)) else stateless(m) for m in modules]

    def taps(self) -> list[int]:
        return self.feature_ends


def layers(block: Any) -> list[Any]:
    return [layer for name, layer in block.items() if name != "attn"]


def sockets(model: Any, slot: Slot, where: str) -> Iterator[Socket]:
    modules, infos = list(model.features), model.feature_info[1:]
    blocks = [module for module in modules if isinstance(module, DenseBlock)]
    if slot == "stage":
        transitions = [module for module in modules if isinstance(module, DenseTransition)]
        # A transition's output already has the size of the next stage.
        ends = [
            {"num_chs": transition.conv.out_channels, "reduction": following["reduction"]}
            for transition, following in zip(transitions, infos[1:], strict=True)
        ]
        yield from stage_sockets([*transitions, blocks[-1]], [*map(layers, blocks)], [*ends, infos[-1]])
        return
    for layer, position in blocks_of(map(layers, blocks), infos):
        middle, new = layer.conv2.in_channels, layer.conv2.out_channels
        if slot == "block":
            yield Socket(Site(widths=(layer.conv1.in_channels, middle, new), **position), layer, "se")
        else:
            yield Socket(Site(widths=(middle, new), conv=layer.conv2, **position), layer, "conv2")


FAMILY = Family(
    network=timm_densenet.DenseNet,
    classes={
        timm_densenet.DenseLayer: DenseLayer,
        timm_densenet.DenseBlock: DenseBlock,
        timm_densenet.DenseTransition: DenseTransition,
        timm_densenet.DenseNet: DenseNet,
    },
    sockets=sockets,
)
