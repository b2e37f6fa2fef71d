"""Every row's detector trains by its recipe: on one repeated batch the loss stays finite and falls."""

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
# All that is deep, wide or many, small; attention, losses, samplers and optimizer are the row's.
SMALL = {
    "init_cfg": None,
    "layers": [1, 1, 1, 1],
    "channels": [8, 16, 24, 32],
    "stem_width": 16,
}
PROPOSALS = 64


def shrink(cfg: Any) -> None:
    cfg.model.backbone.update(SMALL)
    if "roi_head" not in cfg.model:
        return
    for head in as_list(cfg.model.roi_head.bbox_head):
        head.fc_out_channels = 64
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
    batch = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[3, 2], num_classes=classes, with_mask="mask" in row)
    data = model.data_preprocessor(batch, training=True)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    losses = []
    for _ in range(STEPS):
        torch.manual_seed(1)  # the same samples of anchors and proposals
        loss, _ = model.parse_losses(model(**data, mode="loss"))
        losses.append(float(loss.detach()))
        optimizer.update_params(loss)
    assert all(map(math.isfinite, losses)), losses
    assert max(losses) <= 10 * losses[0], losses
    assert losses[-1] < losses[0], losses
