"""`metrics.jsonl`: one line per epoch, the record of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from attn.errors import UserError
from attn.runs.files import append_whole, to_json, write_atomically
from attn.runs.lines import keep_aside, listed, parse_rows

METRICS = "metrics.jsonl"


def append_metrics(run_dir: Path, rows: list[dict[str, Any]]) -> None:
    """Adds lines, and has them on the disk before returning.

    Raises:
        OSError: the disk is full; nothing was added.
    """
    append_whole(run_dir / METRICS, "".join(to_json(row) + "\n" for row in rows), sync=True)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All rows that can be read; `rewind_metrics` restores the others."""
    return parse_metrics(run_dir)[0]


def parse_metrics(run_dir: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """All rows that can be read, and the numbers of the lines that cannot, from 1."""
    return parse_rows(run_dir / METRICS, "epoch")


def rewind_metrics(
    run_dir: Path, epoch: int | None, history: Iterable[dict[str, Any]] = (), pending: Collection[int] = ()
) -> list[str]:
    """Makes `metrics.jsonl` agree with a checkpoint: later epochs are dropped and computed again, missing ones are restored.

    Lines that cannot be read, or that repeat an epoch, are never dropped: the file as it was is kept as
    `metrics.jsonl.damaged`.

    Args:
        run_dir: folder of the run.
        epoch: epochs that the checkpoint has evaluated; None if there is no checkpoint.
        history: the rows that the checkpoint knows.
        pending: epochs among them that are written later.

    Returns:
        What was found and done, one line each; empty if the file was correct.

    Raises:
        UserError: there are rows, and no checkpoint: a run must not silently start again.
    """
    path = run_dir / METRICS
    rows, damaged = parse_metrics(run_dir)
    if epoch is None and (rows or damaged):
        raise UserError(
            f"{path} holds {len(rows) or 'unreadable'} epochs, but {run_dir} has no checkpoint that knows them: "
            f"remove {path} to start again, or choose another run_dir="
        )
    epoch = epoch or 0
    known = {row["epoch"]: row for row in rows if row["epoch"] <= epoch}
    restored = [row for row in history if row["epoch"] <= epoch and row["epoch"] not in {*known, *pending}]
    repeated = len(known) < sum(row["epoch"] <= epoch for row in rows)
    known |= {row["epoch"]: row for row in restored}
    told = []
    if damaged or repeated:
        what = (
            f"line {listed(damaged)} cannot be read" if damaged else "an epoch has more than one line, the last one counts"
        )
        told.append(f"{path}: {what}; the file as it was is kept as {keep_aside(path)}")
    if restored:
        told.append(f"{path}: epoch {listed([row['epoch'] for row in restored])} restored from the checkpoint")
    later = [row["epoch"] for row in rows if row["epoch"] > epoch]
    if later:
        told.append(f"{path}: epoch {listed(later)} comes after the checkpoint and is computed again")
    missing = [number for number in range(1, epoch + 1) if number not in {*known, *pending}]
    if missing:
        told.append(f"{path}: epoch {listed(missing)} is missing, and the checkpoint does not know it")
    wanted = [known[number] for number in sorted(known)]
    if wanted != rows or damaged:
        write_atomically(path, "".join(to_json(row) + "\n" for row in wanted))
    return told
