"""What a rename puts in place of a file is on the disk before: a power cut leaves the old or the new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attn.runs import checkpoint, files, metrics

Renames = list[Path]


@pytest.fixture
def renames(monkeypatch: pytest.MonkeyPatch) -> Renames:
    """The targets of all renames; each source must have been flushed with its last byte, and each rename after it."""
    synced: dict[int, int] = {}
    done: Renames = []
    fsync, rename = os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        status = os.fstat(handle)
        synced[status.st_ino] = status.st_size
        fsync(handle)

    def watched_replace(source: Any, target: Any) -> None:
        status = os.stat(source)
        assert synced.get(status.st_ino) == status.st_size, f"{source} is renamed before it is on the disk"
        synced.pop(os.stat(Path(target).parent).st_ino, None)
        rename(source, target)
        done.append(Path(target))

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    yield done
    assert all(os.stat(target.parent).st_ino in synced for target in done), "a rename is not on the disk"


def no_links(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_a_text(tmp_path: Path, renames: Renames) -> None:
    for text in ("old", "newer"):
        files.write_atomically(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == text
    assert renames == 2 * [tmp_path / "file"]
    assert os.listdir(tmp_path) == ["file"]


def test_metrics_that_are_rewound(tmp_path: Path, renames: Renames) -> None:
    metrics.append_metrics(tmp_path, [{"epoch": 1}, {"epoch": 2}])
    metrics.rewind_metrics(tmp_path, 1)
    assert renames == [tmp_path / metrics.METRICS]
    assert metrics.read_metrics(tmp_path) == [{"epoch": 1}]


@pytest.mark.parametrize("link", [os.link, no_links])
def test_checkpoints_with_and_without_links(
    tmp_path: Path, renames: Renames, monkeypatch: pytest.MonkeyPatch, link: Callable[..., None]
) -> None:
    monkeypatch.setattr(os, "link", link)
    for step in (1, 2):
        checkpoint.save({"model": {"w": torch.full((1000,), step)}, "config": {}, "step": step}, tmp_path, best=True)
    assert {path.name for path in renames} == {"last.pt", "previous.pt", "best.pt"}
    steps = {name: checkpoint.read(tmp_path / name)["step"] for name in ("last.pt", "previous.pt", "best.pt")}
    assert steps == {"last.pt": 2, "previous.pt": 1, "best.pt": 2}
