"""Decodes only the part of a JPEG file that a crop needs, by an optional C++ extension over libjpeg-turbo (region.cpp).

The pixels are those of Pillow's decoder, crop and resize, which `build` checks. While it works, other threads of Python run.
"""

from __future__ import annotations

import ctypes
import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

from attn.kernels import build as kernels

SOURCE = Path(__file__).with_name("region.cpp")
# Without -ffp-contract=off the weights of the resampling would be rounded differently from Pillow's.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off")
LIBRARIES = ("-ljpeg",)
BUILD = "python -m attn.build"
FILTERS = {"nearest": 0, "bilinear": 1, "bicubic": 2}
JPEG, END = b"\xff\xd8\xff", b"\xff\xd9"
SLACK = 64  # bytes that the extension may write after the pixels
# Since version 13 Pillow resizes a box that loses much more height than width in height first.
HEIGHT_FIRST = int(PIL.__version__.partition(".")[0]) >= 13


def library_path() -> Path:
    """The path of the compiled form, whether it exists or not; another Pillow has another one, which is checked against it."""
    pillow = [PIL.__version__, str(features.version_feature("libjpeg_turbo"))]
    return kernels.cached_path("region", (SOURCE,), [*FLAGS, *LIBRARIES, *pillow])


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled form, None if it has not been built or libjpeg is gone."""
    return load(library_path())


def load(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path)) if path.exists() else None
    except OSError:
        return None


def size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG file; None if it is not complete, of another kind, or too large: Pillow decides about it."""
    found = library()
    if found is None or not content.startswith(JPEG) or END not in content[-64:]:
        return None
    sides = (ctypes.c_int32 * 2)()
    if found.attn_jpeg_size(content, ctypes.c_int64(len(content)), sides):
        return None
    limit = Image.MAX_IMAGE_PIXELS
    return None if limit is not None and sides[0] * sides[1] > limit else (sides[0], sides[1])


def resized(
    content: bytes,
    box: Sequence[int],
    size: tuple[int, int],
    kept: Sequence[int],
    interpolation: str,
    mirrored: bool = False,
    found: ctypes.CDLL | None = None,
) -> np.ndarray | None:
    """A rectangle of a JPEG file, resized, and a rectangle of that.

    Args:
        content: of the file; `size` has accepted it.
        box: left, top, width and height in the image.
        size: width and height that the box is resized to.
        kept: left, top, width and height in the resized box.
        interpolation: bilinear or bicubic; any other name where nothing is resized.
        mirrored: whether left and right are exchanged at the end.
        found: the compiled form; by default the one in the cache.

    Returns:
        uint8 [height, width, 3], or None if the file cannot be decoded without a warning.
    """
    found = found or library()
    assert found is not None, "`size` has checked it"
    count = kept[2] * kept[3] * 3
    pixels = np.empty(count + SLACK, np.uint8)
    rectangles = [(ctypes.c_int32 * len(values))(*values) for values in (box, size, kept)]
    arguments = (ctypes.c_int64(len(content)), *rectangles, FILTERS[interpolation], int(mirrored), int(HEIGHT_FIRST))
    if found.attn_jpeg_resized(content, *arguments, ctypes.c_void_p(pixels.ctypes.data)):
        return None
    return pixels[:count].reshape(kept[3], kept[2], 3)


def build(force: bool = False) -> tuple[bool, str]:
    """Compiles the extension if it does not exist yet, and keeps it if its pixels are Pillow's.

    Returns:
        Whether it exists, and one line that says what was done, or why not.
    """
    without = "data.decoder=pil is used"
    path = library_path()
    if path.exists() and not force and load(path) is not None:
        return True, f"region decoder: {path} exists already"
    built, line = kernels.compile_to(path, (SOURCE,), [*FLAGS], LIBRARIES, "region decoder", without, check=differs)
    if not built and "jpeglib.h" in line:
        line = f"region decoder: not built, no jpeglib.h found (Debian: libjpeg62-turbo-dev); {without}"
    return built, line


def differs(path: Path) -> str | None:
    """Why a compiled form is not to be used: where its pixels are not Pillow's; None if they are."""
    found = load(path)
    if found is None:
        return "it cannot be loaded"
    for number, options in enumerate(({"subsampling": 2}, {"subsampling": 1}, {"subsampling": 0, "progressive": True}, {})):
        # Coarse noise: edges everywhere, in the colours too.
        small = np.random.default_rng(number).integers(0, 256, (13, 17, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((187, 141), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        (image if options else image.convert("L")).save(buffer, "JPEG", quality=90, **options)
        with Image.open(buffer) as opened:
            whole = opened.convert("RGB")
        for box, size, name in (
            ((33, 29, 101, 90), (64, 64), "bilinear"),
            ((21, 3, 60, 131), (80, 40), "bilinear"),  # in height first
            ((50, 40, 30, 41), (90, 77), "bicubic"),
        ):
            expected = whole.crop((box[0], box[1], box[0] + box[2], box[1] + box[3]))
            expected = expected.resize(size, Image.Resampling[name.upper()])
            pixels = resized(buffer.getvalue(), box, size, (0, 0, *size), name, found=found)
            if pixels is None or not np.array_equal(pixels, np.asarray(expected)):
                return f"its pixels are not those of Pillow {PIL.__version__}"
    return None
