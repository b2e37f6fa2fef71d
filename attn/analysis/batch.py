"""Mean error of the seeds against the batch size of the training. BA2M, Figure 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from attn.analysis import runs, style
from attn.analysis.files import Table
from attn.config.analysis import Batch
from attn.errors import UserError

VARIED = ("schedule.batch_size", "schedule.accumulate", "schedule.lr")


@dataclass(frozen=True)
class ErrorByBatch:
    """One method.

    Attributes:
        name: backbone and attention.
        size: batch sizes, ascending, [B].
        errors: 100 minus the top-1 of the last epoch of every seed, in percent; one list per batch size.
    """

    name: str
    size: np.ndarray
    errors: list[list[float]]

    @property
    def mean(self) -> np.ndarray:
        return np.array([np.mean(values) for values in self.errors])

    @property
    def std(self) -> np.ndarray:
        """Of a sample; NaN for a single seed."""
        return np.array([np.std(values, ddof=1) if len(values) > 1 else np.nan for values in self.errors])


def measure(found: Sequence[runs.Finished]) -> list[ErrorByBatch]:
    """The errors of finished runs by batch size; runs may also differ in learning rate and accumulation, which go with it.

    Raises:
        UserError: they are of several data sets, or all of one batch size.
    """
    methods = []
    for one in runs.one_data(runs.group(found, VARIED)):
        by_size: dict[int, list[float]] = {}
        for run in one.runs:
            by_size.setdefault(run.cfg.schedule.batch_size, []).append(100 - run.top1)
        ordered = sorted(by_size)
        methods.append(ErrorByBatch(one.name, np.array(ordered), [by_size[size] for size in ordered]))
    sizes = {int(size) for method in methods for size in method.size}
    if len(sizes) < 2:
        raise UserError(
            f"runs={', '.join(sorted({str(run.folder) for run in found})[:3])}{' ...' if len(found) > 3 else ''}: "
            f"{len(found)} finished run{'s' * (len(found) > 1)}, of no batch size but {min(sizes)}; train with several, as in "
            "schedule.batch_size=32,64 -m"
        )
    return methods


@style.styled
def draw(found: Sequence[ErrorByBatch]) -> Figure:
    """A line per method; bars are the spread over seeds."""
    figure, axes = style.panels(1, 1, width=5.5, height=3.2)
    panel = axes[0, 0]
    for number, one in enumerate(found):
        spread = np.nan_to_num(one.std)
        look = {"color": style.colour(number), "marker": style.marker(number), "linestyle": style.dash(number)}
        panel.errorbar(one.size, one.mean, yerr=spread, capsize=3, markersize=5, label=one.name, **look)
    panel.set_xscale("log", base=2)
    ticks = sorted({int(size) for one in found for size in one.size})
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    seeds = sorted({len(values) for one in found for values in one.errors})
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    panel.set(xlabel="batch size of the training", ylabel=f"top-1 error (%), mean of {count} seed{'s' * (count != '1')}")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    return figure


def table(found: Sequence[ErrorByBatch]) -> Table:
    """A row per method and batch size."""
    rows = [
        (
            one.name,
            int(size),
            len(values),
            float(mean),
            "" if np.isnan(std) else float(std),
            " ".join(f"{v:.4g}" for v in values),
        )
        for one in found
        for size, values, mean, std in zip(one.size, one.errors, one.mean, one.std, strict=True)
    ]
    return Table(("method", "batch_size", "seeds", "mean_error", "std", "errors"), rows)


def run(options: Batch) -> tuple[Figure, Table]:
    """The job of `scripts/analyse.py batch`."""
    if not options.runs:
        raise UserError("runs must be set, as in batch runs=runs")
    found = measure(runs.find(options.runs))
    return draw(found), table(found)
