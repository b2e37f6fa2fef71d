"""The recall that BA2M prints on Pascal VOC, beside MMDetection's mAP."""

from __future__ import annotations

from typing import Any

import detection_fixtures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import METRICS
from mmengine.config import Config

from detection.metric import VOCRecallMetric, mean_recall

CONFIGS = detection_fixtures.CONFIGS
CLASSES = ("cat", "dog", "cow")


def overlap(a: Any, b: Any) -> float:
    """Intersection over union of boxes whose last pixel is inside."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return float(common / (sum(areas) - common))


def recall_by_loops(results: list[Any], threshold: float) -> float:
    recalls = []
    for label in range(len(CLASSES)):
        found = objects = 0
        for annotation, detections in results:
            own = [tuple(box) for box, k in zip(annotation["bboxes"], annotation["labels"], strict=True) if k == label]
            difficult = [
                tuple(box)
                for box, k in zip(annotation["bboxes_ignore"], annotation["labels_ignore"], strict=True)
                if k == label
            ]
            objects += len(own)
            hit = set()
            for detection in detections[label]:
                candidates = [overlap(detection, box) for box in own + difficult]
                if candidates and max(candidates) >= threshold:
                    hit.add(candidates.index(max(candidates)))
            found += sum(i < len(own) for i in hit)
        if objects:
            recalls.append(found / objects)
    return sum(recalls) / len(recalls) if recalls else 0.0


def boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    corner = generator.integers(0, 12, (count, 2))
    return np.hstack([corner, corner + generator.integers(2, 10, (count, 2))]).astype(np.float32)


def image(generator: np.random.Generator) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    own, difficult = generator.integers(0, 5), generator.integers(0, 3)
    annotation = {
        "bboxes": boxes(generator, own),
        "labels": generator.integers(0, len(CLASSES), own),
        "bboxes_ignore": boxes(generator, difficult),
        "labels_ignore": generator.integers(0, len(CLASSES), difficult),
    }
    detections = []
    for _ in CLASSES:
        count = generator.integers(0, 6)
        scores = generator.random((count, 1), dtype=np.float32)
        detections.append(np.hstack([boxes(generator, count), scores]))
    return annotation, detections


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 5), threshold=st.sampled_from([0.3, 0.5, 0.75]))
def test_recall_is_that_of_a_loop(seed: int, images: int, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    results = [image(generator) for _ in range(images)]
    assert mean_recall(results, threshold) == pytest.approx(recall_by_loops(results, threshold))


def sample(own: list[list[float]], labels: list[int], found: list[list[float]], classes: list[int]) -> dict[str, Any]:
    """An image as MMDetection hands it to a metric."""
    none = {"bboxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    predicted = {"bboxes": torch.tensor(found).reshape(-1, 4), "labels": torch.tensor(classes)}
    predicted["scores"] = torch.linspace(0.9, 0.5, len(found))
    return {
        "gt_instances": {"bboxes": torch.tensor(own).reshape(-1, 4), "labels": torch.tensor(labels)},
        "ignored_instances": none,
        "pred_instances": predicted,
    }


def test_the_metric_gives_mmdetections_map_and_the_recall() -> None:
    """One of two cats, the dog twice, a false cow: recalls 1/2 and 1, no cow to find."""
    a, b, far = [0.0, 0.0, 9.0, 9.0], [20.0, 20.0, 29.0, 29.0], [50.0, 50.0, 59.0, 59.0]
    metric = VOCRecallMetric()
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, [sample([a, b], [0, 0], [a, far], [0, 0]), sample([a], [1], [a, a, far], [1, 1, 2])])
    scores = metric.evaluate(2)
    assert scores["pascal_voc/recall"] == pytest.approx(0.75)
    assert scores["pascal_voc/mAP"] == pytest.approx((6 / 11 + 1) / 2)  # a cat up to recall 0.5: 6 of 11 points
    assert "pascal_voc/AP50" in scores


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("ba2m_voc_*.py")), ids=lambda path: path.stem)
def test_every_voc_config_measures_it(path: Any) -> None:
    cfg = Config.fromfile(str(path))
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        metric = METRICS.build(evaluator)
        assert isinstance(metric, VOCRecallMetric)
        assert (metric.metric, metric.iou_thrs, metric.eval_mode) == ("mAP", [0.5], "11points")
