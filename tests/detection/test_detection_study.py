"""Studies of detectors: their commands are of detection/train.py, and their pages follow from MMEngine's logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import ROOT

from attn.studies import study
from detection import cli, runs

STUDY = study.load("digits_detection")
RESULTS = ROOT / "docs" / "results"


def loaded(method: str, seed: int, folder: Path) -> cli.Config:
    parser = cli.parser("")
    parser.add_argument("--resume", action="store_true")
    return cli.load(parser.parse_args(STUDY.command(folder, method, seed)))


def test_every_run_is_another_detector_of_the_same_recipe(tmp_path: Path) -> None:
    configs = {method: loaded(method, 3, tmp_path) for method in STUDY.methods}
    attentions = {str(cfg.model.backbone.pop("attention")) for cfg in configs.values()}
    assert len(attentions) == len(configs) == 4
    folders = [cfg.pop("work_dir") for cfg in configs.values()]
    assert folders == [str(STUDY.folder(tmp_path, method, 3)) for method in configs]
    assert len({str(cfg.to_dict()) for cfg in configs.values()}) == 1
    assert {cfg.randomness.seed for cfg in configs.values()} == {3}
    assert set(STUDY.scores) <= set(runs.BOXES)


def write_log(start: Path, epochs: dict[int, float], seconds: float) -> None:
    """The files of one start, as MMEngine leaves them."""
    (start / "vis_data").mkdir(parents=True)
    (start / "vis_data" / "config.py").write_text("train_dataloader = dict(batch_size=8)")
    lines = []
    for epoch, ap in epochs.items():
        lines += [{"loss": 1.0, "time": seconds * scale, "epoch": epoch, "iter": 20, "step": 20} for scale in (1, 1, 9)]
        lines.append(
            {"coco/bbox_mAP": ap, "coco/bbox_mAP_50": ap + 0.1, "coco/bbox_mAP_m": -1.0, "time": 9.0, "step": epoch}
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (start / "vis_data" / "scalars.json").write_text(text + '{"loss": 0.')


def test_a_run_that_was_continued_is_read_as_one(tmp_path: Path) -> None:
    write_log(tmp_path / "20260101_000000", {1: 0.2, 2: 0.3}, 0.5)
    write_log(tmp_path / "20260101_000100", {2: 0.4}, 0.25)
    first, second = runs.epochs(tmp_path)
    assert first == pytest.approx({"epoch": 1, "val_AP": 20, "val_AP50": 30, "images_per_second": 16})
    assert (second["epoch"], second["val_AP"]) == (2, pytest.approx(40))
    assert runs.epochs(tmp_path / "nothing") == []


def test_the_published_page_follows_from_the_published_metrics(tmp_path: Path, in_process) -> None:
    page = RESULTS / "digits_detection.md"
    made = in_process(
        ["scripts/results.py", "table", "digits_detection", "--runs", str(RESULTS / "raw"), "--out", str(tmp_path)]
    )
    assert made.returncode == 0, made.stderr
    assert (tmp_path / page.name).read_text() == page.read_text()
