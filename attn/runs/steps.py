"""`steps.jsonl`: one line per optimizer step, written every few steps and before each checkpoint.

A line holds loss (mean of the batch), learning rate and gradient norm; that of every `log_every`-th step also the images per second
since the one before it, with the time for loading and without that for evaluation and saving.

The steps are written before their checkpoint; a run that is continued drops the steps after its checkpoint, as in
`metrics.jsonl`. No result is computed from this file: if it cannot be written, one warning says so and training goes on.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from attn.console import warn
from attn.runs.files import append_whole, write_atomically
from attn.runs.lines import keep_aside, listed, parse_rows, parse_text

STEPS = "steps.jsonl"


class StepLog:
    """The lines of a run that are not in its file yet.

    Args:
        run_dir: folder of the run.
        every: steps between two measurements of the speed.
    """

    def __init__(self, run_dir: Path, every: int = 1) -> None:
        self._path, self._every = run_dir / STEPS, every
        self._images, self._seconds = 0.0, 0.0  # since the last measurement
        self._pending: list[dict[str, Any]] = []
        self._refused = False

    def add(self, step: int, images: float = 0.0, seconds: float = 0.0, **row: Any) -> None:
        """A step; a value that is not finite becomes null, because JSON has no such number.

        Args:
            step: its number, from 1.
            images: of its batch, over all ranks.
            seconds: that it took.
            row: what else its line holds.
        """
        row = {"step": step, **row}
        self._images, self._seconds = self._images + images, self._seconds + seconds
        if step % self._every == 0 and self._seconds > 0:
            row["images_per_second"] = round(self._images / self._seconds, 2)
            self._images = self._seconds = 0.0
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        self._pending.append(finite)

    def flush(self) -> None:
        """Writes what is pending, whole lines or none; tried again the next time."""
        if not self._pending:
            return
        try:
            append_whole(self._path, "".join(json.dumps(row) + "\n" for row in self._pending), sync=False)
        except OSError as error:
            if not self._refused:
                warn(f"{self._path} cannot be written: {error.strerror}; the training goes on")
            self._refused = True
            return
        self._pending.clear()
        self._refused = False


def read_steps(run_dir: Path) -> list[dict[str, Any]]:
    """All rows that can be read; a line cut off by a crash is left out."""
    return parse_rows(run_dir / STEPS, "step")[0]


def read_steps_from(run_dir: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """The rows of the whole lines after a position in bytes, and the position after them."""
    path = run_dir / STEPS
    if not path.exists():
        return [], position
    with open(path, "rb") as file:
        file.seek(position)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return parse_text(whole.decode(errors="replace"), "step")[0], position + len(whole)


def rewind_steps(run_dir: Path, step: int) -> None:
    """Drops what came after a step. A file with lines that cannot be read is kept aside as it was, and named.

    A last line without an end is what a crash left: its step comes after the checkpoint, and is computed again.
    """
    path = run_dir / STEPS
    rows, damaged = parse_rows(path, "step")
    wanted = [row for row in rows if row["step"] <= step]
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    lost = [number for number in damaged if number < len(lines)]
    if lost:
        warn(f"{path}: line {listed(lost)} cannot be read; the file as it was is kept as {keep_aside(path)}")
    if wanted != rows or damaged:
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in wanted))
