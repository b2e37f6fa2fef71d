"""Every printed row has a config; recipes are as printed; overrides do what they say."""

from __future__ import annotations

from typing import Any

import detection_fixtures
import pytest
import torch
import yaml
from mmengine.config import Config

import attn
from attn import tables
from attn.errors import UserError
from detection import AttentionBackbone, cli
from detection.backbone import plain

pytest_plugins = [detection_fixtures.__name__]
CONFIGS = detection_fixtures.CONFIGS
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py"))
ROWS = sorted(path.stem for path in (CONFIGS / "rows").glob("*.py"))
SGD = {"type": "SGD", "momentum": 0.9, "weight_decay": 1e-4}
DETECTORS = {
    "faster_rcnn": "FasterRCNN",
    "mask_rcnn": "MaskRCNN",
    "cascade_rcnn": "CascadeRCNN",
    "retinanet": "RetinaNet",
}


@pytest.mark.parametrize("name", RECIPES + ROWS)
def test_every_config_builds_what_its_name_says(name: str, build: Any) -> None:
    with torch.device("meta"):
        model, cfg = build(name)
    kind = next(kind for key, kind in DETECTORS.items() if key in name)
    assert type(model).__name__ == kind
    assert cfg.runner_type == "AttentionRunner"
    assert model.neck.in_channels == list(model.backbone.channels)
    if name in ROWS:
        depth = "resnet101" if "_r101_" in name else "resnet50"
        assert cfg.model.backbone.backbone == depth
        # Frozen and trained by the mmdet's rules, as the printed parameters are counted.
        assert (cfg.model.backbone.frozen_stages, cfg.model.backbone.norm_eval) == (1, True)


def test_every_printed_row_names_its_config() -> None:
    named = []
    for path in sorted((detection_fixtures.ROOT / "configs" / "papers").glob("*.yaml")):
        for row in yaml.safe_load(path.read_text())["rows"]:
            if row.get("detector"):
                name = row["build"]["detector"]
                assert (CONFIGS / f"{name}.py").is_file(), (path.stem, row)
                assert name.startswith(f"rows/{path.stem}_")
                named.append(name)
    assert len(named) == 15 + 9 + 6 + 12 + 5 + 6


SOURCES = {
    row.build.detector: tables.pretraining(row)
    for row in tables.load_rows()
    if row.build is not None and row.build.detector is not None
}


@pytest.mark.parametrize("row", [row for row in ROWS if "_none" not in row and not row.startswith("aw_conv")])
def test_weights_of_the_imagenet_command_fit_the_row(row: str) -> None:
    """The printed command's network has the parameters of the row's backbone, by name and shape, and its classifier."""
    backbone = Config.fromfile(str(CONFIGS / "rows" / f"{row}.py")).model.backbone
    source = SOURCES.get(f"rows/{row}")
    if source is None:  # what no table prints
        command = tables.training_command(backbone.init_cfg.checkpoint)
        assert command is not None
        assert f"backbone={backbone.backbone} attention={backbone.attention} " in command
        return
    assert backbone.init_cfg.checkpoint == source.checkpoint()
    options = {key: value for key, value in backbone.items() if key not in ("type", "init_cfg")}
    with torch.device("meta"):
        own = AttentionBackbone(**options).model.state_dict()
    trained = {name: value for name, value in tables.network(source).state_dict().items() if not name.startswith("fc.")}
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in trained.items()}


@pytest.mark.parametrize("row", [row for row in ROWS if "_none" in row or row.startswith("aw_conv")])
def test_rows_without_attention_start_from_torchvision(row: str) -> None:
    backbone = Config.fromfile(str(CONFIGS / "rows" / f"{row}.py")).model.backbone
    assert backbone.get("attention") is None
    assert backbone.init_cfg.checkpoint == "torchvision://"


