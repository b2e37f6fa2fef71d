"""Runs under torchrun and SLURM's script: few tests, because every process imports torch again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import patience
from fault_harness import RICH, ROOT, STEPS, TINY, finished

from attn.runs import checkpoint, directory
from attn.runs.fingerprint import fingerprint

Reference = Callable[[int], str]
HERE = Path(__file__).parent
SLOW_IMPORTS = 240  # seconds


class Launched:
    """A launcher in a session of its own, its output in a file."""

    def __init__(self, command: list[str], output: Path, env: dict[str, str] | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{HERE}", **(env or {})}
        self.output = output
        with open(output, "w") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + patience(SLOW_IMPORTS)
        while text not in self.text:
            assert time.monotonic() < end, self.text
            assert self.process.poll() is None, self.text
            time.sleep(0.05)

    def wait(self, timeout: float = SLOW_IMPORTS) -> int:
        try:
            return self.process.wait(patience(timeout))
        finally:
            if self.process.poll() is None:
                self.process.kill()


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]


def ranks_of(run_dir: Path) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and f"run_dir={run_dir}".encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                yield int(entry)
        except OSError:
            pass


def nobody_is_left(run_dir: Path, timeout: float = 60) -> bool:
    end = time.monotonic() + patience(timeout)
    while any(ranks_of(run_dir)) and time.monotonic() < end:
        time.sleep(0.2)
    return not any(ranks_of(run_dir))


def test_a_killed_rank_is_restarted_in_place(tmp_path: Path, uninterrupted: Reference) -> None:
    run_dir = tmp_path / "run"
    fault = ("1", "signal_in_step(4)")
    arguments = [*RICH, "data.workers=0", f"run_dir={run_dir}"]
    launched = Launched(torchrun("--max-restarts=1", str(HERE / "broken_train.py"), *fault, *arguments), tmp_path / "output")
    assert launched.wait() == 0, launched.text
    assert "at step 5 of 6" in launched.text  # the first rank had all it needed to end its step, and kept it
    assert fingerprint(run_dir) == uninterrupted(2)


def test_sigterm_to_torchrun(tmp_path: Path, uninterrupted: Reference) -> None:
    run_dir = tmp_path / "run"
    arguments = ["0", "slow_steps(0.4)", *RICH, "data.workers=1", f"run_dir={run_dir}"]
    launched = Launched(torchrun(str(HERE / "broken_train.py"), *arguments), tmp_path / "output")
    launched.wait_for("step 1/6")
    launched.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert launched.wait() != 0
    assert time.monotonic() - began < 25
    assert nobody_is_left(run_dir, 10)
    assert not (run_dir / directory.DONE).exists()
    assert f"error: SIGTERM: saved {run_dir / 'last.pt'} at step" in launched.text
    assert 1 <= checkpoint.read(run_dir / "last.pt")["step"] < STEPS
    finished(run_dir, "data.workers=0", base=RICH, ranks=2)
    assert fingerprint(run_dir) == uninterrupted(2)


@pytest.mark.slow
def test_a_silent_rank_under_torchrun(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = ["1", "stop_in_step(4)", *TINY, f"run_dir={run_dir}", "dist_timeout=8"]
    launched = Launched(torchrun("--shutdown-timeout=3", str(HERE / "broken_train.py"), *arguments), tmp_path / "output")
    launched.wait_for("step 4/6")
    began = time.monotonic()
    assert launched.wait() != 0
    assert time.monotonic() - began < 60
    assert "step 4: rank 1 ended, or does not answer; saved" in launched.text
    assert nobody_is_left(run_dir)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """srun and scontrol as a job sees them; scontrol writes down what it is told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": f'#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\necho $$ > {tmp_path}/srun.pid\nexec "$@"\n',
        "scontrol": f'#!/bin/bash\nif [[ $1 == show ]]; then echo localhost; else echo "$@" >> {tmp_path}/scontrol; fi\n',
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_SUBMIT_DIR": str(ROOT)}
    return {**job, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": sys.executable, "RANKS_PER_NODE": "1"}


def slurm(run_dir: Path, output: Path, cluster: dict[str, str]) -> Launched:
    return Launched(["bash", "scripts/slurm.sh", *TINY, "data.workers=1", f"run_dir={run_dir}"], output, cluster)


def expect_requeued(tmp_path: Path, run_dir: Path, cluster: dict[str, str]) -> None:
    """Starts a job, and sends it SIGUSR1 in its first step: it must save, and be queued again."""
    slow = {"TRAIN": f"{HERE / 'broken_train.py'} 0 slow_steps(1.0)"}
    launched = slurm(run_dir, tmp_path / "output", {**cluster, **slow})
    launched.wait_for("step 1/6")
    torchrun_process = int((tmp_path / "srun.pid").read_text())
    step = {torchrun_process, *ranks_of(run_dir)} - {launched.process.pid}
    for pid in step:  # SLURM signals all processes of the job's step, and not its script
        with_signal(pid, signal.SIGUSR1)
    assert launched.wait() == 0, launched.text
    assert "error: SIGUSR1: saved" in launched.text
    assert not (run_dir / directory.DONE).exists()
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"


@pytest.mark.slow
def test_the_slurm_script_requeues_until_done(tmp_path: Path, cluster: dict[str, str]) -> None:
    run_dir = tmp_path / "run"
    expect_requeued(tmp_path, run_dir, cluster)
    again = slurm(run_dir, tmp_path / "again", {**cluster, "TRAIN": "-m attn.train", "RANKS_PER_NODE": "2"})
    assert again.wait() == 0, again.text
    assert "continuing from" in again.text
    assert (run_dir / directory.DONE).exists()
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"


def test_the_slurm_script_requeues_with_an_older_torchrun(tmp_path: Path, cluster: dict[str, str]) -> None:
    """One that neither lists the option for SIGUSR1 nor takes it."""
    python = tmp_path / "bin" / "python"
    refuse = 'case "$*" in *--signals-to-handle*) exit 2;; *torch.distributed.run*--help*) exit 0;; esac'
    python.write_text(f'#!/bin/bash\n{refuse}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    expect_requeued(tmp_path, tmp_path / "run", {**cluster, "PYTHON": str(python)})


def test_the_slurm_script_does_not_requeue_what_cannot_start(tmp_path: Path, cluster: dict[str, str]) -> None:
    command = [
        "bash",
        "scripts/slurm.sh",
        *TINY,
        f"run_dir={tmp_path / 'run'}",
        "data=imagenet",
        "data.samples=1024",
        "data.root=/nowhere",
    ]
    launched = Launched(command, tmp_path / "output", {**cluster, "MAX_RESTARTS": "0"})
    assert launched.wait() == 1, launched.text
    assert "data.root=/nowhere: no such folder" in launched.text
    assert "not requeued" in launched.text
    assert not (tmp_path / "scontrol").exists()


def with_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
