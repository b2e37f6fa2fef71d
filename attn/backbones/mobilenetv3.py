"""timm's MobileNetV3 class: MobileNetV3 and V4, FBNet-V3, LCNet, HardCoRe-NAS."""

from __future__ import annotations

from timm.models import mobilenetv3 as timm_mobilenetv3
from torch import Tensor

from attn.backbones import mobile
from attn.backbones.family import Family


class MobileNetV3(timm_mobilenetv3.MobileNetV3):
    """timm's network; its stages pass (map, state)."""

    def forward_features(self, x: Tensor) -> Tensor:
        return mobile.forward_features(self, x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        extra_blocks: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        x, found, _ = mobile.forward_intermediates(self, x, indices, stop_early, output_fmt, extra_blocks)
        return found if intermediates_only else (x, found)


FAMILY = Family(
    network=timm_mobilenetv3.MobileNetV3,
    classes={**mobile.BLOCKS, timm_mobilenetv3.MobileNetV3: MobileNetV3},
    places=mobile.places,
    block_positions=mobile.POSITIONS,
    conv_kinds=mobile.CONVS,
)
