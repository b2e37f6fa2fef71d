"""timm's MobileNetV3 class: MobileNetV3 and V4, FBNet-V3, LCNet, HardCoRe-NAS."""

from __future__ import annotations

from timm.models import mobilenetv3 as timm_mobilenetv3

from attn.backbones import mobile
from attn.backbones.family import Family


class MobileNetV3(mobile.MobileNetwork, timm_mobilenetv3.MobileNetV3):
    """timm's network; its stages pass (map, state)."""


FAMILY = Family(
    network=timm_mobilenetv3.MobileNetV3,
    classes={**mobile.BLOCKS, timm_mobilenetv3.MobileNetV3: MobileNetV3},
    places=mobile.places,
    block_positions=mobile.POSITIONS,
    conv_kinds=mobile.CONVS,
)
