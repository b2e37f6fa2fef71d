"""Pictures that lie beside runs or in a folder, made small enough for one page."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

KINDS = {
    "weights": "Mean channel weights per class after the last block of each stage",
    "histograms": "Distribution of all attention values of each block",
    "importance": "Importance of the features of a bridge, per block",
    "gradcam": "Grad-CAM: where the network looks",
    "connections": "Contribution of the previous attention at each connection",
    "embedding": "t-SNE of pooled features",
    "maps": "Single channels of a block",
    "batch": "Error against batch size",
    "cost": "Memory, speed and accuracy against size",
    "confusion": "Confusion, accuracy per class, and calibration",
}
PICTURES = (".svg", ".png")
WIDEST = 1600  # pixels
ROWS = 40  # of a table of numbers


@dataclass(frozen=True)
class Figure:
    """A picture in the page.

    Attributes:
        name: of the file, without the ending; title: what it shows.
        source: the file; uri: its content as a `data:` address.
        table: the first rows of the numbers beside it, the header first; `rows`: how many there are.
    """

    name: str
    title: str
    source: Path
    uri: str
    table: list[list[str]]
    rows: int


def find_figures(runs: Iterable[Path], folder: Path | None) -> list[Path]:
    """Pictures of the known kinds beside runs (in the run's folder, or `figures` in it), and all pictures of a folder.

    Of a picture that is there as SVG and PNG, the SVG. The kind is the name up to a `-`, as in `weights-se.svg`.
    """
    found: dict[Path, Path] = {}
    for place in dict.fromkeys((*_places(runs), *([folder] if folder else []))):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            known = place == folder or path.stem.partition("-")[0] in KINDS
            if path.suffix.lower() in PICTURES and known and path.is_file():
                stem = path.with_suffix("")
                if stem not in found or path.suffix.lower() == ".svg":
                    found[stem] = path
    return list(found.values())


def _places(runs: Iterable[Path]) -> Iterator[Path]:
    for run in runs:
        for place in (run, run.parent):
            yield from (place, place / "figures")


def embed(paths: Sequence[Path], budget: int) -> tuple[list[Figure], list[tuple[Path, str]]]:
    """The pictures as `data:` addresses, as long as they fit.

    Args:
        paths: from `find_figures`.
        budget: bytes that all of them may take in the page.

    Returns:
        the figures, and what was left out, with the reason.
    """
    figures, left_out = [], []
    for path in paths:
        try:
            kind, content = _content(path, budget // max(1, min(len(paths), 12)))
        except Exception as error:  # a damaged picture makes decoders raise nearly anything
            left_out.append((path, f"it cannot be read as a picture ({' '.join(str(error).split())})"))
            continue
        uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        if len(uri) > budget:
            left_out.append((path, f"with {len(uri) / 1e6:.1f} MB it is too large for this page"))
            continue
        budget -= len(uri)
        table, rows = _numbers(path.with_suffix(".csv"))
        title = KINDS.get(path.stem.partition("-")[0], path.stem.replace("_", " "))
        figures.append(Figure(path.stem, title, path, uri, table, rows))
    return figures, left_out


def _content(path: Path, share: int) -> tuple[str, bytes]:
    """The type of a picture and its bytes: as they are if they take at most their share, else drawn smaller."""
    content = path.read_bytes()
    if path.suffix.lower() == ".svg":
        if b"<svg" not in content[:4096]:
            raise ValueError("no <svg> in its beginning")
        if len(content) * 4 / 3 <= share or not path.with_suffix(".png").is_file():
            return "image/svg+xml", content
        path = path.with_suffix(".png")
        content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        if len(content) * 4 / 3 <= share and image.width <= 2 * WIDEST:
            return "image/png", content
        smaller = image.convert("RGBA" if "A" in image.getbands() else "RGB")
        smaller.thumbnail((WIDEST, 4 * WIDEST))
        out = io.BytesIO()
        smaller.save(out, "WEBP", quality=85)
    return "image/webp", out.getvalue()


def _numbers(path: Path) -> tuple[list[list[str]], int]:
    """The first rows of a CSV file, its header first, and the number of rows after it."""
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, csv.Error):
        return [], 0
    width = min(len(rows[0]), 12) if rows else 0
    return [(row + [""] * width)[:width] for row in rows[: ROWS + 1]], max(0, len(rows) - 1)
