"""Uninterrupted runs to compare with, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from fault_harness import RICH, finished

from attn.runs.fingerprint import fingerprint


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """The fingerprint of a run on so many ranks with everything on, without loader processes."""

    @cache
    def run(ranks: int) -> str:
        run_dir: Path = tmp_path_factory.mktemp("uninterrupted") / "run"
        finished(run_dir, "data.workers=0", base=RICH, ranks=ranks)
        return fingerprint(run_dir)

    return run
