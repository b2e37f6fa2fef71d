"""Parameters and operations against what is printed, and against MMDetection's own zoo."""

from __future__ import annotations

import detection_fixtures
import pytest
import torch
from mmengine.config import Config
from torch import nn

from detection.count import count, image_size, operations

pytest_plugins = [detection_fixtures.__name__]
CONFIGS = detection_fixtures.CONFIGS


@pytest.mark.parametrize(
    ("row", "params", "gflops"),
    [
        ("faster_rcnn_r50_none", 41_527_712, 215.51),
        ("faster_rcnn_r50_se", 44_018_080, 215.63),
        ("faster_rcnn_r50_eca", 41_527_783, 215.63),
        ("faster_rcnn_r50_fca", 44_018_080, 215.63),
        ("faster_rcnn_r50_ba", 44_646_048, 215.70),  # printed: 215.68
        ("faster_rcnn_r101_none", 60_519_840, 295.39),
        ("faster_rcnn_r101_se", 65_238_432, 295.58),
        ("faster_rcnn_r101_eca", 60_519_996, 295.58),
        ("faster_rcnn_r101_fca", 65_238_432, 295.58),
        ("faster_rcnn_r101_ba", 66_429_984, 295.69),  # printed: 295.70
        ("mask_rcnn_r50_none", 44_170_992, 261.81),
        ("mask_rcnn_r50_se", 46_661_360, 261.93),
        ("mask_rcnn_r50_eca", 44_171_063, 261.93),
        ("mask_rcnn_r50_fca", 46_661_360, 261.93),
        ("mask_rcnn_r50_ba", 47_289_328, 262.01),  # printed: 261.98
    ],
)
def test_ba_net_table_5(row: str, params: int, gflops: float) -> None:
    found = count(CONFIGS / "rows" / f"ba_net_{row}.py", size=(800, 1330), wrappers=False)
    assert found.params == params
    assert round(found.ptflops / 1e9, 2) == gflops


def test_the_size_is_the_configs_unless_another_is_given() -> None:
    path = CONFIGS / "ba_net_faster_rcnn.py"
    assert count(path) == count(path, size=(800, 1333))
    assert round(count(path).ptflops / 1e9, 2) == 215.82


@pytest.mark.parametrize(
    ("recipe", "gflops"),
    # README of MMDetection 2's benchmark, at 800 x 1280.
    [
        ("ba_net_faster_rcnn", 207.07),
        ("ba_net_mask_rcnn", 260.14),
        ("dcanet_retinanet", 239.32),
        ("dcanet_cascade_rcnn", 234.71),
    ],
)
def test_operations_are_those_of_mmdetection_2(recipe: str, gflops: float) -> None:
    found = count(CONFIGS / f"{recipe}.py", size=(800, 1280))
    assert round(found.ptflops / 1e9, 2) == gflops


def test_image_size_is_what_the_config_resizes_to() -> None:
    cfg = Config.fromfile(str(CONFIGS / "ba_net_faster_rcnn.py"))
    assert image_size(cfg) == (800, 1333)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step["type"] == "Resize":
            step["scale"] = (1280, 800)
    assert image_size(cfg) == (800, 1280)


def test_frozen_stages_are_not_counted() -> None:
    path = CONFIGS / "ba_net_faster_rcnn.py"
    assert count(path, {"model.backbone.frozen_stages": -1}).params - count(path).params == 225_344  # stem and stage 1


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5), 2 * 6 * 25 * (2 * 9) + 2 * 6 * 25),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (1, 4, 5, 5), 4 * 25 * 6 * 4),
        (nn.Linear(3, 7), (5, 3), 5 * 3 * 7),
        (nn.BatchNorm2d(4), (2, 4, 5, 5), 2 * 200),
        (nn.ReLU(), (2, 4, 5, 5), 200),
        (nn.AdaptiveAvgPool2d(1), (2, 4, 5, 5), 200),
    ],
)
def test_operations_of_modules(module: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    x = torch.zeros(shape)
    assert operations(module, x, module(x)) == expected
