"""Everything that a report shows, and the page itself."""

from __future__ import annotations

import math
import shlex
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined
from scipy import stats

from attn import __version__
from attn.config.parse import to_dict
from attn.errors import UserError
from attn.report import charts
from attn.report.figures import Figure, embed, find_figures
from attn.report.printed import printed_rows
from attn.report.repeat import command, environments
from attn.report.runs import LeftOut, Result, Row, find, gain, spread, table
from attn.report.verdict import LEAST_SEEDS, Comparison, compare_all
from attn.training.optim import total_epochs

LIMIT = 5_000_000  # bytes of a page
CURVES = (
    ("top1", "Validation top-1", "%", True, ("ema_val_top1", "val_top1")),
    ("val_loss", "Validation loss", "nats", False, ("ema_val_loss", "val_loss")),
    ("train_loss", "Training loss", "nats", False, ("train_loss",)),
    ("lr", "Learning rate", "", False, ("lr",)),
)


@dataclass(frozen=True)
class Method:
    """A row of the comparison as the page shows it."""

    number: int
    name: str
    row: Row
    gain: float | None

    @property
    def results(self) -> list[Result]:
        return self.row.runs

    @property
    def seeds(self) -> list[int]:
        return sorted({result.cfg.seed for result in self.row.runs})

    @property
    def by_seed(self) -> dict[int, float]:
        """Last top-1 by seed; the mean where a seed has several runs."""
        return {
            seed: statistics.fmean(result.last for result in self.row.runs if result.cfg.seed == seed) for seed in self.seeds
        }

    def last(self, *keys: str) -> list[float]:
        """A value of the last epoch of each run that has it, by the first of the keys that is there."""
        rows = [result.history[-1] for result in self.row.runs]
        found = [next((row[key] for key in keys if row.get(key) is not None), None) for row in rows]
        return [value for value in found if value is not None]


def report(
    folders: Sequence[Path], figures: Path | None, trust: Collection[str], arguments: Sequence[str]
) -> tuple[str, list[str]]:
    """The page of all finished runs below some folders.

    Args:
        folders: where to look for runs.
        figures: a folder of pictures to show too.
        trust: modules of the user's own whose attentions runs may name.
        arguments: of the command, for the page to say how to make it again.

    Returns:
        the page, under `LIMIT` bytes, and a line for each thing that was left out.

    Raises:
        UserError: a folder is missing, or there is no finished run.
    """
    if figures is not None and not figures.is_dir():
        raise UserError(f"figures={figures}: no such folder")
    results, left_out = find(folders, trust)
    left_out += [
        LeftOut(r.folder, f"not finished: epoch {r.epochs} of {total_epochs(r.cfg.schedule)}")
        for r in results
        if not r.finished
    ]
    finished = [result for result in results if result.finished]
    if not finished:
        there = "".join(f"; {folder}: {reason}" for folder, reason in left_out[:3])
        raise UserError(f"no finished run in {', '.join(map(str, folders))}{there}")
    methods = _methods(table(finished))
    pictures = find_figures((result.folder for result in finished), figures)
    content = _content(methods, left_out, arguments)
    bare = len(_render(content, [], []).encode())
    shown, too_large = embed(pictures, LIMIT - 200_000 - bare)
    page = _render(content, shown, too_large)
    if len(page.encode()) > LIMIT:
        raise UserError(f"{len(finished)} runs make a page of {len(page.encode()) / 1e6:.1f} MB: name fewer folders")
    told = [f"{path} is left out: {reason}" for path, reason in (*left_out, *too_large)]
    return page, told


def _methods(rows: list[Row]) -> list[Method]:
    backbones, sets = ({getattr(row, key) for row in rows} for key in ("backbone", "data"))
    methods = []
    for number, row in enumerate(rows):
        name = f"{row.backbone} {row.label}" if len(backbones) > 1 else row.label
        methods.append(Method(number, f"{name} on {row.data}" if len(sets) > 1 else name, row, gain(row, rows)))
    return methods


def _content(methods: list[Method], left_out: list[LeftOut], arguments: Sequence[str]) -> dict[str, Any]:
    groups: dict[tuple[str, str], list[Method]] = {}
    for method in methods:
        groups.setdefault((method.row.data, method.row.backbone), []).append(method)
    positions = [[method.number for method in group] for group in groups.values()]
    comparisons = compare_all([method.by_seed for method in methods], positions)
    results = [result for method in methods for result in method.results]
    return {
        "version": __version__,
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "again": shlex.join(["python", "scripts/report.py", *arguments]),
        "methods": methods,
        "runs": len(results),
        "groups": [(*key, group) for key, group in groups.items()],
        "least": LEAST_SEEDS,
        "comparisons": comparisons,
        "tested": sum(comparison.p is not None for comparison in comparisons),
        "findings": [_finding(*key, group, comparisons) for key, group in groups.items()],
        "curves": _curves(methods),
        "means": _means(methods),
        "strips": [(*key, _strip(group, f"scores-{n}")) for n, (key, group) in enumerate(groups.items())],
        "printed": printed_rows(results),
        "differences": _differences(methods),
        "configs": [(method, yaml.safe_dump(to_dict(method.results[0].cfg), sort_keys=False)) for method in methods],
        "environments": environments(results),
        "commands": [(method, command(method.row)) for method in methods],
        "left_out": left_out,
        "number": _number,
        "mean": _mean,
        "listed": _listed,
        "spread": spread,
        "style": charts.style,
        "colours": charts.COLOURS,
    }


