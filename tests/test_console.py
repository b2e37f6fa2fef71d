"""What a run says goes through the logger `attn`, and looks as plain lines."""

from __future__ import annotations

import logging

import pytest

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
