"""Training and testing from end to end, on a few scenes; and what is said when something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import detection_fixtures
import numpy as np
import pytest
import torch
from commands import ROOT, call
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from pycocotools import mask as coco_masks

from detection import cli, test, train
from detection.runner import AttentionRunner, BadData

pytest_plugins = [detection_fixtures.__name__]


def run(*arguments: str, ranks: int = 1, cwd: Path = ROOT, timeout: float = 600) -> subprocess.CompletedProcess:
    return call(list(arguments), ranks, timeout, {"PYTHONPATH": str(ROOT)}, cwd)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `train` or `test` in this process, so that imports are paid once. Returns (exit code, last line)."""

    def call(tool: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [tool, *arguments])
        code = 0
        try:
            cli.run({"train": train.main, "test": test.main}[tool])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        lines = [line for line in capsys.readouterr().err.splitlines() if line]
        return code, lines[-1] if lines else ""

    return call


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    """All that MMEngine wrote down, in order."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_train_and_test_mask_rcnn_with_ba(tmp_path: Path, digits_options: list[str]) -> None:
    options = ["--cfg-options", *digits_options, "model.backbone.attention=ba"]
    trained = run("detection/train.py", "digits_mask_rcnn", "--work-dir", str(tmp_path), *options)
    assert trained.returncode == 0, trained.stderr
    entries = scalars(tmp_path)
    assert all(np.isfinite(entry["loss"]) for entry in entries if "loss" in entry)
    assert {"coco/bbox_mAP_50", "coco/segm_mAP_50"} <= set(entries[-1])
    tested = run(
        "detection/test.py", "digits_mask_rcnn", str(tmp_path / "epoch_1.pth"), "--work-dir", str(tmp_path / "test"),
        "--show-dir", "pictures", *options,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stderr
    assert len(list((tmp_path / "test").glob("*/pictures/*.jpg"))) == 6
    results = [json.loads(p.read_text()) for p in (tmp_path / "test").glob("*/*.json")]
    # Testing the checkpoint gives what validation gave while training.
    for key in ("coco/bbox_mAP_50", "coco/segm_mAP_50"):
        assert results[0][key] == entries[-1][key]


def test_resume_continues_and_refuses_another_detector(tmp_path: Path, digits_options: list[str], in_process: Any) -> None:
    options = ["--work-dir", str(tmp_path), "--cfg-options", *digits_options, "train_cfg.val_interval=9"]
    assert in_process("train", "digits_faster_rcnn", *options)[0] == 0
    assert in_process("train", "digits_faster_rcnn", "--resume", *options, "train_cfg.max_epochs=2")[0] == 0
    content = torch.load(tmp_path / "epoch_2.pth", weights_only=False)
    assert (content["meta"]["epoch"], content["meta"]["iter"]) == (2, 6)
    code, line = in_process("train", "digits_faster_rcnn", "--resume", *options, "model.backbone.attention=se")
    assert code == 2
    assert "is of another detector than the config" in line


UNUSED = ["block._target_=attn.modules.dca.DCA", "block.base._target_=attn.modules.se.SE", "block.unused=True"]
CRITIC = ["block._target_=attn.modules.dreal.DREAL"]


@pytest.mark.slow
@pytest.mark.parametrize("slots", [UNUSED, CRITIC], ids=["unused", "critic"])
def test_two_ranks_train_what_holds_idle_parameters(tmp_path: Path, digits_options: list[str], slots: list[str]) -> None:
    attention = ["model.backbone.attention=None", *(f"model.backbone.attention.{slot}" for slot in slots)]
    options = [*digits_options, *attention, "train_dataloader.batch_size=2", "train_cfg.val_interval=9"]
    result = run("detection/train.py", "digits_faster_rcnn", "--work-dir", str(tmp_path), "--cfg-options", *options, ranks=2)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "epoch_1.pth").is_file()


def test_mmdetections_own_tool_trains(tmp_path: Path, digits_options: list[str]) -> None:
    import mmdet

    tool = Path(mmdet.__file__).parent / ".mim" / "tools" / "train.py"
    config = ROOT / "detection" / "configs" / "digits_faster_rcnn.py"
    options = ["--cfg-options", *digits_options, "model.backbone.attention=se", "train_cfg.val_interval=9"]
    result = run(str(tool), str(config), "--work-dir", str(tmp_path / "out"), *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    keys = torch.load(tmp_path / "out" / "epoch_1.pth", weights_only=False)["state_dict"]
    assert any(".se." in key for key in keys)


def small(scenes: Path, tmp_path: Path, **options: Any) -> Config:
    """A config of one short epoch on a few scenes."""
    cfg = Config.fromfile(str(ROOT / "detection" / "configs" / "digits_faster_rcnn.py"))
    coco = f"{scenes}/coco/"
    cfg.work_dir = str(tmp_path)
    for part in ("train", "val", "test"):
        cfg[f"{part}_dataloader"].dataset.data_root = coco
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = f"{coco}annotations/val.json"
    cfg.train_cfg.update(max_epochs=1, val_interval=9)
    cfg.train_dataloader.batch_size = 4
    cfg.experiment_name = tmp_path.name
    cfg.merge_from_dict(options)
    return cfg


def test_a_step_changes_the_detector_and_nothing_frozen(scenes: Path, tmp_path: Path) -> None:
    options = {"model.backbone.attention": "ba", "model.backbone.frozen_stages": 1, "model.backbone.norm_eval": True}
    options["model.backbone.zero_init_last"] = False
    runner = AttentionRunner.from_cfg(small(scenes, tmp_path, **options))
    runner.model.init_weights()
    runner._init_model_weights = lambda: None
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    trained = {name for name, parameter in runner.model.named_parameters() if parameter.requires_grad}
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trained), name
    frozen = set(before) - trained
    assert any(name.startswith("backbone.model.layer1.0.se") for name in frozen)


def edited(scenes: Path, tmp_path: Path, split: str, change: Any) -> Path:
    """A copy of the annotations with a change."""
    folder = tmp_path / "edited"
    shutil.copytree(scenes / "coco", folder / "coco")
    path = folder / "coco" / "annotations" / f"{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


def test_empty_images_and_boxes_over_the_border_train(scenes: Path, tmp_path: Path) -> None:
    def change(content: Any) -> None:
        keep = [a for a in content["annotations"] if a["image_id"] > 3]  # three images without an object
        keep[0]["bbox"] = [-20, -30, 60, 70]
        keep[1]["bbox"] = [500, 500, 10, 10]
        content["annotations"] = keep

    runner = AttentionRunner.from_cfg(small(edited(scenes, tmp_path, "train", change), tmp_path))
    runner.train()
    dataset = runner.train_dataloader.dataset
    assert len(dataset) == 12
    assert sum(not dataset.get_data_info(i)["instances"] for i in range(12)) >= 3


def test_missing_annotations_are_named(scenes: Path, tmp_path: Path) -> None:
    cfg = small(scenes, tmp_path, **{"train_dataloader.dataset.ann_file": "annotations/trian.json"})
    with pytest.raises(BadData, match=r"trian.json: no such file .*annotations exists\); set data_root or ann_file"):
        AttentionRunner.from_cfg(cfg).train()


def test_other_categories_are_named(scenes: Path, tmp_path: Path) -> None:
    def rename(content: Any) -> None:
        content["categories"][3]["name"] = "three"

    folder = edited(scenes, tmp_path, "train", rename)
    with pytest.raises(BadData, match=r"has 9 of the 10 classes of the config \(0, 1, 2, 3, \.\.\.\)"):
        AttentionRunner.from_cfg(small(folder, tmp_path)).train()


def test_another_number_of_classes_is_named(scenes: Path, tmp_path: Path) -> None:
    cfg = small(scenes, tmp_path, **{"model.roi_head.bbox_head.num_classes": 80})
    with pytest.raises(BadData, match=r"predicts 80 classes, the data has 10 .* model.roi_head.bbox_head.num_classes=10"):
        AttentionRunner.from_cfg(cfg).train()


def test_data_without_an_object_is_refused(scenes: Path, tmp_path: Path) -> None:
    folder = edited(scenes, tmp_path, "train", lambda content: content.update(annotations=[]))
    cfg = small(folder, tmp_path, **{"train_dataloader.dataset.filter_cfg.filter_empty_gt": True})
    with pytest.raises(BadData, match="no image is left"):
        AttentionRunner.from_cfg(cfg).train()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "no_such_config", "--cfg-options"], "unknown config 'no_such_config'"),
        (["train", "digits_faster_rcnn", "--cfg-options", "model.backbone.attention=sse"], "did you mean 'se'"),
        (["train", "digits_faster_rcnn", "--cfg-options", "model.backbone=3"], "model.backbone=3: must be a mapping"),
        (["train", "digits_faster_rcnn", "--cfg-options", "=3"], "a key is missing"),
        (["train", "digits_faster_rcnn", "--cfg-options", "foo.bar=3"], "foo.bar=3: unknown key 'foo'"),
        (["train", "digits_faster_rcnn", "--cfg-options", "data_root=/x"], "data_root=/x: changes nothing"),
        (["train", "digits_faster_rcnn", "--cfg-options", "load_from=3"], "load_from=3: must be the path"),
        (["train", "digits_faster_rcnn", "--cfg-options", "resume=foo"], "resume=foo: must be True or False"),
        (["train", "digits_faster_rcnn", "--cfg-options", "param_scheduler=3"], "param_scheduler=3: must be a list"),
        (["train", "digits_faster_rcnn", "--cfg-options", "train_cfg.max_epochs=abc"], "max_epochs=abc: must be a number"),
        (["train", "digits_faster_rcnn", "--cfg-options", "train_cfg.max_epochs=-1"], "max_epochs=-1: must be 1 or more"),
        (["train", "digits_faster_rcnn", "--cfg-options", "val_evaluator=3"], "val_evaluator=3: must be a mapping"),
        (
            ["train", "digits_faster_rcnn", "--logger", "wandb", "--cfg-options", "visualizer=3"],
            "visualizer=3: must be a mapping",
        ),
        (["train", "digits_faster_rcnn", "--amp", "--cfg-options", "optim_wrapper=3"], "optim_wrapper=3: must be a mapping"),
        (["train", "digits_faster_rcnn", "--auto-scale-lr", "--cfg-options", "auto_scale_lr=3"], "auto_scale_lr=3: must be"),
        (["train", "digits_faster_rcnn", "--cfg-options"], "data/absent/annotations/train.json: no such file"),
        (["test", "digits_faster_rcnn", "absent.pth", "--cfg-options"], "checkpoint absent.pth: no such file"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, in_process: Any
) -> None:
    # MMEngine keeps its visualizers by the name of the experiment, which else is the second in which it began.
    options = ["train_dataloader.dataset.data_root=data/absent/", f"work_dir={tmp_path}", f"experiment_name={tmp_path.name}"]
    code, line = in_process(*arguments, *options)
    assert code == 2
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("config", "option", "missing"),
    [
        ("digits_faster_rcnn", "model.backbone.attention=se", "backbone.model.layer1.0.se"),
        ("digits_mask_rcnn", "model.backbone.attention=None", "roi_head.mask_head"),
    ],
)
def test_testing_with_weights_of_another_detector_is_refused(
    config: str, option: str, missing: str, tmp_path: Path, build: Any, digits_options: list[str], in_process: Any
) -> None:
    model, _ = build("digits_faster_rcnn")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "plain.pth")
    options = ["--work-dir", str(tmp_path), "--cfg-options", *digits_options, option]
    code, line = in_process("test", config, str(tmp_path / "plain.pth"), *options)
    assert code == 2
    assert "is of another detector than the config: keys" in line
    assert missing in line


@pytest.mark.parametrize(
    ("row", "command"),
    [
        (
            "ba_net_faster_rcnn_r50_se",
            "python train.py backbone=resnet50 attention=se data=imagenet schedule=ba_net attention.block.bias=false"
            " 'data.crop_scale=[0.1,1.0]' 'data.crop_ratio=[0.8,1.25]'"
            " 'run_dir=runs/resnet50-se-bias_false-ba_net_fcanet/seed${seed}'",
        ),
        (
            "ba_net_mask_rcnn_r101_ba_v2",
            "run_dir=runs/resnet101-ba_v2-ba_net_v2/seed${seed}'",
        ),
    ],
)
def test_missing_pretrained_weights_name_the_command_that_makes_them(
    row: str, command: str, tmp_path: Path, in_process: Any
) -> None:
    code, line = in_process("train", row, "--work-dir", str(tmp_path))
    assert code == 2
    assert line.startswith("error: checkpoint runs/")
    assert "/seed0/best.pt: no such file; it is made by: python train.py " in line
    assert line.endswith(command)


def test_tensorboard_is_written_for_each_of_two_runs(tmp_path: Path, digits_options: list[str], in_process: Any) -> None:
    for work_dir in (tmp_path / "first", tmp_path / "second"):
        options = ["--work-dir", str(work_dir), "--cfg-options", *digits_options, "train_cfg.val_interval=9"]
        assert in_process("train", "digits_faster_rcnn", "--logger", "tensorboard", *options) == (0, "")
        assert list(work_dir.glob("*/vis_data/events.out.tfevents.*"))


@pytest.mark.parametrize(("name", "extra"), [("tensorboard", "detection"), ("wandb", "wandb")])
def test_a_logger_that_is_not_installed_is_named(
    name: str, extra: str, tmp_path: Path, in_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    code, line = in_process("train", "digits_faster_rcnn", "--logger", name, "--work-dir", str(tmp_path))
    assert (code, line) == (2, f"error: --logger {name} needs the package {name}: pip install 'attn[{extra}]'")


def test_wandb_and_tensorboard_are_mmengines(tmp_path: Path) -> None:
    parser = cli.parser("")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--auto-scale-lr", action="store_true")
    parser.add_argument("--resume")
    parser.add_argument("--logger", action="append", default=[])
    args = parser.parse_args(["digits_faster_rcnn", "--logger", "wandb", "--logger", "tensorboard", "--amp"])
    cfg = cli.load(args)
    train.apply(cfg, args)
    kinds = [backend["type"] for backend in cfg.visualizer.vis_backends]
    assert kinds == ["LocalVisBackend", "WandbVisBackend", "TensorboardVisBackend"]
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"


def test_scenes_are_a_function_of_their_arguments(scenes: Path, scenes_script: ModuleType, tmp_path: Path) -> None:
    scenes_script.make(tmp_path / "again", train=14, val=6, size=96, seed=0)
    for split in ("train", "val"):
        old = json.loads((scenes / "coco" / "annotations" / f"{split}.json").read_text())
        new = json.loads((tmp_path / "again" / "coco" / "annotations" / f"{split}.json").read_text())
        assert new["annotations"][: len(old["annotations"])] == old["annotations"]


def test_annotations_agree_with_their_masks(scenes: Path) -> None:
    kinds = set()
    for split in ("train", "val"):
        content = json.loads((scenes / "coco" / "annotations" / f"{split}.json").read_text())
        for annotation in content["annotations"]:
            runs = annotation["segmentation"]
            encoded = coco_masks.frPyObjects(runs, *runs["size"])
            mask = coco_masks.decode(encoded)
            assert mask.sum() == annotation["area"] > 0
            assert list(coco_masks.toBbox(encoded)) == annotation["bbox"]
            kinds.add("crowd" if annotation["iscrowd"] else "tiny" if max(annotation["bbox"][2:]) < 10 else "usual")
    assert kinds == {"crowd", "tiny", "usual"}


@pytest.mark.parametrize("area", [np.zeros((3, 4), bool), np.ones((3, 4), bool), np.eye(4, dtype=bool)])
def test_run_lengths_are_cocos(area: np.ndarray, scenes_script: ModuleType) -> None:
    runs = scenes_script.run_lengths(area)
    assert np.array_equal(coco_masks.decode(coco_masks.frPyObjects(runs, *area.shape)).astype(bool), area)


def test_voc_format_says_the_same_as_coco(scenes: Path) -> None:
    import detection  # noqa: F401

    init_default_scope("mmdet")
    classes = tuple("0123456789")
    common = {"metainfo": {"classes": classes}, "test_mode": True, "pipeline": []}
    coco = DATASETS.build(
        {"type": "CocoDataset", "ann_file": f"{scenes}/coco/annotations/val.json", "data_prefix": {"img": ""}, **common}
    )
    voc = DATASETS.build(
        {
            "type": "VOCDataset",
            "data_root": f"{scenes}/VOCdevkit",
            "ann_file": "VOC2007/ImageSets/Main/test.txt",
            "data_prefix": {"sub_data_root": "VOC2007/"},
            **common,
        }
    )
    assert len(coco) == len(voc) == 6
    for i in range(6):
        a, b = coco.get_data_info(i)["instances"], voc.get_data_info(i)["instances"]
        assert [x["bbox_label"] for x in a] == [x["bbox_label"] for x in b]
        assert [x["ignore_flag"] for x in a] == [x["ignore_flag"] for x in b]
        for x, y in zip(a, b, strict=True):
            # VOC's last pixel is inside the box, COCO's end is after it.
            assert [y["bbox"][0], y["bbox"][1], y["bbox"][2] + 1, y["bbox"][3] + 1] == x["bbox"]


def test_held_out_scenes_hold_held_out_digits(scenes_script: ModuleType) -> None:
    train, held_out = scenes_script.Digits(False), scenes_script.Digits(True)
    assert len(train.images) + len(held_out.images) == 1797
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in held_out.images)
