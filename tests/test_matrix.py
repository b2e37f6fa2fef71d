"""The script over versions reads pytest's summary and writes its page."""

from __future__ import annotations

import argparse
import sys

import pytest
from commands import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import matrix


@pytest.mark.parametrize(
    ("output", "verdict"),
    [
        ("....\n==== 12 passed, 2 skipped in 3.00s ====\n", "12 passed"),
        ("F...\n==== 1 failed, 12 passed, 1 error in 3.00s ====\n", "2 of 14 failed"),
        ("4 passed in 0.10s\n", "4 passed"),
        ("ImportError: nothing\n", "no test ran"),
    ],
)
def test_the_verdict_is_that_of_the_last_line(output: str, verdict: str) -> None:
    assert matrix.counted("oldest", {}, output).verdict == verdict


def test_the_page_names_versions_and_the_command() -> None:
    outcomes = [matrix.Outcome("oldest", {"torch": "2.6.0"}, 5, 0), matrix.Outcome("newest", {}, 0, 0, "not installed: x")]
    page = matrix.page(outcomes, matrix.TESTS, "2026-01-02")
    assert "| oldest |  | 2.6.0 |" in page
    assert "| 5 passed |" in page
    assert "| not installed: x |" in page
    assert "Made on 2026-01-02 by `python scripts/matrix.py oldest newest --write docs/versions.md`." in page
    assert "--write docs/versions.md --tests tests/runs`." in matrix.page(outcomes, ["tests/runs"], "2026-01-02")


@pytest.mark.parametrize("text", ["3.10", "older=3.10", "oldest="])
def test_an_interpreter_is_of_a_kind(text: str) -> None:
    assert matrix.interpreter("oldest=3.10") == ("oldest", "3.10")
    with pytest.raises(argparse.ArgumentTypeError, match="write KIND=PYTHON"):
        matrix.interpreter(text)


def test_this_environment_is_described() -> None:
    assert matrix.versions_of(sys.executable)["python"] == sys.version.split()[0]
    assert set(matrix.versions_of(sys.executable)) == set(matrix.SHOWN)
