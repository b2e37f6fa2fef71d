"""Rows of strings as tables."""

from __future__ import annotations

from attn.tabulate import markdown_lines, text_lines

ROWS = [("name", "top-1"), ("se|r16", "7.5"), ("ba", "78.14")]


def test_text_is_padded_and_numbers_end_together() -> None:
    assert text_lines(ROWS, right=[1]) == ["name    top-1", "se|r16    7.5", "ba      78.14"]
    assert text_lines([]) == []


def test_markdown_has_a_rule_and_no_cell_ends_a_row_early() -> None:
    assert markdown_lines(ROWS, right=[1]) == ["| name | top-1 |", "| --- | ---: |", "| se\\|r16 | 7.5 |", "| ba | 78.14 |"]
    assert markdown_lines([]) == []
