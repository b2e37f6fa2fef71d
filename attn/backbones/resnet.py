"""timm's ResNet family: ResNet (b, c, d, s, t), ResNeXt, Wide-ResNet, SE- and ECA-ResNet."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from timm.models import resnet as timm_resnet
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from attn.attention import Site, State, attend
from attn.backbones.family import Family, Slot, Socket, blocks_of, stage_sockets
from attn.backbones.network import Network, Step, run_stage, stateless
from attn.kernels.block import block_end, norm_act, pooled_by, runs_fused


class BasicBlock(timm_resnet.BasicBlock):
    """timm's block with the slots `conv1` (conv: the one of the two that has a norm and an activation) and `se` (block).

    `fused_on`: types of the devices on which the end of the block runs fused, see `attn.kernels`.
    """

    fused_on: tuple[str, ...] = ()

    def runs_fused(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the end of the block runs fused for maps of a given device and type."""
        return runs_fused(self.se, self.bn2, device, dtype, self.fused_on)

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        pooled = pooled_by(self.se, 3, x, self.fused_on)

        f1, conv_state = attend(self.conv1, (x,), conv_state)
        f1, mean1 = inner(self, f1, self.bn1, self.act1, pooled, 1)
        y = self.conv2(f1)

        shortcut = x if self.downsample is None else self.downsample(x)
        y, block_state = block_end(
            y, self.bn2, self.se, (x, f1), known(pooled, mean1), block_state, self.drop_path, shortcut, self.act2
        )
        return y, (conv_state, block_state)


class Bottleneck(timm_resnet.Bottleneck):
    """timm's block with the slots `conv2` (conv) and `se` (block).

    `fused_on`: types of the devices on which the end of the block runs fused, see `attn.kernels`.
    """

    fused_on: tuple[str, ...] = ()

    def runs_fused(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the end of the block runs fused for maps of a given device and type."""
        return runs_fused(self.se, self.bn3, device, dtype, self.fused_on)

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        pooled = pooled_by(self.se, 4, x, self.fused_on)

        f1, mean1 = norm_act(self.conv1(x), self.bn1, self.act1, pooled, 1)
        f2, conv_state = attend(self.conv2, (f1,), conv_state)
        f2, mean2 = inner(self, f2, self.bn2, self.act2, pooled, 2)
        y = self.conv3(f2)

        shortcut = x if self.downsample is None else self.downsample(x)
        y, block_state = block_end(
            y, self.bn3, self.se, (x, f1, f2), known(pooled, mean1, mean2), block_state, self.drop_path, shortcut, self.act3
        )
        return y, (conv_state, block_state)


def inner(
    block: Any, y: Tensor, norm: nn.Module, act: nn.Module, pooled: frozenset[int] | None, index: int
) -> tuple[Tensor, Tensor | None]:
    """Norm, drop block, activation and anti-aliasing after the block's spatial convolution; and the mean, if it is known."""
    if isinstance(block.drop_block, nn.Identity) and isinstance(block.aa, nn.Identity):
        return norm_act(y, norm, act, pooled, index)
    return block.aa(act(block.drop_block(norm(y)))), None


def known(pooled: frozenset[int] | None, *means: Tensor | None) -> dict[int, Tensor | None] | None:
    """The pooled features before the last one, each with its mean if known; that of the block's input is never known."""
    return None if pooled is None else {i: (None, *means)[i] for i in pooled if i <= len(means)}


class ResNet(Network, timm_resnet.ResNet):
    """timm's network; its stages pass (map, state)."""

    def stages(self) -> tuple[nn.Module, ...]:
        # CIFAR networks have three stages; timm empties those that a feature extractor does not need.
        stages: Any = (self.layer1, self.layer2, self.layer3, self.layer4)
        return tuple(stage for stage in stages if len(stage))

    def stem(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(self.conv1(x)))

    def steps(self) -> list[Step]:
        stages: list[Step] = [partial(run_stage, stage, checkpointing=self.grad_checkpointing) for stage in self.stages()]
        return [stateless(self.stem), stateless(self.maxpool), *stages]

    def taps(self) -> list[int]:
        return [0, *range(2, len(self.stages()) + 2)]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        take, _ = feature_take_indices(len(self.feature_info), indices)
        return super().prune_intermediate_layers(take, prune_norm, prune_head)


def sockets(model: Any, slot: Slot, where: str) -> Iterator[Socket]:
    stages = model.stages()
    infos = model.feature_info[1 : len(stages) + 1]
    if slot == "stage":
        yield from stage_sockets(stages, stages, infos)
        return
    for block, position in blocks_of(stages, infos):
        if slot == "block":
            yield Socket(Site(widths=block_widths(block), native=block.se is not None, **position), block, "se")
        else:
            name = "conv2" if isinstance(block, Bottleneck) else "conv1"
            conv = getattr(block, name)
            site = Site(widths=(conv.in_channels, conv.out_channels), conv=conv, **position)
            yield Socket(site, block, name, (f"bn{name[-1]}", f"act{name[-1]}"))


def block_widths(block: Any) -> tuple[int, ...]:
    convs = [block.conv1, block.conv2] + ([block.conv3] if isinstance(block, Bottleneck) else [])
    return (convs[0].in_channels, *(conv.out_channels for conv in convs))


FAMILY = Family(
    network=timm_resnet.ResNet,
    classes={
        timm_resnet.BasicBlock: BasicBlock,
        timm_resnet.Bottleneck: Bottleneck,
        timm_resnet.ResNet: ResNet,
    },
    sockets=sockets,
)