@pytest.mark.parametrize(
    ("recipe", "lr", "epochs", "steps", "batch"),
    [
        ("ba_net_faster_rcnn", 0.01, 12, [8, 11], 8),
        ("ba_net_mask_rcnn", 0.01, 12, [8, 11], 8),
        ("dcanet_retinanet", 0.01, 24, [18, 22], 16),
        ("dcanet_cascade_rcnn", 0.02, 24, [18, 22], 16),
        ("ba2m_faster_rcnn", 0.01, 24, [16, 22], 8),
        ("ba2m_mask_rcnn", 0.01, 24, [16, 22], 8),
        ("ba2m_voc_faster_rcnn", 0.01, 4, [3], 16),
        ("ba2m_voc_retinanet", 0.01, 4, [3], 16),
    ],
)
def test_recipes_are_as_printed(recipe: str, lr: float, epochs: int, steps: list[int], batch: int) -> None:
    cfg = Config.fromfile(str(CONFIGS / f"{recipe}.py"))
    optimizer = plain(cfg.optim_wrapper.optimizer)
    optimizer.pop("_scope_", None)
    assert optimizer == {**SGD, "lr": lr}
    assert cfg.train_cfg.max_epochs == epochs
    schedule = next(s for s in cfg.param_scheduler if s.type == "MultiStepLR")
    assert (schedule.milestones, schedule.end, schedule.gamma) == (steps, epochs, 0.1)
    assert cfg.auto_scale_lr.base_batch_size == batch
    assert "clip_grad" not in cfg.optim_wrapper


def test_voc_rows_are_what_the_tables_compare(build: Any) -> None:
    with torch.device("meta"):
        focal, _ = build("ba2m_voc_retinanet_r50_none")
        softmax, _ = build("ba2m_voc_retinanet_r50_ba2m")
        ohem, _ = build("ba2m_voc_faster_rcnn_r50_none_ohem")
    assert type(focal.bbox_head.loss_cls).__name__ == "FocalLoss"
    assert (type(softmax.bbox_head.loss_cls).__name__, softmax.bbox_head.use_sigmoid_cls) == ("CrossEntropyLoss", False)
    assert softmax.bbox_head.cls_out_channels == 21
    assert type(ohem.roi_head.bbox_sampler).__name__ == "OHEMSampler"


def test_overrides_reach_the_backbone(build: Any) -> None:
    options = {"model.backbone.attention": "ba", "model.backbone.backbone": "resnet101", "model.backbone.frozen_stages": 2}
    with torch.device("meta"):
        model, _ = build("ba_net_faster_rcnn", options)
        expected = attn.create_model("resnet101", "ba", num_classes=0)
    assert set(model.backbone.model.state_dict()) == set(expected.state_dict())
    assert not any(p.requires_grad for p in model.backbone.model.layer2.parameters())


def test_a_key_of_a_named_attention_is_explained() -> None:
    cfg = Config.fromfile(str(CONFIGS / "rows" / "ba_net_faster_rcnn_r50_ba.py"))
    with pytest.raises(UserError, match=r"is the name 'ba' in the config and has no keys: give a whole mapping"):
        cli.merge(cfg, {"model.backbone.attention.block.reduction": 8})
    whole = {"model.backbone.attention": None, "model.backbone.attention.block._target_": "attn.modules.se.SE"}
    cli.merge(cfg, whole)
    assert cfg.model.backbone.attention == {"block": {"_target_": "attn.modules.se.SE"}}


def test_configs_are_found_by_name_and_typos_are_answered() -> None:
    assert cli.find("ba_net_faster_rcnn") == CONFIGS / "ba_net_faster_rcnn.py"
    assert cli.find("ba_net_faster_rcnn_r50_ba") == CONFIGS / "rows" / "ba_net_faster_rcnn_r50_ba.py"
    with pytest.raises(UserError, match="did you mean 'ba_net_faster_rcnn'"):
        cli.find("ba_net_faster_rcn")


def test_pairings_of_a_recipe_do_not_share_a_directory() -> None:
    def directory(*arguments: str) -> str:
        return cli.load(cli.parser("").parse_args(list(arguments))).work_dir

    assert directory("ba_net_faster_rcnn") == "work_dirs/ba_net_faster_rcnn"
    options = ["--cfg-options", "model.backbone.attention=ba", "model.backbone.backbone=resnet101"]
    assert directory("ba_net_faster_rcnn", *options) == "work_dirs/ba_net_faster_rcnn-resnet101-ba"
    assert directory("ba_net_faster_rcnn", "--work-dir", "x") == "x"
