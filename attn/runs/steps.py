"""`steps.jsonl`: one line per optimizer step, written every few steps and before each checkpoint.

The steps are written before their checkpoint; a run that is continued drops the steps after its checkpoint, as in
`metrics.jsonl`. No result is computed from this file: if it cannot be written, one warning says so and training goes on.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from attn.console import warn
from attn.runs.files import write_atomically

STEPS = "steps.jsonl"


class StepLog:
    """The lines of a run that are not in its file yet."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / STEPS
        self._pending: list[dict[str, Any]] = []
        self._refused = False

    def add(self, **row: Any) -> None:
        """A step; a value that is not finite becomes null, because JSON has no such number."""
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        self._pending.append(finite)

    def flush(self) -> None:
        """Writes what is pending, whole lines or none; tried again the next time."""
        if not self._pending:
            return
        left = "".join(json.dumps(row) + "\n" for row in self._pending).encode()
        try:
            with open(self._path, "ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    while left:
                        left = left[file.write(left) :]
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            if not self._refused:
                warn(f"{self._path} cannot be written: {error.strerror}; the training goes on")
            self._refused = True
            return
        self._pending.clear()
        self._refused = False


def read_steps(run_dir: Path) -> list[dict[str, Any]]:
    """All rows that can be read; a line cut off by a crash is left out."""
    rows = []
    path = run_dir / STEPS
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def rewind_steps(run_dir: Path, step: int) -> None:
    """Drops what came after a step, and what a crash cut off."""
    if (run_dir / STEPS).exists():
        rows = [row for row in read_steps(run_dir) if row["step"] <= step]
        write_atomically(run_dir / STEPS, "".join(json.dumps(row) + "\n" for row in rows))
