"""timm's Swin Transformer. Liu et al.: Swin Transformer, ICCV 2021. Inside the network, maps are [N, H, W, C]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.models import swin_transformer as timm_swin
from torch import Tensor

from attn.attention import Site, State, attend
from attn.backbones.family import Family, Slot, Socket, blocks_of, stage_sockets
from attn.backbones.network import Network, Step, run_stage, stateless
from attn.backbones.trace import run_block


def to_nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def to_nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


class SwinTransformerBlock(timm_swin.SwinTransformerBlock):
    """timm's block with the slot `gate` (block) at the end of the mlp branch; its own `attn` attends to pixels."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, H, W, C], state) to the same shapes."""
        x, (conv_state, block_state) = inputs
        n, height, width, channels = x.shape

        f1 = self._attn(self.norm1(x))
        middle = (x + self.drop_path1(f1)).reshape(n, -1, channels)
        f2 = self.mlp(self.norm2(middle))
        gate = getattr(self, "gate", None)
        if gate is not None:
            maps = (to_nchw(x), to_nchw(f1), to_nchw(f2.reshape(n, height, width, channels)))
            y, block_state = attend(gate, maps, block_state)
            f2 = to_nhwc(y).reshape(n, -1, channels)
        out = middle + self.drop_path2(f2)
        return out.reshape(n, height, width, channels), (conv_state, block_state)


class SwinTransformerStage(timm_swin.SwinTransformerStage):
    """timm's stage; ends with the slot `attn` (stage)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        """Maps ([N, H, W, C], state) to ([N, H / stride, W / stride, C'], state)."""
        x, state = inputs
        x, state = run_stage(self.blocks, (self.downsample(x), state), self.grad_checkpointing)
        attention = getattr(self, "attn", None)
        if attention is not None:
            x, state = run_block(attention, (to_nchw(x), state))
            x = to_nhwc(x)
        return x, state


class SwinTransformer(Network, timm_swin.SwinTransformer):
    """timm's network; its stages pass (map, state)."""

    last_is_norm = True

    def steps(self) -> list[Step]:
        return [stateless(self.patch_embed), *self.layers, stateless(self.norm)]

    def taps(self) -> list[int]:
        return list(range(1, len(self.layers) + 1))

    def feature(self, x: Tensor) -> Tensor:
        return to_nchw(x).contiguous()


def sockets(model: Any, slot: Slot, where: str) -> Iterator[Socket]:
    stages = [stage.blocks for stage in model.layers]
    if slot == "stage":
        yield from stage_sockets(model.layers, stages, model.feature_info)
    elif slot == "block":
        for block, position in blocks_of(stages, model.feature_info):
            yield Socket(Site(widths=(block.dim,) * 3, **position), block, "gate")


FAMILY = Family(
    network=timm_swin.SwinTransformer,
    classes={
        timm_swin.SwinTransformerBlock: SwinTransformerBlock,
        timm_swin.SwinTransformerStage: SwinTransformerStage,
        timm_swin.SwinTransformer: SwinTransformer,
    },
    sockets=sockets,
    conv_kinds=(),
)
