"""timm's EfficientNet class: EfficientNet (and V2, X, Lite, EdgeTPU), MobileNetV1 and V2, MnasNet, MixNet, FBNet-C, TinyNet."""

from __future__ import annotations

from timm.models import efficientnet as timm_efficientnet
from torch import Tensor

from attn.backbones import mobile
from attn.backbones.family import Family


class EfficientNet(timm_efficientnet.EfficientNet):
    """timm's network; its stages pass (map, state)."""

    def forward_features(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_head(mobile.forward_features(self, x)))

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
        x, found, done = mobile.forward_intermediates(self, x, indices, stop_early, output_fmt, extra_blocks)
        if intermediates_only:
            return found
        return (self.bn2(self.conv_head(x)) if done == self.stage_ends[-1] else x), found


FAMILY = Family(
    network=timm_efficientnet.EfficientNet,
    classes={**mobile.BLOCKS, timm_efficientnet.EfficientNet: EfficientNet},
    places=mobile.places,
    block_positions=mobile.POSITIONS,
    conv_kinds=mobile.CONVS,
)
