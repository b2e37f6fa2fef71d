"""Fixtures that run the command lines, and a temporary folder that is removed."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, TINY, Command, call
from hypothesis import settings

settings.register_profile("attn", deadline=None)  # the machine may be busy
settings.load_profile("attn")


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A `TMPDIR` for what torchrun, wandb, multiprocessing and killed runs leave behind; removed at the end.

    It is not in `tmp_path`, whose long name would leave no room for the 108 characters of a socket's path.
    """
    folder = Path(tempfile.mkdtemp(prefix="attn-"))
    cache = getattr(request.config, "cache", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)  # what was found before
        if cache is not None:
            patch.setenv("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(cache.mkdir("inductor"))))
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


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
