"""Fixtures that run the command lines, and a temporary folder that is removed."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path

import pytest
from commands import ROOT, TINY, Command, call
from hypothesis import settings

settings.register_profile("attn", deadline=None)  # the machine may be busy
settings.load_profile("attn")


def pytest_configure(config: pytest.Config) -> None:
    """A `TMPDIR` for what torchrun, wandb, multiprocessing and killed runs leave; removed at exit.

    `tmp_path` stays where pytest keeps it, and its long name would leave no room for the 108 characters of a socket's path.
    """
    system = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="attn-")
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", system)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    cache = getattr(config, "cache", None)
    if cache is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.mkdir("inductor")))
    # After multiprocessing has removed its own folder in it, at priority -100.
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-200)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that no worker is left with it alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a GPU where there is none."""
    if item.get_closest_marker("cuda") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def compile_cache(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An XDG_CACHE_HOME for compiled files, whose names tell source, flags and CPU: one for all workers and sessions."""
    cache = getattr(pytestconfig, "cache", None)
    return tmp_path_factory.mktemp("cache") if cache is None else Path(cache.mkdir("compiled"))


@pytest.fixture(scope="session")
def kernel_cache(compile_cache: Path) -> Path:
    """What XDG_CACHE_HOME has to be for the compiled kernels to be found."""
    from attn.kernels import build

    if build.library_path().exists():  # the set-up has built it, from these sources for this CPU
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    folder = compile_cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        built, line = build.build()
    assert built, line
    return folder


@pytest.fixture(scope="module")
def compiled_kernels(kernel_cache: Path) -> Iterator[None]:
    """The kernels' C++ form, as tests of a file find it."""
    from attn.kernels import cpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(kernel_cache))
        cpu.library.cache_clear()
        yield
    cpu.library.cache_clear()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a script as `call` does, but in this process, so that imports are paid once."""

    def run(arguments: list[str]) -> subprocess.CompletedProcess:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.syspath_prepend(ROOT / Path(arguments[0]).parent)  # as the interpreter does
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
