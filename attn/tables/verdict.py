"""Compares what was printed with what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from attn.models import flops
from attn.tables.build import Build
from attn.tables.measure import Measured, measure
from attn.tables.rows import Row, with_alternatives
from attn.tables.runs import Run, matching_runs
from attn.tables.scores import Score, compare

MILLION = {"M": 1e6, "Mi": 2.0**20}
EQUAL, EXPLAINED, WRONG, UNCOUNTED, OTHER = "equal", "explained", "WRONG", "needs the detection extra", "another form"
INSTALL = "pip install 'attn[detection]'"


def decimals(value: float) -> int:
    """Decimals of a printed number, but at least two: the data files drop trailing zeros."""
    return max(2, len(str(float(value)).partition(".")[2]))


def agree(printed: float, measured: float, digits: int) -> bool:
    """Whether a number rounds to the printed one; exactly halfway, rounding up or down are both accepted."""
    return abs(measured - printed) <= 0.5 * 10**-digits * (1 + 1e-9)


@dataclass(frozen=True)
class Result:
    """A row beside what was measured.

    Attributes:
        params: in the row's printed unit; `flops`: in 1e9, in the row's convention.
        flops_agree: whether they round to the printed ones; None where either is absent.
        verdict: equal (params, to the printed digit), explained (by `reason`), WRONG (it should be equal and is not), needs
            the detection extra, or another form (of a row that has several: `reason` says which).
    """

    row: Row
    measured: Measured
    params: float | None
    flops: float | None
    flops_agree: bool | None
    verdict: str
    reason: str | None
    runs: list[Run]

    @property
    def counted(self) -> list[Run]:
        """The finished runs by the row's recipe."""
        return [run for run in self.runs if run.finished and not run.differs]

    @property
    def scores(self) -> list[Score]:
        """Every metric that they reached, over their seeds, beside the printed one."""
        return compare(self.row.metrics, self.counted, self.row.printed.get("std"))

    @property
    def reached(self) -> list[str]:
        """`scores` as lines; where no run counts, what there is, and what is different about it."""
        runs = self.counted
        if runs:
            seeds = len({run.seed for run in runs if run.seed is not None}) + sum(run.seed is None for run in runs)
            number = f"{len(runs)} runs of " if len(runs) > seeds else ""
            return [f"{number}{seeds} seed{'s' * (seeds > 1)}", *map(str, self.scores)]
        return [
            ", ".join(f"{name} {value:.2f}" for name, value in run.scores.items())
            + f" ({'other recipe' if run.differs else f'not finished, epoch {run.epoch}'})"
            for run in self.runs
        ]

    def record(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        row, build = self.row, self.row.build
        content = {"id": row.id, **asdict(replace(row, alternatives=()))}
        del content["alternatives"]
        content |= {
            "build": None
            if build is None
            else {
                **asdict(build),
                **{key: dict(getattr(build, key)) for key in ("own", "shared", "test", "counted", "options")},
            },
            "command": None if build is None else build.command(),
            "here": {**asdict(self.measured), "params_in_unit": self.params, "flops": self.flops},
            "flops_agree": self.flops_agree,
            "verdict": self.verdict,
            "reason": self.reason,
            "metrics": row.metrics,
            "top1": row.top1,
            "scores": [asdict(score) for score in self.scores],
            "runs": [asdict(run) for run in self.runs],
        }
        return content


def evaluate(
    rows: Iterable[Row],
    count_detector: Callable[[Build], flops.Count] | None = None,
    runs: Mapping[str, list[tuple[Path, dict[str, Any]]]] | None = None,
    detector_runs: Callable[[Row], list[Run]] | None = None,
) -> list[Result]:
    """Builds every row, and after it its other forms, and judges them.

    Args:
        rows: from `load_rows`.
        count_detector: counts a detector; None where MMDetection is not installed.
        runs: from `find_runs`.
        detector_runs: gives the runs of a detector; None where MMDetection is not installed, or none are wanted.
    """
    results = []
    for row in with_alternatives(rows):
        detects = row.build is not None and row.build.detector is not None
        found = (detector_runs(row) if detector_runs else []) if detects else matching_runs(row, runs or {})
        results.append(judge(row, _measured(row, count_detector), found))
    return results


def _measured(row: Row, count_detector: Callable[[Build], flops.Count] | None) -> Measured:
    if row.build is None:
        return Measured()
    if row.build.detector is None:
        return measure(row.build, row.flops)
    if count_detector is None:
        return Measured(problem=UNCOUNTED)
    try:
        found = count_detector(row.build)
    except ValueError as error:
        return Measured(problem=str(error))
    return Measured(found.params, found.ptflops, found.macs)


def judge(row: Row, found: Measured, runs: list[Run] | None = None) -> Result:
    """The verdict on one row."""
    printed = row.printed.get("params")
    params = operations = None
    if found.params is not None:
        params = (found.params + (found.statistics if row.counts == "with_statistics" else 0)) / MILLION[row.unit]
        counted = found.ptflops if row.flops == "ptflops" else found.macs
        operations = None if counted is None else counted / 1e9
    printed_flops, flops_agree = row.printed.get("flops"), None
    if printed_flops is not None and operations is not None:
        flops_agree = agree(printed_flops, operations, decimals(printed_flops))
    verdict, reason = EXPLAINED, row.reason or row.note
    if reason is None and flops_agree is False and row.source is not None:
        reason = f"source: {row.source.lstrip('* ')}"
    if row.build is None:
        reason = reason or "no network"
    elif found.problem == UNCOUNTED:
        verdict = UNCOUNTED if row.reproduced else OTHER if row.alternative else EXPLAINED
        reason = "; ".join([*([reason] if reason else []), f"counted after {INSTALL}"])
    elif found.problem is not None or params is None:
        verdict = WRONG
        reason = f"cannot be built: {found.problem}"
    elif row.alternative:
        verdict = OTHER
    elif printed is None:
        reason = f"the table prints no parameters{f'; {reason}' if reason else ''}"
    elif row.reproduced:
        verdict = EQUAL
        wrong = []
        as_printed = params
        if row.added_to:
            as_printed = row.added_to["printed"] + round(params - row.added_to["params"] / MILLION[row.unit], row.digits)
        if not agree(printed, as_printed, row.digits):
            wrong.append(f"params: printed {printed:.{row.digits}f}, here {params:.4f}")
        if row.flops_reproduced and flops_agree is False:
            wrong.append(f"FLOPs: printed {printed_flops}, here {operations:.4f}")
        if wrong:
            verdict, reason = WRONG, "; ".join(wrong)
    return Result(row, found, params, operations, flops_agree, verdict, reason, runs or [])


def summary(results: Sequence[Result]) -> str:
    """One line: how many rows, how many of each verdict, and how many of the printed FLOPs are met."""
    others = sum(result.row.alternative and result.verdict != WRONG for result in results)
    verdicts = [result.verdict for result in results if not result.row.alternative or result.verdict == WRONG]
    parts = [f"{verdicts.count(EQUAL)} equal to the printed digit", f"{verdicts.count(EXPLAINED)} explained"]
    for verdict, text in ((UNCOUNTED, f"that need the detection extra to be counted ({INSTALL})"), (WRONG, "WRONG")):
        if verdict in verdicts:
            parts.append(f"{verdicts.count(verdict)} {text}")
    agreeing = [result.flops_agree for result in results if result.flops_agree is not None]
    total = f"{len(verdicts)} rows: {', '.join(parts)}; FLOPs to the printed digit in {sum(agreeing)} of {len(agreeing)}"
    return total + (f"; {others} rows in another form, too" if others else "")
