"""A network's scores as its paper prints them and as its runs reached them, metric by metric."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from attn.tables.runs import Run


@dataclass(frozen=True)
class Score:
    """One metric of a row: what is printed, and what its runs reached, all in percent.

    Attributes:
        printed: None where the paper does not print it.
        printed_std: its printed standard deviation, where there is one.
        values: one per run.
        mean, median, best, std: over the runs; `std` is that of a sample (n - 1), None for a single run.
        differences: how far mean, median and best are from the printed value, in percentage points; empty without one.
    """

    metric: str
    printed: float | None
    printed_std: float | None
    values: tuple[float, ...]
    mean: float
    median: float
    best: float
    std: float | None
    differences: dict[str, float]

    def __str__(self) -> str:
        def shown(name: str) -> str:
            difference = f" ({self.differences[name]:+.2f})" if name in self.differences else ""
            return f"{name} {getattr(self, name):.2f}{difference}"

        printed = "not printed" if self.printed is None else f"printed {self.printed:.2f}"
        printed += "" if self.printed_std is None else f" +- {self.printed_std:.2f}"
        deviation = "" if self.std is None else f", std {self.std:.2f}"
        return f"{self.metric}: {printed}, {', '.join(map(shown, ('mean', 'median', 'best')))}{deviation}"


def compare(printed: Mapping[str, float], runs: Iterable[Run], printed_std: float | None = None) -> list[Score]:
    """Every metric that runs reached beside the printed one, in the order of the printed ones; the others follow.

    Args:
        printed: `Row.metrics`. A name such as "top-1 (original)" is compared with the runs' "top-1".
        runs: those that count, one per seed.
        printed_std: of the first printed metric.
    """
    runs = list(runs)
    first = next(iter(printed), None)
    metrics = {name: name.partition(" (")[0] for name in printed}
    others = [name for run in runs for name in run.scores if name not in metrics.values()]
    found = []
    for name, metric in {**metrics, **dict(zip(others, others, strict=True))}.items():
        values = tuple(run.scores[metric] for run in runs if metric in run.scores)
        if values:
            centre = {"mean": statistics.mean(values), "median": statistics.median(values), "best": max(values)}
            value = printed.get(name)
            found.append(
                Score(
                    metric=name,
                    printed=value,
                    printed_std=printed_std if name == first else None,
                    values=values,
                    std=statistics.stdev(values) if len(values) > 1 else None,
                    differences={} if value is None else {key: reached - value for key, reached in centre.items()},
                    **centre,
                )
            )
    return found
