"""The pictures of a study's page: learning curves from the metrics, and figures of `scripts/analyse.py` from the checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from attn.analysis import command, style
from attn.config import analysis
from attn.errors import UserError
from attn.runs.checkpoint import LAST
from attn.studies import study as studies
from attn.studies.outcome import finished
from attn.studies.study import Study


def write(study: Study, runs: Path, images: Path) -> Iterator[Path]:
    """Draws every picture of a study as PNG of 256 colours into a folder, and gives its path.

    Args:
        study: which.
        runs: the folder that `Study.folder` was given.
        images: the folder, which must exist.

    Raises:
        UserError: no run is finished, or a checkpoint is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        if study.curves:
            drawn = Path(folder) / study.picture("curves")
            curves(study, runs).savefig(drawn, dpi=110)
            yield small(drawn, images / drawn.name)
        for figure in study.figures:
            drawn = Path(folder) / study.picture(figure.kind)
            command.run(*analysis.read(arguments(study, figure, runs, drawn)))
            yield small(drawn, images / drawn.name)


def small(source: Path, target: Path) -> Path:
    """Copies a PNG file with 256 colours, a fifth to a half of its size. Median cut would merge the colours of thin lines."""
    with Image.open(source) as image:
        palette = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(target, optimize=True)
    return target


def arguments(study: Study, figure: studies.Figure, runs: Path, out: Path) -> list[str]:
    """The arguments of `scripts/analyse.py` for a figure: of the last weights, as the scores are, of the first seed.

    Raises:
        UserError: a checkpoint is missing; the raw metrics alone draw only learning curves.
    """
    paths = [study.folder(runs, method, study.seeds[0]) / LAST for method in figure.methods]
    for path in paths:
        if not path.exists():
            raise UserError(
                f"{path}: no such checkpoint; make it by: python scripts/results.py run {study.name} --runs {runs}"
            )
    return [figure.kind, *(f"checkpoint={path}" for path in paths), *figure.options, f"out={out}"]


@style.styled
def curves(study: Study, runs: Path) -> Figure:
    """The first score over the epochs: the mean over the seeds, and a band of one standard deviation to either side.

    Raises:
        UserError: no run of `study.curves` is finished.
    """
    score = study.scores[0]
    values: dict[str, list[list[float]]] = {}
    epochs: list[int] = []
    for method, _, rows in finished(study, runs):
        values.setdefault(method, []).append([row[f"val_{score}"] for row in rows])
        epochs = [row["epoch"] for row in rows]
    if not set(values) & set(study.curves):
        raise UserError(f"{runs / study.name}: no finished run of {', '.join(study.curves)}")
    figure, axes = style.panels(1, 1, width=5.2, height=3.0)
    panel = axes[0, 0]
    for number, method in enumerate(method for method in study.curves if method in values):
        scores = np.array(values[method])  # [seeds, epochs]
        mean, deviation = scores.mean(0), scores.std(0, ddof=1) if len(scores) > 1 else np.zeros(len(epochs))
        every = max(1, len(epochs) // 10)
        name = f"{method} ({len(scores)} seed{'s' * (len(scores) > 1)})"
        panel.plot(epochs, mean, color=style.colour(number), marker=style.marker(number), markevery=every, ms=4, label=name)
        panel.fill_between(epochs, mean - deviation, mean + deviation, color=style.colour(number), alpha=0.15, lw=0)
    later = np.concatenate(
        [np.array(values[method])[:, len(epochs) // 4 :].ravel() for method in study.curves if method in values]
    )
    margin = 0.05 * float(np.ptp(later)) or 1.0
    panel.set(xlabel="epoch", ylabel=f"{study.score} on held-out images", ylim=(later.min() - margin, later.max() + margin))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, loc="lower right")
    return figure
