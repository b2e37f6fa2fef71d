"""TensorBoard, the speed in steps.jsonl, and the record of who trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from commands import TINY

from attn.config.schema import Config, Logger
from attn.runs.metrics import append_metrics
from attn.runs.starts import STARTS, read_starts
from attn.runs.steps import STEPS, StepLog, read_steps, rewind_steps
from attn.runs.tensorboard import FOLDER, TensorBoard


def config(every: int = 2) -> Config:
    return Config(backbone={}, attention={}, log_every=every, logger=Logger(tensorboard=True))


def shown(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of the whole folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run_dir / FOLDER))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]


def log_steps(run_dir: Path, first: int, last: int, loss: float) -> None:
    log = StepLog(run_dir, every=2)
    for step in range(first, last + 1):
        log.add(step, images=8, seconds=0.25, loss=loss, lr=0.1)
    log.flush()


def test_a_continued_run_shows_each_step_once(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, 6, loss=3.0)
    killed = TensorBoard(config(), tmp_path)
    killed.update()
    assert shown(tmp_path, "step/loss") == [(2, 3.0), (4, 3.0), (6, 3.0)]
    rewind_steps(tmp_path, 3)
    log_steps(tmp_path, 4, 6, loss=1.0)
    append_metrics(tmp_path, [{"epoch": 1, "step": 6, "val_top1": 50.0, "val_loss": None}])
    continued = TensorBoard(config(), tmp_path)
    continued.update()
    append_metrics(tmp_path, [{"epoch": 2, "step": 12, "val_top1": 60.0}])
    continued.finish()
    assert shown(tmp_path, "step/loss") == [(2, 3.0), (4, 1.0), (6, 1.0)]
    assert shown(tmp_path, "step/images_per_second") == [(2, 32.0), (4, 32.0), (6, 32.0)]
    assert shown(tmp_path, "epoch/val_top1") == [(6, 50.0), (12, 60.0)]


def test_a_missing_package_is_told_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log_steps(tmp_path, 1, 2, loss=3.0)
    mirror = TensorBoard(config(), tmp_path)
    mirror.update()
    mirror.finish()
    said = capsys.readouterr().err
    assert said.count("warning: TensorBoard is off") == 1
    assert "pip install 'attn[tensorboard]'" in said


def test_the_speed_is_that_of_the_steps_since_the_last_measurement(tmp_path: Path) -> None:
    log = StepLog(tmp_path, every=2)
    for step, seconds in enumerate((1.0, 3.0, 0.5, 0.5), 1):
        log.add(step, images=8, seconds=seconds)
    log.flush()
    assert [row.get("images_per_second") for row in read_steps(tmp_path)] == [None, 4.0, None, 16.0]


def test_a_run_says_who_trained_it_and_what_is_left(tmp_path: Path, in_process) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is an optional package")
    run_dir = tmp_path / "run"
    command = ["train.py", *TINY, "logger=tensorboard", "data.image_size=16", "data.test_resize=16", "schedule.epochs=2"]
    command += ["log_every=4", "schedule.batch_size=256", "device=cpu", f"run_dir={run_dir}"]
    done = in_process(command)
    assert done.returncode == 0, done.stderr
    epochs = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    assert [line.endswith(" left") for line in epochs] == [True, False]
    (start,) = read_starts(run_dir)
    assert start["command"].startswith("python train.py data=digits")
    assert (start["step"], start["ranks"]) == (0, 1)
    assert {"attn", "torch", "timm", "git", "python"} <= set(start["versions"])
    rows = read_steps(run_dir)
    assert [row["step"] for row in rows if "images_per_second" in row] == [4, 8]
    assert [step for step, _ in shown(run_dir, "step/images_per_second")] == [4, 8]
    assert [step for step, _ in shown(run_dir, "epoch/val_top1")] == [5, 10]
    with open(run_dir / STARTS, "a") as file:
        file.write('{"time": "cut o')
    assert read_starts(run_dir) == [start]
    assert [json.loads(line) for line in (run_dir / STEPS).read_text().splitlines()] == rows
