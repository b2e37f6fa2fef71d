"""Checkpoints: plain mappings, written atomically, loaded without executing anything."""

from __future__ import annotations

import os
import pickle
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attn import __version__, console
from attn.errors import UserError, reason
from attn.runs import entries
from attn.runs.files import replace_by_link, sync_folder

FORMAT = 1


LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


RESUMABLE = ("ema", "optimizer", "scaler", "step", "evaluated", "skipped_in_row", "best", "meter", "rows")


class BadCheckpoint(UserError):
    """A file is not a checkpoint of this package, or is damaged; the message names the file and the reason."""


def save(content: Mapping[str, Any], run_dir: Path, best: bool) -> None:
    """Writes `last.pt`, keeps the one before it as `previous.pt`, and with `best` makes it `best.pt` too.

    At every moment each of them is either the old or the new checkpoint, whole: the new one is written beside them, flushed
    to the disk, and renamed. `last.pt` is renamed last: a run that is killed in between writes the others again.

    Raises:
        OSError: the disk is full or not writable; the old checkpoints are untouched.
    """
    last = run_dir / LAST
    temporary = run_dir / f"{LAST}.tmp"
    try:
        write(content, temporary)
        if best:
            replace_by_link(temporary, run_dir / BEST)
        if last.exists():
            replace_by_link(last, run_dir / PREVIOUS)
        os.replace(temporary, last)
        sync_folder(run_dir)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(content: Mapping[str, Any], path: Path) -> None:
    """Writes a new file and flushes it to the disk; what was at `path` is unlinked before.

    Raises:
        OSError: the disk is full or not writable; a part of the file may be there.
    """
    path.unlink(missing_ok=True)  # never written to: it could be another name of best.pt by now
    with open(path, "wb") as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # torch's own complaint about its archive may hide what the disk said
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        file.flush()
        os.fsync(file.fileno())


def read(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint and checks it: the checksums of its parts, that it is only plain data, its keys and values.

    Raises:
        BadCheckpoint: the file is missing, damaged, holds code, or is something else.
    """
    path = Path(path)
    try:
        with console.told_if_slow(f"checkpoint {path} to be read"):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not check the checksums: a flipped byte would load silently
            if damaged is not None:
                raise BadCheckpoint(f"checkpoint {path} is damaged: the checksum of its part {damaged} is wrong")
            content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise BadCheckpoint(f"checkpoint {path}: no such file") from None
    except IsADirectoryError:
        raise BadCheckpoint(f"checkpoint {path} is a folder; name the file, such as {path / BEST}") from None
    except pickle.UnpicklingError:
        raise BadCheckpoint(
            f"checkpoint {path} holds more than tensors and plain data; refused, nothing was executed"
        ) from None
    except BadCheckpoint:
        raise
    except Exception as error:  # what is inside may be anything
        raise BadCheckpoint(f"checkpoint {path} cannot be read (truncated, or no checkpoint): {reason(error)}") from None
    if not (isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("model", "config"))):
        raise BadCheckpoint(f"checkpoint {path} is not one of train.py: it has no model and config in it")
    wrong = next(entries.problems(content), None)
    if wrong is not None:
        raise BadCheckpoint(f"checkpoint {path} is damaged, or not one of train.py: {wrong}")
    if content.get("format", 0) > FORMAT:
        raise BadCheckpoint(f"checkpoint {path} has format {content['format']}, newer than this version's {FORMAT}")
    return content


def expect_resumable(content: Mapping[str, Any], path: str | Path) -> None:
    """Checks that a checkpoint holds all that training needs, and not only a model.

    Raises:
        BadCheckpoint: names what is missing.
    """
    missing = [key for key in RESUMABLE if key not in content]
    if missing:
        raise BadCheckpoint(
            f"checkpoint {path} cannot be continued, it lacks {', '.join(missing)}; attn.load(PATH) may read it"
        )


def newest(run_dir: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest sound checkpoint of a run, its content, and what is wrong with newer ones; None for a fresh directory.

    Damaged ones are renamed to `NAME.damaged`, so that the next save cannot replace a sound checkpoint by a damaged one.

    Raises:
        BadCheckpoint: there are checkpoints, but none is sound: a run must not silently start again.
    """
    problems: list[str] = []
    damaged: list[Path] = []
    for name in (LAST, PREVIOUS, BEST):
        path = run_dir / name
        if not path.exists():
            continue
        try:
            content = read(path)
        except BadCheckpoint as error:
            problems.append(str(error))
            damaged.append(path)
            continue
        for bad in damaged:
            os.replace(bad, bad.with_name(f"{bad.name}.damaged"))
        return path, content, problems
    if problems:
        raise BadCheckpoint(
            f"{'; '.join(problems)}; no sound checkpoint is left in {run_dir}: remove them to start again, or use another "
            "run_dir"
        )
    return None


def non_finite(state: Mapping[str, Any]) -> str | None:
    """The name of a tensor of a state dict that holds a NaN or an infinity, or None."""
    for name, value in _tensors(state, ""):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None


def _tensors(node: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield name, node
    elif isinstance(node, Mapping):
        for key, child in node.items():
            yield from _tensors(child, f"{name}.{key}" if name else str(key))
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from _tensors(child, f"{name}.{index}")


@cache
def versions() -> dict[str, str]:
    """Versions of what computed a run, and the git revision of a checkout (with a + after it if files were changed)."""
    import timm
    import torchvision

    found = {
        "attn": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
    }
    return {**{name: str(version) for name, version in found.items()}, "git": _git_revision()}


def _git_revision() -> str:
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--match="]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
