"""MMDetection's FPN with attention on its convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from mmengine.dist import is_distributed
from timm.layers import convert_sync_batchnorm

from attn.models.fpn import add_attention
from detection.backbone import plain


@MODELS.register_module()
class AttentionFPN(FPN):
    """FPN whose lateral and output convolutions carry attention (AW-convolution, arXiv 2108.08205, table 2).

    Args:
        in_channels: as FPN's; `AttentionDetector` sets it.
        attention: what `attn.models.fpn.add_attention` takes, such as aw, se, aw_se, cbam or aw_cbam; None for MMDetection's
            FPN.
        sync_bn: statistics of the attentions' batch norms over all ranks. On the laterals AW normalises one value per image,
            so with the usual two images per GPU they come from two values without it.
        fpn: everything else that FPN takes.

    Raises:
        ValueError: the attention does not fit a pyramid.
    """

    def __init__(
        self, in_channels: list[int], attention: str | Mapping[str, Any] | None = None, sync_bn: bool = False, **fpn: Any
    ) -> None:
        super().__init__(in_channels, **fpn)
        self._plain = set(self.state_dict())
        if attention is not None:
            levels = range(self.start_level, self.backbone_end_level)
            add_attention(self, plain(attention), strides=[4 * 2**level for level in levels])
        if sync_bn and is_distributed():
            convert_sync_batchnorm(self)

    def init_weights(self) -> None:
        """FPN's own initialisation for FPN's own convolutions; the attentions keep theirs."""
        kept = {name: value.clone() for name, value in self.state_dict().items() if name not in self._plain}
        super().init_weights()
        with torch.no_grad():
            for name, value in self.state_dict().items():
                if name in kept:
                    value.copy_(kept[name])
