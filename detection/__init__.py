"""The backbones of this project inside MMDetection.

Importing this package registers `AttentionBackbone`, `AttentionDetector`, `AttentionFPN`, `AttentionRunner` and
`VOCRecallMetric` with MMDetection; a config does it by `custom_imports = dict(imports=['detection'])`, so MMDetection's own
tools work too. Where mmcv's operators are not compiled, it provides torchvision's in their place (`detection.operators`).
"""

try:
    from detection import operators

    operators.provide()
    import mmcv.ops
    import mmdet.structures.mask.structures
except ImportError as error:
    raise ImportError(f"detection needs MMDetection with mmcv ({error}): pip install 'attn[detection]'") from None

from detection.backbone import AttentionBackbone
from detection.detector import AttentionDetector
from detection.metric import VOCRecallMetric
from detection.neck import AttentionFPN
from detection.runner import AttentionRunner

# MMDetection's tools may have imported this before, without operators: it keeps a function that only raises.
mmdet.structures.mask.structures.roi_align = mmcv.ops.roi_align

__all__ = ["AttentionBackbone", "AttentionDetector", "AttentionFPN", "AttentionRunner", "VOCRecallMetric"]
