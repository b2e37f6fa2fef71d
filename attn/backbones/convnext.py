"""timm's ConvNeXt and ConvNeXt V2. Liu et al.: A ConvNet for the 2020s, CVPR 2022."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.models import convnext as timm_convnext
from timm.models._features import feature_take_indices
from torch import Tensor

from attn.attention import START, Site, State, attend
from attn.backbones.family import Family, Place, Slot, run_stage, run_stages


class ConvNeXtBlock(timm_convnext.ConvNeXtBlock):
    """timm's block with the slots `conv_dw` (conv) and `attn` (block, behind the layer scale)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
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
        x, state = inputs
        return run_stage(self.blocks, self.downsample(x), state, self.grad_checkpointing)


class ConvNeXt(timm_convnext.ConvNeXt):
    """timm's network; its stages pass (map, state)."""

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm_pre(run_stages(self.stages, self.stem(x)))

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
        total = len(self.stages)
        take, last = feature_take_indices(total, indices)
        end = last + 1 if stop_early else total
        x, state = self.stem(x), START
        found = []
        stages: Any = self.stages[:end]
        for i, stage in enumerate(stages):
            x, state = stage((x, state))
            if i in take:
                found.append(self.norm_pre(x) if norm and i == total - 1 else x)
        if intermediates_only:
            return found
        return (self.norm_pre(x) if end == total else x), found


def places(model: Any, slot: Slot, where: str) -> Iterator[Place]:
    depth = 0
    for number, stage in enumerate(model.stages, start=1):
        info = model.feature_info[number - 1]
        position: dict[str, Any] = {}
        for index, block in enumerate(list(stage.blocks)):
            position = {"stage": number, "block": index, "depth": depth, "stride": info["reduction"]}
            depth += 1
            conv = block.conv_dw
            if slot == "block":
                widths = (conv.in_channels, conv.out_channels, conv.out_channels)
                yield Place(Site(widths=widths, **position), block, "attn")
            elif slot == "conv":
                site = Site(widths=(conv.in_channels, conv.out_channels), conv=conv, **position)
                yield Place(site, block, "conv_dw")
        if slot == "stage":
            yield Place(Site(widths=(info["num_chs"],), **position), stage.blocks, "attn")


FAMILY = Family(
    network=timm_convnext.ConvNeXt,
    classes={
        timm_convnext.ConvNeXtBlock: ConvNeXtBlock,
        timm_convnext.ConvNeXtStage: ConvNeXtStage,
        timm_convnext.ConvNeXt: ConvNeXt,
    },
    places=places,
)
