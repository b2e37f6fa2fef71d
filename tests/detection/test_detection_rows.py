"""Every row's detector trains by its recipe: on one repeated batch the loss starts at chance, stays finite and falls."""

from __future__ import annotations

import math
from typing import Any

import detection_fixtures
import pytest
import torch

import detection  # noqa: F401

pytest_plugins = [detection_fixtures.__name__]
NAMES = {path.stem for path in (detection_fixtures.CONFIGS / "rows").glob("*.py")}
# Where a row stands with ResNet-50 and ResNet-101, they differ in depth, which is made equal here.
ROWS = sorted(name for name in NAMES if "_r101_" not in name or name.replace("_r101_", "_r50_") not in NAMES)
STEPS = 4
# A one-stage detector has no sampled proposals: all anchors count. With 64 pixels there are too few of them for a
# classification loss summed over all anchors but divided by the positive ones to diverge in four steps; with 128 it does.
SIZE, SIZE_ONE_STAGE = 64, 128
# All that is deep, wide or many, small; attention, losses, samplers and optimizer are the row's.
SMALL = {
    "init_cfg": None,
    "layers": [1, 1, 1, 1],
    "channels": [8, 16, 24, 32],
    "stem_width": 16,
}
PROPOSALS = 64
WIDTH = 64


def shrink(cfg: Any) -> None:
    cfg.model.backbone.update(SMALL)
    cfg.model.neck.out_channels = WIDTH
    if "roi_head" not in cfg.model:
        cfg.model.bbox_head.update(in_channels=WIDTH, feat_channels=WIDTH)
        return
    cfg.model.rpn_head.update(in_channels=WIDTH, feat_channels=WIDTH)
    cfg.model.roi_head.bbox_roi_extractor.out_channels = WIDTH
    for head in as_list(cfg.model.roi_head.bbox_head):
        head.update(in_channels=WIDTH, fc_out_channels=WIDTH)
    if "mask_head" in cfg.model.roi_head:
        cfg.model.roi_head.mask_roi_extractor.out_channels = WIDTH
        cfg.model.roi_head.mask_head.update(in_channels=WIDTH, conv_out_channels=WIDTH)
    cfg.model.train_cfg.rpn_proposal.max_per_img = PROPOSALS
    for stage in as_list(cfg.model.train_cfg.rcnn):
        stage.sampler.num = PROPOSALS


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("row", ROWS)
def test_the_loss_of_a_repeated_batch_falls(row: str) -> None:
    from mmdet.registry import MODELS
    from mmdet.testing._utils import demo_mm_inputs
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope

    from detection import cli

    torch.manual_seed(0)
    cfg = Config.fromfile(str(cli.find(row)))
    shrink(cfg)
    init_default_scope("mmdet")
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    classes = 20 if "_voc_" in row else 80
    size = SIZE if "roi_head" in cfg.model else SIZE_ONE_STAGE
    batch = demo_mm_inputs(2, [[3, size, size]] * 2, num_items=[3, 2], num_classes=classes, with_mask="mask" in row)
    data = model.data_preprocessor(batch, training=True)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    losses, parts = [], []
    for _ in range(STEPS):
        torch.manual_seed(1)  # the same samples of anchors and proposals
        loss, logs = model.parse_losses(model(**data, mode="loss"))
        losses.append(float(loss.detach()))
        parts.append({name: float(value.detach()) for name, value in logs.items() if "loss_" in name and "cls" in name})
        optimizer.update_params(loss)
    # A classifier that knows nothing gives each of its classes (and the background) the same probability, a mean cross
    # entropy of log(classes + 1); focal and binary losses lie below. Twice that is room for the random start, not for a sum
    # over anchors.
    chance = math.log(classes + 1)
    assert parts[0], "no classification loss"
    assert all(value <= 2 * chance for value in parts[0].values()), (chance, parts[0])
    assert all(map(math.isfinite, losses)), losses
    assert max(losses) <= 10 * losses[0], losses
    assert losses[-1] < losses[0], losses
