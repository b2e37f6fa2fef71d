"""What decides which epoch is the best and when a run ends, the scores for it, and what a run prints meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, TINY, call
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from attn.config.schema import METRICS
from attn.data import workers
from attn.evaluation.scores import ClassCounts
from attn.runs import directory
from attn.runs.steps import STEPS, StepLog, read_steps, rewind_steps
from attn.runs.wandb import wandb_mode
from attn.training.state import Best

labels_and_guesses = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(labels_and_guesses, st.integers(0, 40))
@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_scikit_learn_also_when_the_images_are_shared_out(pairs: list, cut: int) -> None:
    labels, guesses = np.array(pairs).T
    expected = {
        "balanced_accuracy": 100 * oracle.balanced_accuracy_score(labels, guesses),
        "macro_f1": 100 * oracle.f1_score(labels, guesses, average="macro", zero_division=0),
        "mcc": oracle.matthews_corrcoef(labels, guesses),
    }
    whole = ClassCounts.of(torch.tensor(guesses), torch.tensor(labels), 6)
    assert whole.scores() == pytest.approx(expected)
    parts = [ClassCounts.of(torch.tensor(guesses[s]), torch.tensor(labels[s]), 6) for s in (slice(cut), slice(cut, None))]
    summed = ClassCounts(*(sum(getattr(p, name) for p in parts) for name in ("labelled", "guessed", "hit")))
    assert summed.scores() == whole.scores()
    assert tuple(whole.scores()) == METRICS


def test_an_epoch_is_better_by_the_monitored_score() -> None:
    assert Best().beaten_by({"top1": 0.0})
    assert Best(50.0, 1).beaten_by({"top1": 50.1})
    assert not Best(50.0, 1).beaten_by({"top1": 50.0})
    by_loss = Best(50.0, 1, "loss", 0.7)
    assert by_loss.beaten_by({"top1": 1.0, "loss": 0.6})
    assert not by_loss.beaten_by({"top1": 99.0, "loss": 0.8})
    assert not by_loss.beaten_by({"loss": float("nan")})
    assert Best(50.0, 1, "loss", float("nan")).beaten_by({"loss": 9.0})
    assert Best(top1=50.0, epoch=1).state_dict() == {"top1": 50.0, "epoch": 1}  # checkpoints of earlier versions
    assert Best(**by_loss.state_dict()) == by_loss
    assert [Best(50.0, 3).outlasted(evaluated, 2) for evaluated in (3, 4, 5)] == [False, False, True]
    assert not Best(50.0, 1).outlasted(100, None)
    assert not Best().outlasted(100, 1)


SMALL = [
    *TINY,
    "data.image_size=16",
    "data.test_resize=16",
    "schedule.batch_size=512",
    "schedule.epochs=4",
    "schedule.warmup_epochs=0",
    "schedule.lr=1e-9",
]


def test_early_stopping_and_scores_on_two_ranks(tmp_path: Path, in_process) -> None:
    """Nothing is learned, so the second epoch is no better: the run is finished, and stays finished."""
    command = ["train.py", *SMALL, f"run_dir={tmp_path / 'run'}", "early_stop=1", "monitor=macro_f1", "metrics=[mcc]"]
    command += ["schedule.ema_decay=0", "log_every=1"]
    result = call(command, ranks=2)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    best = torch.load(tmp_path / "run/best.pt", weights_only=True)["best"]
    assert len(rows) == best["epoch"] + 1 < 4
    assert f"stopped early: no better macro_f1 in the 1 epochs after epoch {best['epoch']}" in result.stdout
    assert best["value"] == rows[best["epoch"] - 1]["ema_val_macro_f1"]
    assert {"val_mcc", "val_macro_f1", "ema_val_mcc"} <= set(rows[0])
    assert "val_balanced_accuracy" not in rows[0]
    steps = read_steps(tmp_path / "run")
    assert [row["step"] for row in steps] == list(range(1, rows[-1]["step"] + 1))
    assert steps[0]["loss"] == pytest.approx(rows[0]["train_loss"], abs=0.3)
    assert "lr 1.00e-09" in result.stdout
    assert " left\n" in result.stdout
    assert not (tmp_path / "run/previous.pt").exists()
    again = in_process(command)
    assert again.returncode == 0, again.stderr
    assert f"finished already: {len(rows)} epochs" in again.stdout
    assert read_steps(tmp_path / "run") == steps
    alone = in_process(
        ["eval.py", f"checkpoint={tmp_path / 'run/last.pt'}", "weights=raw", f"output={tmp_path / 'alone.json'}"]
    )
    assert alone.returncode == 0, alone.stderr
    saved = json.loads((tmp_path / "alone.json").read_text())
    assert {name: saved[name] for name in ("mcc", "macro_f1")} == {k: rows[-1][f"val_{k}"] for k in ("mcc", "macro_f1")}


def test_the_lines_of_steps_are_whole_and_go_back_with_the_checkpoint(tmp_path: Path, capsys) -> None:
    log = StepLog(tmp_path)
    for step in (1, 2, 3):
        log.add(step=step, loss=float("nan") if step == 2 else 0.5)
    log.flush()
    with open(tmp_path / STEPS, "a") as file:
        file.write('{"step": 4, "lo')
    rewind_steps(tmp_path, 2)
    assert (tmp_path / STEPS).read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'
    (tmp_path / STEPS).unlink()
    (tmp_path / STEPS).mkdir()  # a disk that refuses
    log.add(step=3)
    log.flush()
    log.flush()
    assert capsys.readouterr().err.count("the training goes on") == 1
    (tmp_path / STEPS).rmdir()
    log.flush()
    assert [row["step"] for row in read_steps(tmp_path)] == [3]


def test_a_failed_command_leaves_no_folder(tmp_path: Path, in_process) -> None:
    result = in_process(["train.py", *TINY, f"run_dir={tmp_path}/some/where/run", "schedule.batch_size=100000"])
    assert result.returncode == 2
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()

    def fail(folder: Path, *files: str) -> None:
        with directory.claim(folder):
            for name in files:
                (folder / name).touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail(tmp_path / "mine")
    with pytest.raises(KeyError):
        fail(tmp_path / "written", "metrics.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "written"]


def test_a_wrong_folder_is_told_before_torch_is_imported() -> None:
    code = (
        "import runpy, sys\nsys.argv = ['train.py', 'data.root=/no/such']\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as e:\n    print(e.code, 'torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout == "2 False\n"
    assert "data.root=/no/such: no such folder" in result.stderr


@pytest.mark.parametrize(("cores", "ranks", "expected"), [(2, "1", 2), (1, "1", 1), (64, "8", 4), (8, "4", 2), (2, "4", 1)])
def test_workers_are_bounded_by_the_cores(monkeypatch, cores: int, ranks: str, expected: int) -> None:
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert workers.worker_count(None) == expected
    assert workers.worker_count(7) == 7


def test_wandb_without_a_key_says_where_its_files_are(monkeypatch, capsys) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    assert wandb_mode(None, Path("runs/x")) == "offline"
    said = capsys.readouterr().err
    assert "offline: no key" in said
    assert "`wandb sync runs/x/wandb/*run-*`" in said
