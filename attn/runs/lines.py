"""Files with one JSON object per line, which a crash or an editor may have damaged: reading them loses nothing."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

LARGEST = 2**53


def parse_rows(path: Path, key: str) -> tuple[list[dict[str, Any]], list[int]]:
    """All rows that can be read, and the numbers of the lines that cannot, from 1; nothing where there is no file.

    A row is an object of numbers and nulls, whose `key` is an integer, 1 or more. A number that is not finite is read as
    null.
    """
    return parse_text(path.read_bytes().decode(errors="replace") if path.exists() else "", key)


def parse_text(content: str, key: str) -> tuple[list[dict[str, Any]], list[int]]:
    """`parse_rows` of what a file holds."""
    rows, damaged = [], []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        row = _row(line, key)
        if row is None:
            damaged.append(number)
        else:
            rows.append(row)
    return rows, damaged


def _row(line: str, key: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(value is None or isinstance(value, (int, float)) for value in row.values()):
        return None
    if type(row.get(key)) is not int or not 0 < row[key] <= LARGEST:
        return None
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}


def keep_aside(path: Path) -> Path:
    """Copies a file to `NAME.damaged`, or the first such name with a number that is free; returns the copy's path."""
    names = (f"{path.name}.damaged{number if number > 1 else ''}" for number in itertools.count(1))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    shutil.copyfile(path, aside)
    return aside


def listed(numbers: list[int]) -> str:
    """Numbers for a message, the first ten of them."""
    return ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
