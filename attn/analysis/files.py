"""A figure on the disk: NAME.png, NAME.svg, and its numbers as NAME.csv."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from attn.analysis.style import SETTINGS
from attn.errors import UserError
from attn.runs.files import write_atomically
from attn.runs.metrics import METRICS

ENDINGS = (".png", ".svg", ".csv")
VIEWS = ("metrics", "curves")  # of a run: metrics.csv and curves.png


@dataclass(frozen=True)
class Table:
    """The numbers of a figure: a row of the header, then rows of strings and numbers."""

    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def text(self) -> str:
        """As CSV; a float has six significant digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in self.rows)
        return text.getvalue()


def output_paths(out: str | Path) -> list[Path]:
    """The files of a figure, from a name with or without one of their endings.

    Raises:
        UserError: there is no such folder, the name is that of a folder, or of a file that a run writes into its folder.
    """
    stem = Path(out).expanduser()
    stem = stem.with_suffix("") if stem.suffix.lower() in ENDINGS else stem
    if stem.is_dir() or not stem.name:
        raise UserError(f"out={out} is a folder; name a file in it, such as {Path(out) / 'figure'}")
    if not stem.parent.is_dir():
        raise UserError(f"out={out}: there is no folder {stem.parent}; create it first")
    if stem.name in VIEWS and (stem.parent / METRICS).exists():
        raise UserError(f"out={out} would replace the {stem.name} of the run in {stem.parent}; choose another name")
    return [stem.with_name(stem.name + ending) for ending in ENDINGS]


def save(figure: Figure, table: Table, out: str | Path, dpi: int = 110) -> list[Path]:
    """Writes picture and numbers, each file whole or not at all; returns the paths.

    Raises:
        UserError: as `output_paths`, or the disk refuses.
    """
    paths = output_paths(out)
    try:
        with rc_context(SETTINGS):
            for path in paths[:2]:
                temporary = path.with_name(f"{path.name}.tmp")
                try:
                    figure.savefig(
                        temporary,
                        format=path.suffix[1:],
                        dpi=dpi,
                        metadata={"Date": None} if path.suffix == ".svg" else None,
                    )
                    os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
        write_atomically(paths[2], table.text())
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror or error}") from None
    return paths
