"""Which of two methods is better: a paired test over the seeds that both were trained with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy import stats

LEAST_SEEDS = 3
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """One method against another.

    Attributes:
        first, second: their positions in what was compared.
        seeds: those that both have.
        difference: mean over these seeds of the first's score less the second's, in the unit of the scores; None without seeds.
        interval: 95 % confidence interval of that mean, not corrected for the number of pairs; None with too few seeds.
        p: of the two-sided paired t test; None with too few seeds. `adjusted`: by Holm over all pairs that were tested.
    """

    first: int
    second: int
    seeds: tuple[int, ...]
    difference: float | None
    interval: tuple[float, float] | None = None
    p: float | None = None
    adjusted: float | None = None

    @property
    def better(self) -> int | None:
        """The better one of the two; None where they cannot be told apart."""
        if self.adjusted is None or self.difference is None or self.adjusted >= LEVEL:
            return None
        return self.first if self.difference > 0 else self.second

    @property
    def told(self) -> str:
        """The verdict without names: too few seeds, cannot be told apart, better or worse."""
        if self.adjusted is None:
            number = len(self.seeds)
            common = f"{number} common seed{'s' * (number != 1)}" if number else "no common seed"
            return f"too few seeds ({common}, {LEAST_SEEDS} are needed)"
        if self.better is None:
            return "cannot be told apart"
        return "better" if self.better == self.first else "worse"


def paired(differences: Sequence[float], level: float = LEVEL) -> tuple[float, tuple[float, float]]:
    """p of the two-sided paired t test, and the confidence interval of the mean difference.

    Args:
        differences: one per seed, two or more. If all are equal, there is no spread to test against: p is 1 for zeros, else 0.
        level: the chance that the interval misses the mean, 0.05 for 95 %.
    """
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation <= 1e-12 * max(1.0, abs(mean)):
        return (0.0 if abs(mean) > 1e-12 else 1.0), (mean, mean)
    error = deviation / math.sqrt(len(differences))
    freedom = len(differences) - 1
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    half = float(stats.t.ppf(1 - level / 2, freedom)) * error
    return p, (mean - half, mean + half)


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number by Holm's step-down method (1979), in the order given."""
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, highest = [0.0] * len(values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = highest
    return adjusted


def compare_all(
    scores: Sequence[Mapping[int, float]], groups: Sequence[Sequence[int]], least: int = LEAST_SEEDS
) -> list[Comparison]:
    """Every pair within each group.

    Args:
        scores: of each method by seed, the higher the better.
        groups: positions in `scores`; only methods of one group are compared.
        least: common seeds that a test needs.
    """
    found = []
    for group in groups:
        for place, first in enumerate(group):
            for second in group[place + 1 :]:
                seeds = tuple(sorted(set(scores[first]) & set(scores[second])))
                differences = [scores[first][seed] - scores[second][seed] for seed in seeds]
                mean = statistics.fmean(differences) if differences else None
                comparison = Comparison(first, second, seeds, mean)
                if len(seeds) >= least:
                    p, interval = paired(differences)
                    comparison = replace(comparison, p=p, interval=interval)
                found.append(comparison)
    tested = [number for number, comparison in enumerate(found) if comparison.p is not None]
    for number, value in zip(tested, holm([found[n].p or 0.0 for n in tested]), strict=True):
        found[number] = replace(found[number], adjusted=value)
    return found
