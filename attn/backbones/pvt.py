"""timm's Pyramid Vision Transformer v2. Wang et al.: PVT v2, Computational Visual Media 2022.

Inside a stage, tokens are [N, H * W, C].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.models import pvt_v2 as timm_pvt
from torch import Tensor

from attn.attention import Site, State, attend
from attn.backbones.family import Family, Slot, Socket, blocks_of, stage_sockets
from attn.backbones.network import Network, Step, stateless
from attn.backbones.trace import run_block


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, H * W, C] to [N, C, H, W]."""
    return tokens.transpose(1, 2).unflatten(2, size)


class Block(timm_pvt.Block):
    """timm's block with the slot `gate` (block) at the end of the mlp branch; its own `attn` attends to pixels."""

    def forward(  # type: ignore[override]
        self, inputs: tuple[Tensor, State], feat_size: tuple[int, int]
    ) -> tuple[Tensor, State]:
        """Maps ([N, H * W, C], state) to the same shapes; `feat_size` is (H, W)."""
        x, (conv_state, block_state) = inputs
        f1 = self.attn(self.norm1(x), feat_size)
        middle = x + self.drop_path1(f1)
        f2 = self.mlp(self.norm2(middle), feat_size)
        gate = getattr(self, "gate", None)
        if gate is not None:
            y, block_state = attend(gate, tuple(to_map(f, feat_size) for f in (x, f1, f2)), block_state)
            f2 = y.flatten(2).transpose(1, 2)
        return middle + self.drop_path2(f2), (conv_state, block_state)


class PyramidVisionTransformerStage(timm_pvt.PyramidVisionTransformerStage):
    """timm's stage; ends with the slot `attn` (stage)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W] or, in the first stage, [N, H, W, C], state) to ([N, C', H / stride, W / stride], state)."""
        x, state = inputs
        if self.downsample is not None:
            x = self.downsample(x)
        n, height, width, channels = x.shape
        inputs = (x.reshape(n, -1, channels), state)
        for block in self.blocks:
            inputs = run_block(block, inputs, (height, width), checkpointing=self.grad_checkpointing)
        x, state = inputs
        x = to_map(self.norm(x), (height, width)).contiguous()
        attention = getattr(self, "attn", None)
        return (x, state) if attention is None else run_block(attention, (x, state))


class PyramidVisionTransformerV2(Network, timm_pvt.PyramidVisionTransformerV2):
    """timm's network; its stages pass (map, state)."""

    def steps(self) -> list[Step]:
        return [stateless(self.patch_embed), *self.stages]

    def taps(self) -> list[int]:
        return list(range(1, len(self.stages) + 1))


def sockets(model: Any, slot: Slot, where: str) -> Iterator[Socket]:
    stages = [stage.blocks for stage in model.stages]
    if slot == "stage":
        yield from stage_sockets(model.stages, stages, model.feature_info)
    elif slot == "block":
        for block, position in blocks_of(stages, model.feature_info):
            yield Socket(Site(widths=(block.attn.dim,) * 3, **position), block, "gate")


FAMILY = Family(
    network=timm_pvt.PyramidVisionTransformerV2,
    classes={
        timm_pvt.Block: Block,
        timm_pvt.PyramidVisionTransformerStage: PyramidVisionTransformerStage,
        timm_pvt.PyramidVisionTransformerV2: PyramidVisionTransformerV2,
    },
    sockets=sockets,
    conv_kinds=(),
)
