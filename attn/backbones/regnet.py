"""timm's RegNet X, Y, Z and V. Radosavovic et al.: Designing Network Design Spaces, CVPR 2020."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.models import regnet as timm_regnet
from torch import Tensor, nn

from attn.attention import Site, State, attend
from attn.backbones.family import Family, Slot, Socket, blocks_of, stage_sockets
from attn.backbones.network import Network, Step, stateless
from attn.backbones.trace import run_block
from attn.kernels.block import gate_activated, gates_activated


class Bottleneck(timm_regnet.Bottleneck):
    """timm's block with the slots `conv2.conv` (conv) and `se` (block); RegNet's SE is after conv2, not conv3.

    `fused_on`: types of the devices on which the gate runs fused with the norm before it, see `attn.kernels`.
    """

    fused_on: tuple[str, ...] = ()

    def runs_fused(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the gate runs fused for maps of a given device and type."""
        return gates_activated(self.se, self.conv2.bn, device, dtype, self.fused_on)

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs

        f1 = self.conv1(x)
        f2, conv_state = attend(self.conv2.conv, (f1,), conv_state)
        y, block_state = gate_activated(f2, self.conv2.bn, self.se, (x, f1), block_state, self.fused_on)

        y = self.conv3(y)
        if self.downsample is not None:
            y = self.drop_path(y) + self.downsample(x)
        return self.act3(y), (conv_state, block_state)


class PreBottleneck(timm_regnet.PreBottleneck):
    """timm's pre-activation block with the slots `conv2` (conv) and `se` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs

        activated = self.norm1(x)
        f1 = self.norm2(self.conv1(activated))
        f2, conv_state = attend(self.conv2, (f1,), conv_state)

        y, block_state = attend(self.se, (x, f1, f2), block_state)
        y = self.conv3(self.norm3(y))
        if self.downsample is not None:
            y = self.drop_path(y) + self.downsample(activated)
        return y, (conv_state, block_state)


class RegStage(timm_regnet.RegStage):
    """timm's stage; ends with the slot `attn` (stage)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        for block in self.children():
            inputs = run_block(block, inputs, checkpointing=self.grad_checkpointing)
        return inputs


class RegNet(Network, timm_regnet.RegNet):
    """timm's network; its stages pass (map, state)."""

    def stages(self) -> tuple[Any, ...]:
        return self.s1, self.s2, self.s3, self.s4

    def steps(self) -> list[Step]:
        return [stateless(self.stem), *self.stages(), stateless(self.final_conv)]

    def taps(self) -> list[int]:
        return [0, 1, 2, 3, 4]


def sockets(model: Any, slot: Slot, where: str) -> Iterator[Socket]:
    stages, infos = model.stages(), model.feature_info[1:]
    blocks = [list(stage.children()) for stage in stages]
    if slot == "stage":
        yield from stage_sockets(stages, blocks, infos)
        return
    for block, position in blocks_of(blocks, infos):
        plain = isinstance(block, PreBottleneck)
        conv1, conv2 = (block.conv1, block.conv2) if plain else (block.conv1.conv, block.conv2.conv)
        if slot == "block":
            widths = (conv1.in_channels, conv1.out_channels, conv2.out_channels)
            native = not isinstance(block.se, nn.Identity)
            yield Socket(Site(widths=widths, native=native, **position), block, "se")
        else:
            site = Site(widths=(conv2.in_channels, conv2.out_channels), conv=conv2, **position)
            yield Socket(site, block, "conv2", ("norm3",)) if plain else Socket(site, block.conv2, "conv", ("bn",))


FAMILY = Family(
    network=timm_regnet.RegNet,
    classes={
        timm_regnet.Bottleneck: Bottleneck,
        timm_regnet.PreBottleneck: PreBottleneck,
        timm_regnet.RegStage: RegStage,
        timm_regnet.RegNet: RegNet,
    },
    sockets=sockets,
)
