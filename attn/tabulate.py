"""Rows of strings as a table for a terminal or for Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def text_lines(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """A line per row, its columns padded to one width and two spaces apart.

    Args:
        rows: all of one length; the header is the first.
        right: numbers of the columns that are aligned to the right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown_lines(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """A line per row, and the rule after the first; see `text_lines`."""
    rule = ["---:" if column in right else "---" for column in range(len(rows[0]))] if rows else []
    return [markdown_row(row) for row in (rows[0], rule, *rows[1:])] if rows else []


def markdown_row(cells: Iterable[str]) -> str:
    """One row; a bar in a cell does not end it."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
