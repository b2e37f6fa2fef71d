"""timm's MobileNetV3 class: MobileNetV3 and V4, FBNet-V3, LCNet, HardCoRe-NAS."""

from __future__ import annotations

from timm.models import mobilenetv3 as timm_mobilenetv3

from attn.backbones import mobile_blocks, mobile_sockets
from attn.backbones.family import Family
from attn.backbones.mobile import MobileNetwork


class MobileNetV3(MobileNetwork, timm_mobilenetv3.MobileNetV3):
    """timm's network; its stages pass (map, state)."""


FAMILY = Family(
    network=timm_mobilenetv3.MobileNetV3,
    classes={**mobile_blocks.BLOCKS, timm_mobilenetv3.MobileNetV3: MobileNetV3},
    sockets=mobile_sockets.sockets,
    block_positions=mobile_sockets.POSITIONS,
    conv_kinds=mobile_sockets.CONVS,
)
