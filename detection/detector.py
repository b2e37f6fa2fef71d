"""Any of MMDetection's detectors, its neck fitted to the backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import nn

from detection.backbone import AttentionBackbone, plain


@MODELS.register_module()
def AttentionDetector(detector: str, backbone: Mapping[str, Any], neck: Any = None, **settings: Any) -> nn.Module:
    """Builds `detector` with the neck's `in_channels` set to what the backbone gives.

    A config writes `model = dict(type='AttentionDetector', detector='FasterRCNN', backbone=..., neck=...)`. MMDetection
    builds backbone and neck apart, so this is the only place that knows both. Overrides on the command line and
    MMDetection's own tools work with it too.

    Args:
        detector: a detector of MMDetection, such as FasterRCNN, MaskRCNN, CascadeRCNN or RetinaNet.
        backbone: config of an `AttentionBackbone`; with any other backbone the neck stays as it is.
        neck: config of a neck, or a list of them, of which the first sees the backbone's maps.
        settings: everything else that the detector takes.

    Raises:
        ValueError: as `AttentionBackbone`.
    """
    if not isinstance(backbone, Mapping):
        raise ValueError(f"model.backbone={backbone!r} must be a mapping; its name is model.backbone.backbone")
    if neck is not None and backbone.get("type") in ("AttentionBackbone", AttentionBackbone):
        channels = list(_channels(backbone))
        if isinstance(neck, Sequence):
            neck = [{**neck[0], "in_channels": channels}, *neck[1:]]
        else:
            neck = {**neck, "in_channels": channels}
    return MODELS.build({"type": detector, "backbone": backbone, "neck": neck, **settings})


def _channels(backbone: Mapping[str, Any]) -> tuple[int, ...]:
    options = {key: value for key, value in plain(backbone).items() if key not in ("type", "_scope_", "init_cfg")}
    with torch.device("meta"):
        return AttentionBackbone(**options).channels
