"""What the tests themselves promise: nothing left in the system's temporary folder, waits that can be made longer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import ROOT, call_fresh, patience

tempfile.mkdtemp(prefix="at-import-")  # as torch does for its compiler


def test_temporary_files_are_made_in_a_folder_of_the_session() -> None:
    folder = Path(tempfile.gettempdir())
    assert folder.name.startswith("attn-")
    child = call_fresh(["-c", "import tempfile; print(tempfile.gettempdir())"])
    assert Path(child.stdout.strip()) == folder


def test_a_killed_process_leaves_files() -> None:
    process = multiprocessing.get_context("forkserver").Process(target=_leave_a_file)
    process.start()
    process.join(patience(60))
    assert process.exitcode == -signal.SIGKILL
    assert list(Path(tempfile.gettempdir()).glob("killed-*"))
    assert list(Path(tempfile.gettempdir()).glob("at-import-*"))


def _leave_a_file() -> None:
    tempfile.mkdtemp(prefix="killed-")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [[], ["--numprocesses=1"]], ids=["alone", "xdist"])
def test_a_session_leaves_nothing_in_the_systems_temporary_folder(workers: list[str]) -> None:
    # The sockets of multiprocessing take at most 108 characters with all folders; our own temporary folder is too deep.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="a") as folder:
        leaves_nothing(Path(folder), workers)


def leaves_nothing(system: Path, workers: list[str]) -> None:
    """Runs a test that is killed, in a session whose system's temporary folder is `system`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *workers]
    command += [f"tests/test_house.py::{test_a_killed_process_leaves_files.__name__}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, "TMPDIR": str(system)},
        capture_output=True,
        text=True,
        timeout=patience(300),
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert done.stderr == ""
    assert [str(path) for path in system.rglob("*") if not (path.is_dir() and path.name.startswith("pytest-of-"))] == []


def test_waits_are_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTN_TEST_TIMEOUT_SCALE", "2.5")
    assert patience(4) == 10
    monkeypatch.setenv("ATTN_TEST_TIMEOUT_SCALE", "0.001")
    with pytest.raises(subprocess.TimeoutExpired):
        call_fresh(["-c", "import time; time.sleep(5)"], timeout=100)
