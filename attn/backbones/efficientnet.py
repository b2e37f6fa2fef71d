"""timm's EfficientNet class: EfficientNet (V2, X, Lite, EdgeTPU), MobileNetV1 and V2, MnasNet, MixNet, FBNet-C, TinyNet."""

from __future__ import annotations

from timm.models import efficientnet as timm_efficientnet

from attn.backbones import mobile_blocks, mobile_sockets
from attn.backbones.family import Family
from attn.backbones.mobile import MobileNetwork
from attn.backbones.network import Step, stateless


class EfficientNet(MobileNetwork, timm_efficientnet.EfficientNet):
    """timm's network; its stages pass (map, state)."""

    def steps(self) -> list[Step]:
        return [*super().steps(), stateless(lambda x: self.bn2(self.conv_head(x)))]


FAMILY = Family(
    network=timm_efficientnet.EfficientNet,
    classes={**mobile_blocks.BLOCKS, timm_efficientnet.EfficientNet: EfficientNet},
    sockets=mobile_sockets.sockets,
    block_positions=mobile_sockets.POSITIONS,
    conv_kinds=mobile_sockets.CONVS,
)
