"""Every row's detector trains by its recipe: on one repeated batch the loss stays finite and falls."""

from __future__ import annotations

import math
from typing import Any

import detection_fixtures
import pytest
import torch

import detection  # noqa: F401

pytest_plugins = [detection_fixtures.__name__]
ROWS = sorted(path.stem for path in (detection_fixtures.CONFIGS / "rows").glob("*.py"))
STEPS = 5
# All that is wide, narrow; depth, attention, losses, samplers and optimizer are the row's.
NARROW = {"model.backbone.init_cfg": None, "model.backbone.channels": [8, 16, 24, 32], "model.backbone.stem_width": 16}


def narrow_heads(cfg: Any) -> None:
    heads = cfg.model.get("roi_head", {}).get("bbox_head", [])
    for head in heads if isinstance(heads, list) else [heads]:
        head.fc_out_channels = 64


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
    cli.merge(cfg, NARROW)
    narrow_heads(cfg)
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