def _finding(data: str, backbone: str, group: list[Method], comparisons: list[Comparison]) -> dict[str, Any]:
    """What can be said of the best method of a group."""
    best = max(group, key=lambda method: statistics.fmean(method.row.last()))
    kinds: dict[str, list[str]] = {"better": [], "alike": [], "few": []}
    for other in group:
        pair = next(
            (c for c in comparisons if {c.first, c.second} == {best.number, other.number} and other is not best), None
        )
        if pair is not None:
            kinds["few" if pair.adjusted is None else "alike" if pair.better is None else "better"].append(other.name)
    return {"data": data, "backbone": backbone, "best": best, **kinds}


def _points(result: Result, keys: Sequence[str]) -> list[tuple[int, float]]:
    found = []
    for row in result.history:
        value = next((row[key] for key in keys if row.get(key) is not None), None)
        if value is not None and math.isfinite(value):
            found.append((row["epoch"], float(value)))
    return found


def _curves(methods: list[Method]) -> list[dict[str, Any]]:
    shown = []
    for key, title, unit, rising, names in CURVES:
        lines = [
            charts.Line(method.number, method.name, [p for p in (_points(r, names) for r in method.results) if p])
            for method in methods
        ]
        lines = [line for line in lines if line.seeds]
        if lines:
            chart = charts.curves(lines, title, rising, key)
            shown.append({"key": key, "title": title, "unit": unit, "chart": chart, "table": _table(lines)})
    return shown


def _table(lines: Sequence[charts.Line], most: int = 12) -> dict[str, Any]:
    """The means of the curves at some epochs: what a chart says, for those who do not see it."""
    means = [dict(line.mean) for line in lines]
    epochs = sorted({epoch for mean in means for epoch in mean})
    chosen = [epoch for epoch, _ in charts.thinned([(epoch, 0.0) for epoch in epochs], most)]
    return {
        "epochs": chosen,
        "rows": [(line.name, [mean.get(e) for e in chosen]) for line, mean in zip(lines, means, strict=True)],
    }


def _means(methods: list[Method]) -> dict[str, Any]:
    """The means of all curves by chart and method, for the values under the pointer."""
    means: dict[str, Any] = {}
    for key, _, _, _, names in CURVES:
        for method in methods:
            line = charts.Line(method.number, method.name, [p for p in (_points(r, names) for r in method.results) if p])
            points = [(epoch, float(f"{value:.4g}")) for epoch, value in charts.thinned(line.mean if line.seeds else [])]
            means.setdefault(key, {})[method.number] = points
    return means


def _strip(group: list[Method], key: str) -> Any:
    rows = []
    for method in group:
        scores = method.row.last()
        interval = None
        deviation = spread(scores)
        if deviation is not None and len(scores) >= LEAST_SEEDS:
            half = float(stats.t.ppf(0.975, len(scores) - 1)) * deviation / math.sqrt(len(scores))
            interval = (statistics.fmean(scores) - half, statistics.fmean(scores) + half)
        rows.append((method.number, method.name, scores, interval))
    return charts.strips(rows, "Top-1 in the last epoch, by seed (%)", key)


def _differences(methods: list[Method]) -> list[tuple[str, list[str]]]:
    """The settings in which the methods differ: the key, and the value of each; empty where one does not have it."""
    words = {"None": "null", "True": "true", "False": "false"}
    settings = [{k: words.get(v, v) for k, v in method.results[0].settings.items()} for method in methods]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    values = {key: [one.get(key, "") for one in settings] for key in keys}
    return [(key, found) for key, found in values.items() if len(set(found)) > 1]


def _number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number with a real minus sign; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _listed(names: Sequence[str]) -> str:
    """Names as part of a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _mean(values: Sequence[float], digits: int = 2) -> str:
    """Mean and sample standard deviation."""
    if not values:
        return "–"
    deviation = spread(list(values))
    return _number(statistics.fmean(values), digits) + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _render(content: dict[str, Any], figures: list[Figure], too_large: list[tuple[Path, str]]) -> str:
    templates = Templates(
        loader=PackageLoader("attn.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html.j2").render(**content, figures=figures, too_large=too_large)
