"""timm's ConvNeXt and ConvNeXt V2. Liu et al.: A ConvNet for the 2020s, CVPR 2022."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.models import convnext as timm_convnext
from torch import Tensor

from attn.attention import Site, State, attend
from attn.backbones.family import Family, Slot, Socket, blocks_of, stage_sockets
from attn.backbones.network import Network, Step, run_stage, stateless


class ConvNeXtBlock(timm_convnext.ConvNeXtBlock):
    """timm's block with the slots `conv_dw` (conv) and `attn` (block, after the layer scale)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, C, H, W], state) to the same shapes."""
        x, (conv_state, block_state) = inputs

        f1, conv_state = attend(self.conv_dw, (x,), conv_state)
        if self.use_conv_mlp:
            f2 = self.mlp(self.norm(f1))
        else:
            f2 = self.mlp(self.norm(f1.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        if self.gamma is not None:
            f2 = f2.mul(self.gamma.reshape(1, -1, 1, 1))

        y, block_state = attend(getattr(self, "attn", None), (x, f1, f2), block_state)
        return self.drop_path(y) + self.shortcut(x), (conv_state, block_state)


class ConvNeXtStage(timm_convnext.ConvNeXtStage):
    """timm's stage; its blocks end with the slot `attn` (stage)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, state = inputs
        return run_stage(self.blocks, (self.downsample(x), state), self.grad_checkpointing)


class ConvNeXt(Network, timm_convnext.ConvNeXt):
    """timm's network; its stages pass (map, state)."""

    last_is_norm = True

    def steps(self) -> list[Step]:
        return [stateless(self.stem), *self.stages, stateless(self.norm_pre)]

    def taps(self) -> list[int]:
        return list(range(1, len(self.stages) + 1))


def sockets(model: Any, slot: Slot, where: str) -> Iterator[Socket]:
    stages = [stage.blocks for stage in model.stages]
    if slot == "stage":
        yield from stage_sockets(stages, stages, model.feature_info)
        return
    for block, position in blocks_of(stages, model.feature_info):
        conv = block.conv_dw
        if slot == "block":
            yield Socket(Site(widths=(conv.in_channels, conv.out_channels, conv.out_channels), **position), block, "attn")
        else:
            site = Site(widths=(conv.in_channels, conv.out_channels), conv=conv, **position)
            yield Socket(site, block, "conv_dw")


FAMILY = Family(
    network=timm_convnext.ConvNeXt,
    classes={
        timm_convnext.ConvNeXtBlock: ConvNeXtBlock,
        timm_convnext.ConvNeXtStage: ConvNeXtStage,
        timm_convnext.ConvNeXt: ConvNeXt,
    },
    sockets=sockets,
)
