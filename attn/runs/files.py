"""Files that are either the old or the new one, whole, at every moment."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import IO, Any


def replace_by_link(source: Path, target: Path) -> None:
    """Makes `target` another name of `source`, atomically; a flushed copy where the file system has no links."""
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with open(source, "rb") as content, open(temporary, "wb") as copy:
            shutil.copyfileobj(content, copy)
            _flush(copy)
    os.replace(temporary, target)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Replaces the content of a file; it is on the disk before this returns."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w") as file:
        file.write(text)
        _flush(file)
    os.replace(temporary, path)
    sync_folder(path.parent)


def append_whole(path: Path, text: str, sync: bool) -> None:
    """Adds a string to a file, all of it or nothing.

    Args:
        sync: have it on the disk before returning.

    Raises:
        OSError: the disk is full; nothing was added.
    """
    left = text.encode()
    with open(path, "ab", buffering=0) as file:  # a buffer would be written once more when it is closed
        end = file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[file.write(left) :]
            if sync:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def _flush(file: IO[Any]) -> None:
    """To the disk: a rename may reach it before the content does, and a power cut would leave an empty file."""
    file.flush()
    os.fsync(file.fileno())


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: a number that is not finite, which JSON cannot express, becomes null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    return value
