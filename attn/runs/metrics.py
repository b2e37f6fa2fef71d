"""`metrics.jsonl`: one line per epoch, the truth about a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from attn.runs.files import write_atomically

METRICS = "metrics.jsonl"


def append_metrics(run_dir: Path, rows: list[dict[str, Any]]) -> None:
    """Adds lines, and has them on the disk before returning.

    Raises:
        OSError: the disk is full; nothing was added.
    """
    left = "".join(json.dumps(row) + "\n" for row in rows).encode()
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
    """All rows; a last line cut off by a crash is left out."""
    path = run_dir / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def rewind_metrics(run_dir: Path, epoch: int) -> None:
    """Drops rows behind an epoch: what came after the checkpoint is computed again."""
    rows = [row for row in read_metrics(run_dir) if row["epoch"] <= epoch]
    if (run_dir / METRICS).exists():
        write_atomically(run_dir / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
