"""Damage to checkpoints and to the disk below them."""

from __future__ import annotations

import os
import pickle
import resource
import socket
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fault_harness import PER_EPOCH, Run, finished
from fault_injection import full_disk_in_save, signal_in_save, signal_in_step, slow_steps

import attn
from attn.runs import checkpoint, directory, metrics
from attn.runs.checkpoint import BadCheckpoint
from attn.runs.fingerprint import fingerprint


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    finished(run_dir)
    return fingerprint(run_dir)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run killed in its second epoch, with a last and a previous checkpoint of different steps."""
    assert Run(tmp_path / "run", "save_every_steps=1", faults=[signal_in_step(PER_EPOCH + 2)]).wait() == [-9]
    assert checkpoint.read(tmp_path / "run" / "last.pt")["step"] == PER_EPOCH + 2
    assert checkpoint.read(tmp_path / "run" / "previous.pt")["step"] == PER_EPOCH + 1
    return tmp_path / "run"


@pytest.mark.parametrize("where", ["half", "fsync", "link", "rename"])
@pytest.mark.parametrize("nth", [2, 3], ids=["best", "within an epoch"])
def test_killed_inside_a_save(tmp_path: Path, reference: str, where: str, nth: int) -> None:
    run_dir, options = tmp_path / "run", ("save_every_steps=1",) if nth == 3 else ()
    assert Run(run_dir, *options, faults=[signal_in_save(nth, where)]).wait() == [-9]
    assert list(run_dir.glob("*.tmp")) != []
    step = checkpoint.read(run_dir / "last.pt")["step"]
    assert step == (2 if nth == 3 else PER_EPOCH)
    again = finished(run_dir)
    assert f"at step {step} of" in again.text
    assert list(run_dir.glob("*.tmp")) == []
    assert fingerprint(run_dir) == reference
    best = checkpoint.read(run_dir / "best.pt")
    assert best["step"] == best["best"]["epoch"] * PER_EPOCH
    assert best["best"] == checkpoint.read(run_dir / "last.pt")["best"]


def test_a_full_disk_is_outlived_if_so_configured(tmp_path: Path, reference: str) -> None:
    options = ("save_error=continue", "save_every_steps=1")
    survived = finished(tmp_path / "run", *options, faults=[full_disk_in_save(1, 2)])
    lines = [line for line in survived.text.splitlines() if line.startswith("warning:")]
    assert len(lines) == 2
    assert all(str(tmp_path / "run") in line and "No space left on device" in line for line in lines)
    assert fingerprint(tmp_path / "run") == reference
    assert list((tmp_path / "run").glob("*.tmp")) == []


def test_a_best_that_was_not_written_is_not_the_best(tmp_path: Path) -> None:
    survived = finished(tmp_path / "run", "save_error=continue", faults=[full_disk_in_save(2, 2)])
    assert "No space left" in survived.text
    best = checkpoint.read(tmp_path / "run" / "best.pt")
    assert best["best"] == {"top1": metrics.read_metrics(tmp_path / "run")[1]["val_top1"], "epoch": 2}


def test_a_full_disk_of_the_first_rank_does_not_hang_the_second(tmp_path: Path) -> None:
    finished(tmp_path / "run", "save_error=continue", ranks=2, faults=[full_disk_in_save(1, 2)])
    stopped = Run(tmp_path / "other", ranks=2, faults=[full_disk_in_save(1, 9)])
    assert stopped.wait(60) == [3, 3]
    assert "No space left on device" in stopped.text


def test_a_full_disk_stops_the_run_by_default(tmp_path: Path, reference: str) -> None:
    stopped = Run(tmp_path / "run", faults=[full_disk_in_save(3, 9)])
    assert stopped.wait() == [3]
    error = stopped.text.splitlines()[-1]
    assert error.startswith("error: step 6: the checkpoint cannot be written")
    assert f"{tmp_path / 'run' / 'last.pt'} is the last good checkpoint" in error
    finished(tmp_path / "run")
    assert fingerprint(tmp_path / "run") == reference


def test_a_full_disk_at_the_end_is_an_error_whatever_is_configured(tmp_path: Path) -> None:
    stopped = Run(tmp_path / "run", "save_error=continue", faults=[full_disk_in_save(4, 9)])
    assert stopped.wait() == [3]
    assert "last.pt is the last good checkpoint" in stopped.text.splitlines()[-1]
    assert not (tmp_path / "run" / directory.DONE).exists()
    assert "continuing" in finished(tmp_path / "run").text


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


def test_a_quota_is_as_a_full_disk(tmp_path: Path) -> None:
    stopped = Run(tmp_path / "run", faults=[_small_files])
    assert stopped.wait() == [3]
    assert "File too large" in stopped.text
    assert "there is no good checkpoint yet" in stopped.text.splitlines()[-1]
    finished(tmp_path / "run")


def test_metrics_that_found_no_room_come_later(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "step": 3}, {"epoch": 2, "step": 6}]
    metrics.append_metrics(tmp_path, rows[:1])
    before = (tmp_path / metrics.METRICS).read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            metrics.append_metrics(tmp_path, rows[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / metrics.METRICS).read_bytes() == before
    metrics.append_metrics(tmp_path, rows[1:])
    assert metrics.read_metrics(tmp_path) == rows


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def flip(path: Path) -> None:
    """One bit in the middle of the largest tensor."""
    with zipfile.ZipFile(path) as archive:
        part = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[part.header_offset + 200 + part.file_size // 2] ^= 1
    path.write_bytes(bytes(content))


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


def poison(path: Path) -> None:
    torch.save({"model": {}, "config": {}, "x": Payload(path.parent / "executed")}, path)


def poison_plain(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path.parent / "executed")))


DAMAGES = {
    truncate: "cannot be read (truncated, or no checkpoint)",
    empty: "cannot be read (truncated, or no checkpoint)",
    garbage: "cannot be read (truncated, or no checkpoint)",
    flip: "is damaged: the checksum of its part",
    poison: "holds more than tensors and plain data; refused, nothing was executed",
    poison_plain: "cannot be read (truncated, or no checkpoint)",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_the_previous_one_used(
    stopped: Path, reference: str, damage: Callable[[Path], None]
) -> None:
    damage(stopped / "last.pt")
    again = finished(stopped)
    warning = next(line for line in again.text.splitlines() if line.startswith("warning:"))
    assert f"{stopped / 'last.pt'} {DAMAGES[damage]}" in warning
    assert f"going back to {stopped / 'previous.pt'}" in warning
    assert not (stopped / "executed").exists()
    assert (stopped / "last.pt.damaged").exists()
    assert fingerprint(stopped) == reference


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_sound_checkpoint_nothing_starts_again(stopped: Path, damage: Callable[[Path], None]) -> None:
    for name in ("last.pt", "previous.pt", "best.pt"):
        damage(stopped / name)
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.name != directory.LOCK and path.is_file()}
    refused = Run(stopped)
    assert refused.wait() == [2]
    assert refused.text.count("error:") == 1
    assert "no sound checkpoint is left" in refused.text
    assert before == {
        path.name: path.read_bytes() for path in stopped.iterdir() if path.name != directory.LOCK and path.is_file()
    }


@pytest.mark.parametrize("damage", [*DAMAGES, Path.unlink])
def test_reading_a_damaged_file_says_so(tmp_path: Path, stopped: Path, damage: Callable[[Path], None]) -> None:
    damage(stopped / "last.pt")
    with pytest.raises(BadCheckpoint, match=str(stopped / "last.pt")):
        attn.load(stopped / "last.pt")


def test_a_save_after_damage_keeps_a_sound_previous(stopped: Path) -> None:
    truncate(stopped / "last.pt")
    assert Run(stopped, faults=[signal_in_save(1, "rename")]).wait() == [-9]
    assert checkpoint.read(stopped / "previous.pt")["step"] == PER_EPOCH + 1


def _be_nobody() -> None:
    os.setgid(65534)
    os.setuid(65534)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = Run(tmp_path / "file" / "run")
    assert blocked.wait() == [2]
    assert f"run_dir={tmp_path / 'file' / 'run'} cannot be written: Not a directory" in blocked.text

    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    readonly = Run(folder, faults=[_be_nobody] if os.getuid() == 0 else [])
    assert readonly.wait() == [2]
    assert f"run_dir={folder} cannot be written: Permission denied" in readonly.text
    assert "step 1" not in readonly.text
    folder.chmod(stat.S_IRWXU)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    first = Run(tmp_path / "run", faults=[slow_steps(0.5)])
    first.wait_for("step 1/6")
    second = Run(tmp_path / "run")
    assert second.wait() == [2]
    assert f"in use by process {first.processes[0].pid} on {socket.gethostname()}" in second.text
    assert first.wait() == [0]
    assert [row["epoch"] for row in metrics.read_metrics(tmp_path / "run")] == [1, 2]


def test_a_killed_run_frees_its_folder_at_once(tmp_path: Path) -> None:
    killed = Run(tmp_path / "run", "data.workers=2", faults=[signal_in_step(1)])
    assert killed.wait() == [-9]
    finished(tmp_path / "run")  # its loader processes may still be noticing


def test_a_checkpoint_without_a_training_state_is_refused_for_training_only(stopped: Path, tmp_path: Path) -> None:
    content = checkpoint.read(stopped / "last.pt")
    torch.save({key: content[key] for key in ("format", "model", "ema", "config")}, stopped / "published.pt")
    assert isinstance(attn.load(stopped / "published.pt"), torch.nn.Module)
    refused = Run(tmp_path / "other", f"resume={stopped / 'published.pt'}")
    assert refused.wait() == [2]
    assert "cannot be continued, it lacks optimizer" in refused.text
