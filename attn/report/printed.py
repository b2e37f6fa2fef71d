"""The rows of the papers' tables that runs are, with what is printed there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn.config.parse import to_dict
from attn.report.runs import Result
from attn.tables import Score, compare, load_rows, matching_runs, network_key, with_alternatives


@dataclass(frozen=True)
class Printed:
    """A paper's row beside the runs of its network.

    Attributes:
        paper, table, number, model, method: as printed.
        scores: every printed metric that the runs reached: printed value, mean over the runs, differences.
        runs: how many; `differs`: what is not as in the row's recipe, empty where they follow it.
    """

    paper: str
    table: str
    number: int
    model: str
    method: str
    scores: list[Score]
    runs: int
    differs: list[str]


def printed_rows(results: Sequence[Result]) -> list[Printed]:
    """The papers' rows that finished runs trained the network of, on its data; those that follow a row's recipe come alone."""
    content = {result.folder: to_dict(result.cfg) for result in results}
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for folder, config in content.items():
        found.setdefault(network_key(config), []).append((folder, config))
    rows = []
    for row in with_alternatives(load_rows()):
        matching = [run for run in matching_runs(row, found) if run.finished]
        faithful = [run for run in matching if not run.differs]
        runs = faithful or matching
        scores = [score for score in compare(row.metrics, runs, row.printed.get("std")) if score.printed is not None]
        if scores:
            differs = sorted({line for run in runs for line in run.differs})
            rows.append(Printed(row.paper, row.table, row.number, row.model, row.method, scores, len(runs), differs))
    return rows
