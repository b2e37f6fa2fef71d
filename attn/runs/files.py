"""Files that are either the old or the new one, whole, at every moment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def replace_by_link(source: Path, target: Path) -> None:
    """Makes `target` another name of `source`, atomically; a copy where the file system has no links."""
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
