"""`metrics.jsonl`: one line per epoch, the record of a run."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from attn.errors import UserError
from attn.runs.files import to_json, write_atomically

METRICS = "metrics.jsonl"


def append_metrics(run_dir: Path, rows: list[dict[str, Any]]) -> None:
    """Adds lines, and has them on the disk before returning.

    Raises:
        OSError: the disk is full; nothing was added.
    """
    left = "".join(to_json(row) + "\n" for row in rows).encode()
    with open(run_dir / METRICS, "ab", buffering=0) as file:  # a buffer would be written once more when it is closed
        end = file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All rows that can be read; `rewind_metrics` restores the others."""
    return parse_metrics(run_dir)[0]


def parse_metrics(run_dir: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """All rows that can be read, and the numbers of the lines that cannot, from 1."""
    path = run_dir / METRICS
    rows, damaged = [], []
    content = path.read_bytes().decode(errors="replace") if path.exists() else ""
    for number, line in enumerate(content.split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (json.JSONDecodeError, RecursionError):
            row = line
        if isinstance(row, dict) and isinstance(row.get("epoch"), int) and "\ufffd" not in line:
            rows.append(row)
        elif row is not None:
            damaged.append(number)
    return rows, damaged


def rewind_metrics(
    run_dir: Path, epoch: int, history: Iterable[dict[str, Any]] = (), pending: Collection[int] = ()
) -> list[str]:
    """Makes `metrics.jsonl` agree with a checkpoint: later epochs are dropped and computed again, missing ones are restored.

    Lines that cannot be read, or that repeat an epoch, are never dropped: the file as it was is kept as
    `metrics.jsonl.damaged`.

    Args:
        run_dir: folder of the run.
        epoch: epochs that the checkpoint has evaluated.
        history: the rows that the checkpoint knows.
        pending: epochs among them that are written later.

    Returns:
        What was found and done, one line each; empty if the file was correct.

    Raises:
        UserError: there are rows, and `epoch` is 0: a run must not silently start again.
    """
    path = run_dir / METRICS
    rows, damaged = parse_metrics(run_dir)
    if epoch == 0 and (rows or damaged):
        raise UserError(
            f"{path} holds {len(rows) or 'unreadable'} epochs, but {run_dir} has no checkpoint that knows them: "
            f"remove {path} to start again, or choose another run_dir="
        )
    known = {row["epoch"]: row for row in rows if row["epoch"] <= epoch}
    restored = [row for row in history if row["epoch"] <= epoch and row["epoch"] not in {*known, *pending}]
    repeated = len(known) < sum(row["epoch"] <= epoch for row in rows)
    known |= {row["epoch"]: row for row in restored}
    told = []
    if damaged or repeated:
        aside = _unused(path.with_name(f"{METRICS}.damaged"))
        shutil.copyfile(path, aside)
        what = (
            f"line {_listed(damaged)} cannot be read" if damaged else "an epoch has more than one line, the last one counts"
        )
        told.append(f"{path}: {what}; the file as it was is kept as {aside}")
    if restored:
        told.append(f"{path}: epoch {_listed([row['epoch'] for row in restored])} restored from the checkpoint")
    later = [row["epoch"] for row in rows if row["epoch"] > epoch]
    if later:
        told.append(f"{path}: epoch {_listed(later)} comes after the checkpoint and is computed again")
    missing = [number for number in range(1, epoch + 1) if number not in {*known, *pending}]
    if missing:
        told.append(f"{path}: epoch {_listed(missing)} is missing, and the checkpoint does not know it")
    wanted = [known[number] for number in sorted(known)]
    if wanted != rows or damaged:
        write_atomically(path, "".join(to_json(row) + "\n" for row in wanted))
    return told


def _unused(path: Path) -> Path:
    """The path, or the first one with a number that is free."""
    numbered = (path if number == 1 else path.with_name(f"{path.name}{number}") for number in itertools.count(1))
    return next(candidate for candidate in numbered if not candidate.exists())


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
