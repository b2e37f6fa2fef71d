"""timm's Swin Transformer. Liu et al.: Swin Transformer, ICCV 2021. Maps are [N, H, W, C] inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.models import swin_transformer as timm_swin
from timm.models._features import feature_take_indices
from torch import Tensor

from attn.attention import START, Site, State, attend
from attn.backbones.family import Family, Place, Slot, run_stage, run_stages


def to_nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def to_nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


class SwinTransformerBlock(timm_swin.SwinTransformerBlock):
    """timm's block with the slot `gate` (block) at the end of the mlp branch; its own `attn` attends to pixels."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
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
        x, state = inputs
        x, state = run_stage(self.blocks, self.downsample(x), state, self.grad_checkpointing)
        attention = getattr(self, "attn", None)
        if attention is not None:
            x, state = attention((to_nchw(x), state))
            x = to_nhwc(x)
        return x, state


class SwinTransformer(timm_swin.SwinTransformer):
    """timm's network; its stages pass (map, state)."""

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(run_stages(self.layers, self.patch_embed(x)))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: only NCHW exists for {type(self).__name__}")
        total = len(self.layers)
        take, last = feature_take_indices(total, indices)
        end = last + 1 if stop_early else total
        x, state = self.patch_embed(x), START
        found = []
        stages: Any = self.layers[:end]
        for i, stage in enumerate(stages):
            x, state = stage((x, state))
            if i in take:
                found.append(to_nchw(self.norm(x) if norm and i == total - 1 else x).contiguous())
        if intermediates_only:
            return found
        return (self.norm(x) if end == total else x), found


def places(model: Any, slot: Slot, where: str) -> Iterator[Place]:
    depth = 0
    for number, stage in enumerate(model.layers, start=1):
        info = model.feature_info[number - 1]
        position: dict[str, Any] = {}
        for index, block in enumerate(stage.blocks):
            position = {"stage": number, "block": index, "depth": depth, "stride": info["reduction"]}
            depth += 1
            if slot == "block":
                yield Place(Site(widths=(block.dim,) * 3, **position), block, "gate")
        if slot == "stage":
            yield Place(Site(widths=(info["num_chs"],), **position), stage, "attn")


FAMILY = Family(
    network=timm_swin.SwinTransformer,
    classes={
        timm_swin.SwinTransformerBlock: SwinTransformerBlock,
        timm_swin.SwinTransformerStage: SwinTransformerStage,
        timm_swin.SwinTransformer: SwinTransformer,
    },
    places=places,
    conv_kinds=(),
)
