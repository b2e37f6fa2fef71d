"""Files that a command is asked to write: their place is checked before any work."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from attn.errors import UserError


def expect_place(path: Path, key: str) -> None:
    """Checks that a file can be written there, whose missing folders would be made.

    Args:
        path: the file.
        key: what names it on the command line, as in `out=`, for the message.

    Raises:
        UserError: it is a folder or a device, or a folder above it is a file or may not be written to.
    """
    try:
        if path.is_dir():
            raise UserError(f"{key}{path} is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise UserError(f"{key}{path} is a device, which would be replaced by a file; name a file")
        above = next(folder for folder in path.absolute().parents if folder.exists())
    except OSError as error:
        raise UserError(f"{key}{path} cannot be written: {error.strerror}") from None
    if not above.is_dir():
        raise UserError(f"{key}{path}: {above} is a file; name a file in a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{key}{path}: the folder {above} may not be written to; name a file in another")


def expect_older(path: Path, key: str, beginning: str, kind: str) -> bool:
    """Checks that a file can be written there, and that it replaces nothing but an older one of its kind.

    Args:
        path, key: as of `expect_place`.
        beginning: of every file of this kind.
        kind: its name in the message.

    Returns:
        Whether there is an older one. An empty file is none, and may be replaced.

    Raises:
        UserError: as `expect_place`, there is no such folder, or the file is of another kind.
    """
    expect_place(path, key)
    if not path.parent.is_dir():
        raise UserError(f"{key}{path}: there is no folder {path.parent}; create it first")
    if not path.exists():
        return False
    try:
        with open(path, "rb") as file:
            there = file.read(len(beginning.encode()))
    except OSError as error:
        raise UserError(f"{key}{path} exists and cannot be read ({error.strerror}): name another file") from None
    if there not in (b"", beginning.encode()):
        raise UserError(f"{key}{path} exists and is no {kind}, so it is not replaced: name another file, or remove it")
    return bool(there)


def is_weights(path: Path) -> bool:
    """Whether a file is one of `torch.save`, which no option replaces by something else."""
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/data.pkl") for name in archive.namelist())


def expect_picture(path: Path) -> None:
    """Checks, before any work, that a picture can be written there.

    Raises:
        UserError: it is a folder, in none or in one that may not be written to, or of no kind that can be drawn.
    """
    from matplotlib.figure import Figure

    if path.is_dir():
        raise UserError(f"--picture {path} is a folder; name a file in it, such as {path / 'figure.png'}")
    expect_place(path, "--picture ")
    if not path.parent.is_dir():
        raise UserError(f"--picture {path}: there is no folder {path.parent}")
    kinds = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise UserError(f"--picture {path}: the name must end in .png or another of {', '.join(kinds)}")
