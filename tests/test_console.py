"""What a run says goes through the logger `attn`, and looks as plain lines."""

from __future__ import annotations

import ast
import logging

import pytest
from commands import ROOT

from attn import console


def test_lines_are_plain_and_warnings_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("100 % of {it}")
    console.warn("a file is missing")
    assert capsys.readouterr() == ("100 % of {it}\n", "warning: a file is missing\n")


def test_an_embedder_can_silence_it(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("attn")
    level = logger.level
    try:
        logger.setLevel("WARNING")
        console.say("progress")
        console.warn("trouble")
    finally:
        logger.setLevel(level)
    assert capsys.readouterr() == ("", "warning: trouble\n")


@pytest.mark.parametrize("room", ["data", "evaluation", "models", "runs", "tables", "training"])
def test_a_run_prints_nothing_by_itself(room: str) -> None:
    for path in (ROOT / "attn" / room).rglob("*.py"):
        if '__name__ == "__main__"' in path.read_text():  # a command, which prints its result
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"], path
