"""The backbones of this project inside MMDetection.

Importing this package registers `AttentionBackbone`, `AttentionDetector`, `AttentionFPN`, `AttentionRunner` and
`VOCRecallMetric` with MMDetection; a config does it by `custom_imports = dict(imports=['detection'])`, so MMDetection's own
tools work too.
"""

try:
    import mmcv.ops  # noqa: F401
    import mmdet  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"detection needs MMDetection with mmcv's operators ({error}): pip install 'attn[detection]'"
        " (compiles the operators once, 6 to 12 minutes on 2 cores)"
    ) from None

from detection.backbone import AttentionBackbone
from detection.detector import AttentionDetector
from detection.metric import VOCRecallMetric
from detection.neck import AttentionFPN
from detection.runner import AttentionRunner

__all__ = ["AttentionBackbone", "AttentionDetector", "AttentionFPN", "AttentionRunner", "VOCRecallMetric"]
