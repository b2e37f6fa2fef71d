"""What a run says goes through the logger `attn`, and looks as plain lines."""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_closes_the_pipe_ends_no_work(tmp_path: Path, stream: str) -> None:
    code = "import pathlib, sys\nfrom attn import console\nfor i in range(3): console.say('a'), console.warn('b')\n"
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", code + f"pathlib.Path({str(tmp_path / 'done')!r}).touch()"]
    streams: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writing}
    done = subprocess.run(command, **streams, text=True, check=False, cwd=ROOT)  # type: ignore[call-overload]
    os.close(writing)
    assert (done.returncode, (tmp_path / "done").exists()) == (0, True)
    assert (done.stderr, done.stdout) == ((None, "a\n" * 3) if stream == "stderr" else ("warning: b\n" * 3, None))


@pytest.mark.parametrize("room", ["data", "evaluation", "models", "runs", "tables", "training"])
def test_a_run_prints_nothing_by_itself(room: str) -> None:
    for path in (ROOT / "attn" / room).rglob("*.py"):
        if '__name__ == "__main__"' in path.read_text():  # a command, which prints its result
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"], path
