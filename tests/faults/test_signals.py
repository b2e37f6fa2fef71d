"""Preemption, and ranks that exit, fail or stop answering."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_harness import PER_EPOCH, RICH, STEPS, Run, finished
from fault_injection import (
    fail_in_step,
    leave_in_step,
    loader_process_dies,
    signal_in_evaluation,
    signal_in_save,
    signal_in_step,
    slow_evaluation,
    slow_finish,
    slow_steps,
    stop_in_step,
)

from attn.data.workers import outlive_signals
from attn.runs import checkpoint, directory, metrics
from attn.runs.fingerprint import fingerprint

Reference = Callable[[int], str]
PREEMPTED = 75
TERM, USR1 = int(signal.SIGTERM), int(signal.SIGUSR1)


@pytest.mark.parametrize("number", [TERM, USR1], ids=["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_to_all_processes_ends_at_the_next_step(
    tmp_path: Path, uninterrupted: Reference, ranks: int, number: int
) -> None:
    """To loader processes as well: torchrun and SLURM signal whole groups."""
    stopped = Run(tmp_path / "run", base=RICH, ranks=ranks, faults=[slow_steps(0.3)])
    stopped.wait_for("step 2/6")
    for rank in range(ranks):
        stopped.signal(number, rank)
    began = time.monotonic()
    assert stopped.wait() == ranks * [PREEMPTED], stopped.text
    assert time.monotonic() - began < 20
    assert stopped.leftovers() == []
    step = checkpoint.read(tmp_path / "run" / "last.pt")["step"]
    assert 2 <= step < STEPS
    name = signal.Signals(number).name
    assert f"error: {name}: saved {tmp_path / 'run' / 'last.pt'} at step {step}; the same command continues" in stopped.text
    assert "Traceback" not in stopped.text
    finished(tmp_path / "run", "data.workers=0", base=RICH, ranks=ranks)
    assert fingerprint(tmp_path / "run") == uninterrupted(ranks)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    stopped = Run(tmp_path / "run", ranks=2, faults={1: [signal_in_step(1, TERM)]})
    assert stopped.wait() == [PREEMPTED, PREEMPTED]
    assert "a signal to another rank: saved" in stopped.text
    assert checkpoint.read(tmp_path / "run" / "last.pt")["step"] in (2, 3)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(signal_in_step(PER_EPOCH - 1, TERM), id="last step of an epoch"),
        pytest.param(signal_in_evaluation(1, TERM), id="evaluation"),
        pytest.param(signal_in_save(1, "half", TERM), id="save"),
        pytest.param(signal_in_step(STEPS - 1, TERM), id="last step"),
        pytest.param(signal_in_save(3, "fsync", TERM), id="last save before the last evaluation"),
    ],
)
def test_a_signal_at_an_awkward_moment(tmp_path: Path, uninterrupted: Reference, fault: Callable[[], None]) -> None:
    stopped = Run(tmp_path / "run", "data.workers=0", base=RICH, faults=[fault])
    assert stopped.wait() == [PREEMPTED], stopped.text
    assert not (tmp_path / "run" / directory.DONE).exists()
    finished(tmp_path / "run", "data.workers=0", base=RICH)
    assert fingerprint(tmp_path / "run") == uninterrupted(1)


def test_two_ranks_are_stopped_while_they_evaluate(tmp_path: Path) -> None:
    options = ("data.samples=64", "schedule.epochs=1")
    stopped = Run(tmp_path / "run", *options, ranks=2, faults=[slow_evaluation(0.5)])
    stopped.wait_for("step 8/8")
    time.sleep(1)
    for rank in range(2):
        stopped.signal(TERM, rank)
    began = time.monotonic()
    assert stopped.wait() == [PREEMPTED, PREEMPTED], stopped.text
    assert time.monotonic() - began < 15
    again = finished(tmp_path / "run", *options, ranks=2)
    assert "step 8/8" not in again.text
    assert [row["epoch"] for row in metrics.read_metrics(tmp_path / "run")] == [1]


def test_many_signals_leave_one_valid_checkpoint(tmp_path: Path) -> None:
    stopped = Run(tmp_path / "run", "save_every_steps=1", "data.workers=1", faults=[slow_steps(0.2)])
    stopped.wait_for("step 2/6")
    for _ in range(20):
        if not stopped.processes[0].is_alive():
            break
        stopped.signal(TERM)
        stopped.signal(USR1)
        time.sleep(0.02)
    code = stopped.wait()[0]
    assert code in (PREEMPTED, -TERM, -USR1)  # a signal after the save, while the process exits, may end it
    assert checkpoint.read(tmp_path / "run" / "last.pt")["step"] >= 2
    finished(tmp_path / "run")


def test_a_signal_after_the_work_is_done_changes_nothing(tmp_path: Path) -> None:
    late = Run(tmp_path / "run", faults=[slow_finish(1.0)])
    late.wait_for("epoch   2")
    late.signal(TERM)
    assert late.wait() == [0]
    assert (tmp_path / "run" / directory.DONE).exists()


def test_a_rank_that_leaves_is_named_and_costs_no_step(tmp_path: Path, uninterrupted: Reference) -> None:
    stopped = Run(tmp_path / "run", "data.workers=1", base=RICH, ranks=2, faults={1: [leave_in_step(4, 3)]})
    stopped.wait_for("step 4/6")
    began = time.monotonic()
    assert stopped.wait() == [3, 3]
    assert time.monotonic() - began < 60
    assert stopped.leftovers() == []
    last = tmp_path / "run" / "last.pt"
    assert f"error: step 4: rank 1 ended, or does not answer; saved {last} at step 4" in stopped.text
    assert checkpoint.read(last)["step"] == 4
    finished(tmp_path / "run", "data.workers=0", base=RICH, ranks=2)
    assert fingerprint(tmp_path / "run") == uninterrupted(2)


def test_a_rank_that_leaves_in_the_second_part_of_an_accumulation(tmp_path: Path, uninterrupted: Reference) -> None:
    """The first part has moved the running statistics by then."""
    stopped = Run(
        tmp_path / "run", "data.workers=0", base=RICH, ranks=2, faults={1: [leave_in_step(4, 3), _only_second_part]}
    )
    assert stopped.wait() == [3, 3]
    finished(tmp_path / "run", "data.workers=0", base=RICH, ranks=2)
    assert fingerprint(tmp_path / "run") == uninterrupted(2)


def _only_second_part() -> None:
    from attn.training import loop

    faulty, real, calls = loop.forward, loop.forward.__wrapped__, {"part": 0}

    def forward(*args):  # type: ignore[no-untyped-def]
        calls["part"] += 1
        return (faulty if calls["part"] % 2 == 0 else real)(*args)

    loop.forward = forward


def test_the_first_rank_leaves(tmp_path: Path) -> None:
    stopped = Run(tmp_path / "run", ranks=2, faults={0: [leave_in_step(4, 3)]})
    assert stopped.wait() == [3, 3]
    finished(tmp_path / "run", ranks=2)


def test_a_rank_that_fails_tells_the_others_why(tmp_path: Path) -> None:
    stopped = Run(tmp_path / "run", ranks=2, faults={1: [fail_in_step(4, "out of luck")]})
    assert stopped.wait() == [3, 3]
    assert f"error: step 4: rank 1: out of luck; saved {tmp_path / 'run' / 'last.pt'} at step 4" in stopped.text
    assert "warning: step 4: rank 1: out of luck" in stopped.text
    assert "Traceback" in stopped.text  # of rank 1: it may be a mistake in a user's module
    assert stopped.text.count("error:") == 1


def test_a_rank_that_falls_silent(tmp_path: Path) -> None:
    stopped = Run(tmp_path / "run", "dist_timeout=4", ranks=2, faults={1: [stop_in_step(4)]})
    first = stopped.processes[0]
    first.join(60)
    assert first.exitcode == 3
    assert re.search(r"error: step 4: rank 1 ended, or does not answer; saved .* at step 4", stopped.text)
    stopped.kill()
    finished(tmp_path / "run", ranks=2)


def test_a_mistake_in_the_first_step_leaves_no_checkpoint(tmp_path: Path) -> None:
    """Otherwise the next attempt, with another batch size, would be refused because its config differs."""
    stopped = Run(tmp_path / "run", faults=[fail_in_step(0, "CUDA out of memory")])
    assert stopped.wait() == [3]
    assert "error: step 0: CUDA out of memory; there is no checkpoint yet" in stopped.text
    finished(tmp_path / "run", "schedule.batch_size=4")


def test_a_loader_process_whose_parent_was_killed_before_it_began(tmp_path: Path) -> None:
    """torch watches over the parent from later on, and would watch over the wrong process."""
    survived = tmp_path / "survived"
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    parent = context.Process(target=_die_at_once, args=(survived, theirs))
    parent.start()
    theirs.close()
    parent.join(30)
    assert parent.exitcode == -signal.SIGKILL
    with pytest.raises(EOFError):  # the last of them has ended
        ours.recv()
    assert not survived.exists()


def _die_at_once(survived: Path, pipe: object) -> None:
    multiprocessing.get_context("fork").Process(target=_begin_late, args=(survived, pipe)).start()
    os.kill(os.getpid(), signal.SIGKILL)


def _begin_late(survived: Path, pipe: object) -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and os.getppid() == parent.pid:
        time.sleep(0.01)
    outlive_signals(0)
    survived.touch()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loader_process_dies(tmp_path: Path, ranks: int) -> None:
    faults = {ranks - 1: [loader_process_dies(10 // ranks)]}
    stopped = Run(tmp_path / "run", "data.workers=1", ranks=ranks, faults=faults)
    stopped.wait_for(" parameters, ")
    began = time.monotonic()
    assert stopped.wait() == ranks * [3], stopped.text
    assert time.monotonic() - began < 30
    assert stopped.leftovers() == []
    assert "a loader process died, perhaps because memory ran out" in stopped.text
    finished(tmp_path / "run", "data.workers=1", ranks=ranks)
