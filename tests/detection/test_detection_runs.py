"""Runs of detectors are found by what they trained, with the AP that they reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import detection_fixtures
import pytest
from mmengine.config import Config

from attn import tables
from detection import runs

pytest_plugins = [detection_fixtures.__name__]
CONFIGS = detection_fixtures.CONFIGS
ROWS = {row.id: row for row in tables.load_rows()}


def fake_run(work_dir: Path, row: str, starts: list[list[dict[str, Any]]], **options: Any) -> None:
    """What MMEngine leaves in a work directory: per start a folder with config and scalars."""
    build = ROWS[row].build
    assert build is not None
    cfg = Config.fromfile(str(CONFIGS / f"{build.detector}.py"))
    cfg.work_dir = str(work_dir)
    cfg.merge_from_dict({"train_dataloader.dataset.data_root": "/elsewhere/", "train_dataloader.num_workers": 9})
    cfg.merge_from_dict(options)
    for i, entries in enumerate(starts):
        folder = work_dir / f"2026010{i}_000000" / "vis_data"
        folder.mkdir(parents=True)
        cfg.dump(str(folder / "config.py"))
        lines = [{"loss": 1.0, "epoch": 1, "step": 50}, *entries]
        (folder / "scalars.json").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"loss": 0.')


def evaluation(epoch: int, boxes: float, masks: float | None = None) -> dict[str, Any]:
    return {"coco/bbox_mAP": boxes, **({} if masks is None else {"coco/segm_mAP": masks}), "step": epoch}


def judged(row: str, directory: Path) -> tables.Result:
    found = runs.matching(runs.find(directory), ROWS[row])
    return tables.judge(ROWS[row], tables.Measured(1, 1, 1), found)


def reached(row: str, directory: Path) -> dict[str, float]:
    return {score.metric: round(score.mean, 6) for score in judged(row, directory).scores}


def test_boxes_and_masks_of_one_run_stand_in_their_tables(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", "ba_net/5/15", [[evaluation(11, 0.41, 0.37), evaluation(12, 0.405, 0.366)]])
    assert reached("ba_net/5/15", tmp_path) == {"AP": 40.5}
    assert reached("ba_net/6/5", tmp_path) == {"AP": 36.6}
    assert reached("ba_net/5/12", tmp_path) == {}  # SE
    assert reached("ba_net/5/5", tmp_path) == {}  # Faster R-CNN


def test_a_resumed_run_is_one_and_an_interrupted_one_is_shown_as_such(tmp_path: Path) -> None:
    fake_run(tmp_path / "whole", "ba_net/5/5", [[evaluation(1, 0.1), evaluation(2, 0.2)], [evaluation(12, 0.395)]])
    assert reached("ba_net/5/5", tmp_path) == {"AP": 39.5}
    fake_run(tmp_path / "part", "ba_net/5/1", [[evaluation(1, 0.1), evaluation(2, 0.2)]])
    assert judged("ba_net/5/1", tmp_path).reached == ["AP 20.00 (not finished, epoch 2)"]


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"optim_wrapper.optimizer.lr": 0.02}, "optim_wrapper.optimizer.lr: 0.01 -> 0.02"),
        (
            {"model.backbone.init_cfg.checkpoint": "other.pt"},
            "model.backbone.init_cfg.checkpoint: runs/resnet50-ba-ba_net_official/seed0/best.pt -> other.pt",
        ),
    ],
)
def test_another_recipe_is_shown_as_such(tmp_path: Path, options: dict[str, Any], difference: str) -> None:
    fake_run(tmp_path, "ba_net/5/5", [[evaluation(12, 0.395)]], **options)
    (run,) = runs.matching(runs.find(tmp_path), ROWS["ba_net/5/5"])
    assert (run.finished, run.differs) == (True, [difference])
    assert judged("ba_net/5/5", tmp_path).reached == ["AP 39.50 (other recipe)"]


def test_all_of_cocos_values_stand_beside_the_printed_ones(tmp_path: Path) -> None:
    """Boxes and masks of two seeds; where there are no small objects (-1), there is no value."""
    keys = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
    first, second = (0.380, 0.600, 0.410, -1.0, 0.420, 0.500), (0.384, 0.604, 0.418, -1.0, 0.422, 0.506)
    for seed, values in enumerate([first, second]):
        boxes = {f"coco/bbox_{key}": value for key, value in zip(keys, values, strict=True)}
        masks = {f"coco/segm_{key}": value / 2 for key, value in zip(keys, values, strict=True)}
        fake_run(tmp_path / str(seed), "ba2m/XV/1", [[{**boxes, **masks, "step": 24}]], randomness={"seed": seed})
    printed = ROWS["ba2m/XV/1"].metrics
    assert list(printed) == ["AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L"]
    result = judged("ba2m/XV/1", tmp_path)
    assert {run.seed for run in result.runs} == {0, 1}
    assert result.reached[0] == "2 seeds"
    assert reached("ba2m/XV/1", tmp_path) == {"AP": 38.2, "AP50": 60.2, "AP75": 41.4, "AP_M": 42.1, "AP_L": 50.3}
    (ap, *_) = result.scores
    assert ap.std == pytest.approx(0.4 / 2**0.5)
    assert ap.differences == pytest.approx(
        {"mean": 38.2 - printed["AP"], "median": 38.2 - printed["AP"], "best": 38.4 - printed["AP"]}
    )
    assert reached("ba2m/XVI/1", tmp_path) == {"AP": 19.1, "AP50": 30.1, "AP75": 20.7, "AP_M": 21.05, "AP_L": 25.15}


def test_voc_rows_have_vocs_ap_and_recall(tmp_path: Path) -> None:
    entry = {"pascal_voc/mAP": 0.8012, "pascal_voc/AP50": 0.801, "pascal_voc/recall": 0.931, "step": 4}
    fake_run(tmp_path / "a", "ba2m/IV/1", [[entry]])
    assert reached("ba2m/IV/1", tmp_path) == {"VOC mAP": 80.12, "Recall": 93.1}
    assert judged("ba2m/IV/1", tmp_path).reached[1:] == [
        "VOC mAP: printed 80.10, mean 80.12 (+0.02), median 80.12 (+0.02), best 80.12 (+0.02)",
        "Recall: printed 92.97, mean 93.10 (+0.13), median 93.10 (+0.13), best 93.10 (+0.13)",
    ]


def test_a_run_from_before_an_option_existed_is_found(tmp_path: Path) -> None:
    entry = {"pascal_voc/mAP": 0.81, "step": 4}
    for name, options in {"now": {"inference": "off"}, "old": {}, "other": {"inference": "sar"}}.items():
        options = {f"model.backbone.attention.stage.{key}": value for key, value in options.items()}
        fake_run(tmp_path / name, "ba2m/IV/3", [[entry]], **options)
    found = runs.matching(runs.find(tmp_path), ROWS["ba2m/IV/3"])
    assert {Path(run.path).name: run.differs for run in found} == {"now": [], "old": []}


def test_other_directories_do_no_harm(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", "ba_net/5/5", [[evaluation(12, 0.395)]])
    fake_run(tmp_path / "b", "ba_net/5/5", [[]])
    broken = tmp_path / "c" / "x" / "vis_data"
    broken.mkdir(parents=True)
    (broken / "scalars.json").write_text(json.dumps(evaluation(12, 0.5)) + "\n")
    (broken / "config.py").write_text("model = (")
    assert len(runs.find(tmp_path)) == 1


def test_a_row_is_found_by_what_a_real_run_leaves(tmp_path: Path, digits_options: list[str]) -> None:
    """MMEngine's own files, of a detector that no row has: read, and given to none."""
    from detection import cli

    parser = cli.parser("")
    args = parser.parse_args(["digits_faster_rcnn", "--work-dir", str(tmp_path), "--cfg-options", *digits_options])
    cli.build_runner(cli.load(args), "train").train()
    (found,) = runs.find(tmp_path)
    assert found.path == tmp_path
    assert list(found.scores) == [1]
    assert "coco/bbox_mAP" in found.scores[1]
    assert found.config["model"]["backbone"]["backbone"] == "resnet18"
    assert all(not runs.matching([found], row) for row in ROWS.values())
