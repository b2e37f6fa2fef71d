"""Fixtures that run the command lines."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, TINY, Command, call
from hypothesis import settings

settings.register_profile("attn", deadline=None)  # the machine may be busy
settings.load_profile("attn")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a script as `call` does, but in this process: what takes seconds to import is imported once."""

    def run(arguments: list[str]) -> subprocess.CompletedProcess:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", arguments)
        code = 0
        try:
            runpy.run_path(arguments[0], run_name="__main__")
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out.out, out.err)

    return run


@pytest.fixture
def train(tmp_path: Path) -> Command:
    """`train("attention=se", ...)` runs train.py on digits into tmp_path/run."""

    def run(*overrides: str, ranks: int = 1, ok: bool = True) -> subprocess.CompletedProcess:
        result = call(["train.py", *TINY, f"run_dir={tmp_path / 'run'}", *overrides], ranks)
        assert not ok or result.returncode == 0, result.stdout + result.stderr
        return result

    return run
