"""What the runs of a study reached, and what that allows one to say of each method."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn.report.verdict import LEAST_SEEDS, paired
from attn.runs import directory, metrics
from attn.studies.study import Study

LEVEL = 0.05


@dataclass(frozen=True)
class Reached:
    """One finished run.

    Attributes:
        scores: of its last epoch, by name: the best epoch would be chosen on the images that it is tested on.
        speed: median images per second in training, over the epochs after the first; None if none was measured.
    """

    scores: dict[str, float]
    speed: float | None


@dataclass(frozen=True)
class Difference:
    """A method less the baseline, over the seeds that both have.

    Attributes:
        mean: in the unit of the score.
        interval: of 95 %, not corrected; None with fewer than three common seeds.
        corrected: the same at 5 % over all comparisons of the table (Bonferroni).
        seeds: number of common seeds.
    """

    mean: float
    interval: tuple[float, float] | None
    corrected: tuple[float, float] | None
    seeds: int

    @property
    def verdict(self) -> str:
        """helps, hurts, or cannot be told apart: by the corrected interval alone."""
        if self.corrected is None:
            return "too few seeds"
        low, high = self.corrected
        return "helps" if low > 0 else "hurts" if high < 0 else "cannot be told apart"


def read(study: Study, runs: Path) -> dict[str, dict[int, Reached]]:
    """The finished runs of a study by method and seed; methods without one are left out.

    Args:
        study: which.
        runs: the directory that `Study.folder` was given, or the one with the raw metrics in the repository.
    """
    found: dict[str, dict[int, Reached]] = {}
    for method, seed, rows in finished(study, runs):
        # 0 where a run was continued after the last step of an epoch.
        speeds = [row["images_per_second"] for row in rows[1:] or rows if row["images_per_second"]]
        reached = {name: float(rows[-1][f"val_{name}"]) for name in study.scores}
        found.setdefault(method, {})[seed] = Reached(reached, statistics.median(speeds) if speeds else None)
    return found


def finished(study: Study, runs: Path) -> Iterator[tuple[str, int, list[dict[str, Any]]]]:
    """Method, seed and lines of metrics of each finished run; `runs` as of `read`."""
    for method, seed in study.cells():
        folder = study.folder(runs, method, seed)
        rows = metrics.read_metrics(folder) if (folder / directory.DONE).exists() else []
        if rows:
            yield method, seed, rows


def difference(ours: Mapping[int, float], baseline: Mapping[int, float], comparisons: int) -> Difference | None:
    """The paired difference of a method to the baseline; None without a common seed.

    Args:
        ours, baseline: a score by seed.
        comparisons: number of methods that are compared to the baseline.
    """
    seeds = sorted(set(ours) & set(baseline))
    if not seeds:
        return None
    differences = [ours[seed] - baseline[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    if len(seeds) < LEAST_SEEDS:
        return Difference(mean, None, None, len(seeds))
    return Difference(mean, paired(differences, LEVEL)[1], paired(differences, LEVEL / max(comparisons, 1))[1], len(seeds))


def spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None
