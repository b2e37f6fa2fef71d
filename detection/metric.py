"""Pascal VOC's metric with the recall that BA2M's tables III and IV print."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmdet.evaluation.functional.mean_ap import get_cls_results, tpfp_default
from mmdet.evaluation.metrics import VOCMetric
from mmdet.registry import METRICS
from mmengine.logging import print_log


@METRICS.register_module()
class VOCRecallMetric(VOCMetric):
    """`VOCMetric` that also returns `recall`, the mean over the classes of the fraction of objects that were found.

    An object is found if it is the one that a detection of its class overlaps most, and by at least the IoU threshold; the
    scores of the detections play no part. This is the column `recall` of the table that MMDetection prints by class (the end
    of the precision-recall curve). Classes without an object, and objects that are marked difficult, do not count. With
    several thresholds it is their mean, as mAP is. Takes what `VOCMetric` takes.
    """

    def compute_metrics(self, results: list) -> dict[str, Any]:
        scores = super().compute_metrics(results)
        recall = float(np.mean([mean_recall(results, threshold) for threshold in self.iou_thrs]))
        print_log(f"recall, mean of the classes: {recall:.4f}", "current")
        return {**scores, "recall": recall}


def mean_recall(results: list[tuple[dict[str, np.ndarray], list[np.ndarray]]], iou_threshold: float = 0.5) -> float:
    """The mean over the classes of found objects / objects, from 0 to 1; 0 if there is no object.

    Args:
        results: per image the annotations (`bboxes` [n, 4], `labels` [n], `bboxes_ignore`, `labels_ignore`) and the
            detections of each class [m, 5] (box and score). Boxes are x1, y1, x2, y2 in pixels, both ends inside.
        iou_threshold: least intersection over union.
    """
    annotations, detections = zip(*results, strict=True)
    recalls = []
    for label in range(len(detections[0])):
        images = list(zip(*get_cls_results(detections, annotations, label), strict=True))
        objects = sum(len(boxes) for _, boxes, _ in images)
        if objects:
            found = sum(tpfp_default(*image, iou_thr=iou_threshold, use_legacy_coordinate=True)[0].sum() for image in images)
            recalls.append(found / objects)
    return float(np.mean(recalls)) if recalls else 0.0
