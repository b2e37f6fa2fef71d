"""The backbone in MMSegmentation and MMPretrain: their example configs are built, and a step is made."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import detection_fixtures
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import detection  # noqa: F401  # before the toolboxes, for mmcv's operators

pytest_plugins = [detection_fixtures.__name__]


def needed(package: str) -> None:
    """Skips where a toolbox is missing, or beside transformers 5, with which MMPretrain cannot be imported."""
    pytest.importorskip(package, reason=f"needs {package}: pip install 'attn[{package}]'")
    try:
        newer = int(version("transformers").partition(".")[0]) >= 5
    except PackageNotFoundError:
        return
    if newer:
        pytest.skip("onedl-mmpretrain cannot be imported beside transformers 5: use another environment")


def build(path: str, scope: str, **changes: Any) -> Any:
    cfg = Config.fromfile(detection_fixtures.CONFIGS / path)
    # Norms that begin at 0 would let no gradient into a block.
    small = {"model.backbone.init_cfg": None, "model.backbone.layers": [1, 1, 1, 1], "model.backbone.zero_init_last": False}
    cfg.merge_from_dict({**small, **changes})
    from mmengine.registry import MODELS

    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(cfg.model), cfg


def stepped(model: Any, losses: dict[str, torch.Tensor]) -> None:
    """Every parameter that is trained gets a gradient, the attention's among them."""
    sum(value for key, value in losses.items() if "loss" in key).backward()  # type: ignore[union-attr]
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert model.backbone.model.layer1[0].se.bridges[0][0].weight.grad.abs().sum() > 0


def test_mmsegmentation() -> None:
    needed("mmseg")
    import mmseg.models  # noqa: F401
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    norm = {"type": "BN", "requires_grad": True}  # the config's is synchronised, which needs GPUs
    changes = {"model.decode_head.norm_cfg": norm}
    model, cfg = build("mmseg/ba_semantic_fpn_ade20k.py", "mmseg", **changes)
    assert cfg.train_cfg.max_iters == 160000
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo={"img_shape": (64, 64)})
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 64, 64)))
        samples.append(sample)
    stepped(model, model.loss(torch.randn(2, 3, 64, 64), samples))


def test_mmpretrain() -> None:
    needed("mmpretrain")
    import mmpretrain.models  # noqa: F401
    from mmpretrain.structures import DataSample

    model, cfg = build("mmpretrain/ba_resnet50_imagenet.py", "mmpretrain")
    assert cfg.train_cfg.max_epochs == 100
    samples = [DataSample().set_gt_label(label) for label in (3, 7)]
    stepped(model, model.loss(torch.randn(2, 3, 64, 64), samples))
