"""Reads every image below a folder as training does, and reports those that cannot be read.

    python scripts/check_data.py ROOT

In a folder that scripts/pack.py wrote it also compares every file with its checksum.
Only ever reads. Exit code 0: all are readable; 1: some are not; 2: there is nothing to check.
"""

from __future__ import annotations

import functools
import io
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from attn.config import scripts
from attn.config.scripts import not_negative, positive
from attn.data import packed
from attn.data.imagefolder import DecodeError, UnreadableImage, decode, is_image_name, read_bytes
from attn.data.loader import most_workers
from attn.data.packed import Packed
from attn.errors import UserError

JPEG_NAMES = (".jpg", ".jpeg")
ORIENTATION = 274  # EXIF tag


@dataclass(frozen=True)
class Finding:
    """What one file is: why it cannot be read, or what is unusual about it."""

    problem: str | None
    kinds: tuple[str, ...] = ()


def examine(path: str) -> Finding:
    """Decodes a file fully; unusual kinds are readable, and only counted."""
    try:
        content = read_bytes(path)
        decode(content)
    except DecodeError as error:
        return Finding(str(error))
    except OSError as error:
        return Finding(error.strerror or str(error))
    return Finding(None, unusual(content, Path(path).suffix))


def unusual(content: bytes, suffix: str = "") -> tuple[str, ...]:
    """What is unusual about an image that can be read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(content)) as image:
            kinds = [] if image.mode == "RGB" else [f"mode {image.mode}, converted to RGB"]
            if image.format != "JPEG" and suffix.lower() in JPEG_NAMES:
                kinds.append(f"named {suffix}, but {image.format}")
            if min(image.size) < 16:
                kinds.append("a side below 16 pixels")
            if image.getexif().get(ORIENTATION, 1) != 1:
                kinds.append("rotated by its EXIF data, which training ignores")
    if caught:
        kinds.append("with damaged metadata")
    return tuple(kinds)


@functools.cache
def opened(folder: Path) -> Packed:
    return Packed(folder, packed.description(folder)["num_classes"])


def examine_packed(item: tuple[Path, int]) -> Finding:
    """As `examine`, for an image of a packed split."""
    folder, index = item
    try:
        image = opened(folder)[index][0]
        image.rgb()
    except (UnreadableImage, UserError, OSError) as error:
        return Finding(str(error))
    return Finding(None, unusual(image.content))


def main() -> int:
    parser = scripts.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="a folder; all image files below it are read")
    parser.add_argument("--workers", type=not_negative, default=4, help="processes (default 4); 0: none but this one")
    parser.add_argument("--limit", type=positive, default=100, help="unreadable files to name (default 100)")
    options = parser.parse_args()
    if options.workers > most_workers():
        print(
            f"error: --workers {options.workers}: more than {most_workers()} only wait for each other here", file=sys.stderr
        )
        return 2
    if not options.root.is_dir():
        print(f"error: {options.root}: no such folder", file=sys.stderr)
        return 2
    splits = [folder for folder in (options.root, *sorted(options.root.iterdir())) if packed.is_packed(folder)]
    look: Callable[[Any], Finding] = examine_packed if splits else examine
    if splits:
        try:
            damaged = [line for folder in splits for line in packed.damaged_files(folder)]
            if damaged:
                print("\n".join(damaged))
                return 1
            files: list[Any] = [(folder, index) for folder in splits for index in range(len(opened(folder)))]
        except ValueError as error:
            print(error)
            return 1
    else:
        files = sorted(str(path) for path in options.root.rglob("*") if is_image_name(path))
    if not files:
        print(f"error: {options.root}: no image file below it ({', '.join(IMG_EXTENSIONS)})", file=sys.stderr)
        return 2

    kinds: Counter[str] = Counter()
    unreadable = 0
    bar = tqdm(total=len(files), unit="images", disable=not sys.stderr.isatty())
    if options.workers:
        with ProcessPoolExecutor(options.workers) as pool:
            findings = pool.map(look, files, chunksize=32)
            unreadable = report(files, findings, kinds, options.limit, bar)
    else:
        unreadable = report(files, map(look, files), kinds, options.limit, bar)
    bar.close()
    for kind, count in kinds.most_common():
        print(f"{count:8d} {kind}")
    if unreadable:
        print(f"{unreadable} of {len(files)} images cannot be read: fix or remove them, or train with data.on_error=replace")
        return 1
    print(f"{len(files)} images, all readable")
    return 0


def report(files: list[Any], findings: Iterable[Finding], kinds: Counter[str], limit: int, bar: tqdm) -> int:
    """Prints unreadable files as they are found, counts the kinds of the others; returns how many are unreadable."""
    unreadable = 0
    for file, finding in zip(files, findings, strict=True):
        bar.update()
        kinds.update(finding.kinds)
        if finding.problem is not None:
            unreadable += 1
            if unreadable <= limit:
                bar.clear()
                print(finding.problem if isinstance(file, tuple) else f"{file}: {finding.problem}", flush=True)
    return unreadable


if __name__ == "__main__":
    scripts.run(main)
