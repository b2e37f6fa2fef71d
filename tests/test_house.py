"""What the tests themselves promise: nothing left in the system's temporary folder, waits that can be made longer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import ROOT, call, patience

KILLED = "tests/faults/test_checkpoints.py::test_a_save_after_damage_keeps_a_sound_previous"


def test_temporary_files_are_made_in_a_folder_of_the_session(temporary_folder: Path) -> None:
    assert Path(tempfile.gettempdir()) == temporary_folder
    child = call(["-c", "import tempfile; print(tempfile.gettempdir())"])
    assert Path(child.stdout.strip()) == temporary_folder


def test_a_session_leaves_nothing_in_the_systems_temporary_folder(temporary_folder: Path) -> None:
    """Runs that are killed leave the sockets of multiprocessing and their own output; pytest removes them."""
    system = temporary_folder / "system"
    system.mkdir()
    environment = {**os.environ, "TMPDIR": str(system)}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", KILLED]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=patience(300), check=False
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert [str(path) for path in system.rglob("*") if not (path.is_dir() and path.name.startswith("pytest-of-"))] == []


def test_waits_are_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTN_TEST_TIMEOUT_SCALE", "2.5")
    assert patience(4) == 10
    monkeypatch.setenv("ATTN_TEST_TIMEOUT_SCALE", "0.001")
    with pytest.raises(subprocess.TimeoutExpired):
        call(["-c", "import time; time.sleep(5)"], timeout=100)
