"""Fixtures for tests of the detection extra. Importing this skips a test module where the extra is not installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("mmdet", reason="the detection extra is not installed: pip install 'attn[detection]'")

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "detection" / "configs"


@pytest.fixture(scope="session")
def scenes_script() -> ModuleType:
    """scripts/make_digits_coco.py as a module."""
    spec = importlib.util.spec_from_file_location("make_digits_coco", ROOT / "scripts" / "make_digits_coco.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def scenes(scenes_script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve training and six held-out scenes in both formats."""
    out = tmp_path_factory.mktemp("digits")
    scenes_script.make(out, train=12, val=6, size=96, seed=0)
    return out


@pytest.fixture
def digits_options(scenes: Path) -> list[str]:
    """Overrides that make a digits config run in seconds."""
    coco = f"{scenes}/coco/"
    steps = [f"{split}_dataloader.dataset.data_root={coco}" for split in ("train", "val", "test")]
    files = [f"{split}_evaluator.ann_file={coco}annotations/val.json" for split in ("val", "test")]
    return [*steps, *files, "train_cfg.max_epochs=1", "train_cfg.val_interval=1", "train_dataloader.batch_size=4"]


@pytest.fixture
def build() -> Any:
    """`build("ba_net_faster_rcnn", {"model.backbone.attention": "ba"})` gives (model, config)."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    import detection  # noqa: F401
    from detection import cli

    def made(config: str, options: dict[str, Any] | None = None) -> Any:
        from mmengine.config import Config

        cfg = Config.fromfile(str(cli.find(config)))
        cli.merge(cfg, options or {})
        init_default_scope("mmdet")
        return MODELS.build(cfg.model), cfg

    return made
