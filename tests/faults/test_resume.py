"""A run that was killed and continued is the uninterrupted run, bit for bit."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_harness import PER_EPOCH, RICH, STEPS, TINY, Run, compose_config, finished
from fault_injection import signal_in_evaluation, signal_in_save, signal_in_step

from attn.data.loader import train_data
from attn.distributed import Ranks
from attn.runs import checkpoint, directory, metrics
from attn.runs.fingerprint import fingerprint

Reference = Callable[[int], str]
KILLED = [-9]
EVERY_STEP = "save_every_steps=1"


def test_the_same_run_twice_with_other_workers(tmp_path: Path, uninterrupted: Reference) -> None:
    finished(tmp_path / "run", "data.workers=2", base=RICH)
    assert fingerprint(tmp_path / "run") == uninterrupted(1)


@pytest.mark.parametrize(
    ("fault", "save_steps"),
    [
        pytest.param(signal_in_step(4), None, id="mid-epoch"),
        pytest.param(signal_in_step(4), 1, id="mid-epoch, saved every step"),
        pytest.param(signal_in_step(0), None, id="first step"),
        pytest.param(signal_in_step(PER_EPOCH - 1), 1, id="last step of an epoch"),
        pytest.param(signal_in_evaluation(1), None, id="evaluation"),
        pytest.param(signal_in_evaluation(2), None, id="evaluation of the averaged weights"),
        pytest.param(signal_in_evaluation(3), None, id="last evaluation"),
        pytest.param(signal_in_save(4, "after"), None, id="after the last save"),
    ],
)
def test_killed_and_continued_with_other_workers(
    tmp_path: Path, uninterrupted: Reference, fault: Callable[[], None], save_steps: int | None
) -> None:
    options = [] if save_steps is None else [f"save_every_steps={save_steps}"]
    killed = Run(tmp_path / "run", "data.workers=2", *options, base=RICH, faults=[fault])
    assert killed.wait() == KILLED
    assert not (tmp_path / "run" / directory.DONE).exists()
    assert killed.leftovers() == []
    finished(tmp_path / "run", "data.workers=1", base=RICH)
    assert fingerprint(tmp_path / "run") == uninterrupted(1)


def test_killed_again_and_again(tmp_path: Path, uninterrupted: Reference) -> None:
    for step in range(1, STEPS):
        assert Run(tmp_path / "run", "data.workers=0", EVERY_STEP, base=RICH, faults=[signal_in_step(step)]).wait() == KILLED
    finished(tmp_path / "run", "data.workers=0", base=RICH)
    assert fingerprint(tmp_path / "run") == uninterrupted(1)


def test_killed_in_the_last_evaluation_only_evaluates(tmp_path: Path) -> None:
    assert Run(tmp_path / "run", faults=[signal_in_evaluation(2)]).wait() == KILLED
    again = finished(tmp_path / "run")
    assert f"continuing from {tmp_path / 'run' / 'last.pt'} at step {STEPS} of {STEPS}" in again.text
    assert "step 6/6" not in again.text
    assert [row["epoch"] for row in metrics.read_metrics(tmp_path / "run")] == [1, 2]


def test_two_ranks_killed(tmp_path: Path, uninterrupted: Reference) -> None:
    options = ("data.workers=1", EVERY_STEP)
    killed = Run(tmp_path / "run", *options, base=RICH, ranks=2, faults=[signal_in_step(4)])
    assert killed.wait() == 2 * KILLED
    assert killed.leftovers() == []
    finished(tmp_path / "run", "data.workers=0", base=RICH, ranks=2)
    assert fingerprint(tmp_path / "run") == uninterrupted(2)


def test_samples_of_a_step_do_not_depend_on_the_ranks(tmp_path: Path) -> None:
    cfg = compose_config(TINY, tmp_path / "run")
    cpu = torch.device("cpu")
    seen: dict[int, list[set[Any]]] = {}
    for world in (1, 2, 4):
        ranks = [Ranks(rank, world, cpu) for rank in range(world)]
        data = [train_data(cfg.data, 8, 1, 0, r) for r in ranks]
        per_step = [[d.keys(step, r)[0] for d, r in zip(data, ranks, strict=True)] for step in range(STEPS)]
        assert all(sum(map(len, parts)) == 8 for parts in per_step)
        seen[world] = [set(functools.reduce(operator.iadd, parts, [])) for parts in per_step]
    assert seen[1] == seen[2] == seen[4]
    for epoch in range(2):
        steps = seen[1][epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH]
        assert set.union(*steps) == {(epoch, index) for index in range(24)}


def test_continued_on_one_rank_instead_of_two(tmp_path: Path) -> None:
    # Normalisation over the images of a rank depends on their number; without it only the order of sums does.
    free = ("+backbone.norm_layer=groupnorm1", "attention=se", "attention.block.reduction=2")
    finished(tmp_path / "one", *free)
    both = Run(tmp_path / "two", *free, EVERY_STEP, ranks=2, faults=[signal_in_step(4)])
    assert both.wait() == 2 * KILLED
    finished(tmp_path / "two", *free)
    one, two = (checkpoint.read(tmp_path / name / "last.pt")["model"] for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=0)
    rows = [metrics.read_metrics(tmp_path / name) for name in ("one", "two")]
    assert [row["train_loss"] for row in rows[1]] == pytest.approx([row["train_loss"] for row in rows[0]], abs=1e-6)


def test_a_worse_epoch_after_resume_leaves_the_best(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert Run(run_dir, faults=[signal_in_step(PER_EPOCH)]).wait() == KILLED
    content = checkpoint.read(run_dir / "last.pt")
    content["best"] = {"top1": 99.0, "epoch": 1}
    checkpoint.save(content, run_dir, best=True)
    before = (run_dir / "best.pt").read_bytes()
    finished(run_dir, "logger=csv", "logger.plot=false")
    assert (run_dir / "best.pt").read_bytes() == before
    assert checkpoint.read(run_dir / "last.pt")["best"] == {"top1": 99.0, "epoch": 1}
    lines = (run_dir / "metrics.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["epoch", "1", "2"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            ["attention=se", "attention.block.reduction=2"],
            "attention.block._target_: attn.modules.eca.ECA -> attn.modules.se.SE",
        ),
        (["data.num_classes=6"], "data.num_classes: 8 -> 6"),
        (["schedule.optimizer=adamw"], "schedule.optimizer: sgd -> adamw"),
        (["schedule.epochs=3"], "schedule.epochs: 2 -> 3"),
        (["seed=1"], "seed: 0 -> 1"),
    ],
)
def test_another_config_is_refused_by_name(stopped: Path, change: list[str], named: str) -> None:
    before = fingerprint(stopped)
    refused = Run(stopped, *change)
    assert refused.wait() == [2]
    assert named in refused.text
    assert "force=true" in refused.text
    assert fingerprint(stopped) == before


def test_settings_that_keep_the_result_may_change(stopped: Path) -> None:
    changes = ["data.workers=1", "log_every=7", "save_every_steps=2", "nonfinite=skip", "data.on_error=replace"]
    again = Run(stopped, *changes, "logger=csv", "logger.plot=false", "dist_timeout=60")
    assert again.wait() == [0], again.text


def test_a_run_whose_rate_does_not_depend_on_its_length_may_grow(tmp_path: Path) -> None:
    finished(tmp_path / "long", "schedule.curve=constant", "schedule.epochs=2")
    finished(tmp_path / "grown", "schedule.curve=constant", "schedule.epochs=1")
    finished(tmp_path / "grown", "schedule.curve=constant", "schedule.epochs=2")
    assert fingerprint(tmp_path / "grown") == fingerprint(tmp_path / "long")


def test_force_goes_on_with_another_config(stopped: Path) -> None:
    again = finished(stopped, "schedule.lr=0.01", "force=true")
    assert "continuing from" in again.text
    assert metrics.read_metrics(stopped)[-1]["epoch"] == 2


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    assert Run(tmp_path / "run", faults=[signal_in_step(PER_EPOCH)]).wait() == KILLED
    return tmp_path / "run"


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    before = fingerprint(tmp_path / "run")
    again = finished(tmp_path / "run")
    assert "finished already: 2 epochs" in again.text
    assert "at step" not in again.text
    assert fingerprint(tmp_path / "run") == before


def test_never_refuses_what_is_there_and_a_path_starts_elsewhere(stopped: Path, tmp_path: Path) -> None:
    refused = Run(stopped, "resume=never")
    assert refused.wait() == [2]
    assert "resume=never" in refused.text
    source = stopped / "last.pt"
    other = Run(tmp_path / "other", f"resume={source}", faults=[signal_in_save(1, "after")])
    assert other.wait() == KILLED
    assert f"continuing from {source} at step {PER_EPOCH}" in other.text
    again = finished(tmp_path / "other", f"resume={source}")  # the same command takes up its own progress
    assert f"continuing from {tmp_path / 'other' / 'last.pt'}" in again.text
    assert [row["epoch"] for row in metrics.read_metrics(tmp_path / "other")] == [1, 2]


def test_a_metrics_line_cut_off_by_a_crash_is_written_again(stopped: Path) -> None:
    with open(stopped / metrics.METRICS, "a") as file:
        file.write('{"epoch": 2, "st')
    finished(stopped)
    rows = [json.loads(line) for line in (stopped / metrics.METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [PER_EPOCH, STEPS]
