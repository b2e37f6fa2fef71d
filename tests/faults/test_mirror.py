"""Weights & Biases: down, missing, broken, continued. Training is not affected."""

from __future__ import annotations

import json
import socket
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_harness import STEPS, Run, finished
from fault_injection import signal_in_evaluation, signal_in_step

from attn.runs import metrics
from attn.runs.wandb import Wandb, wandb_mode

WANDB = ("logger=wandb", "logger.csv=false", "logger.plot=false")
QUIET = {"WANDB_API_KEY": "", "NETRC": "/nonexistent", "WANDB_MODE": "", "WANDB_BASE_URL": "", "WANDB_SILENT": "true"}


class FakeRun:
    """Knows the next step as wandb's run does: by what the service has."""

    def __init__(self, record: Path, raise_at: int | None, stall: float) -> None:
        self.record, self.raise_at, self.stall = record, raise_at, stall
        sent = [entry["step"] for entry in entries(record) if "step" in entry] if record.exists() else []
        self.step = max(sent, default=-1) + 1

    def _write(self, **entry: Any) -> None:
        with open(self.record, "a") as file:
            file.write(json.dumps(entry) + "\n")

    def log(self, row: dict[str, Any], step: int) -> None:
        if step == self.raise_at:
            raise ConnectionError("the service is gone\nwith details")
        time.sleep(self.stall)
        self._write(step=step, epoch=row["epoch"])

    def finish(self) -> None:
        self._write(finish=True)


class fake_wandb:
    """A fault that puts a recording module in wandb's place."""

    def __init__(self, record: Path, raise_at: int | None = None, stall: float = 0, missing: bool = False) -> None:
        self.record, self.raise_at, self.stall, self.missing = record, raise_at, stall, missing

    def __call__(self) -> None:
        if self.missing:
            sys.modules["wandb"] = None  # type: ignore[assignment]
            return
        module = types.ModuleType("wandb")
        module.Settings = dict  # type: ignore[attr-defined]

        def init(**options: Any) -> FakeRun:
            fake = FakeRun(self.record, self.raise_at, self.stall)
            fake._write(id=options["id"], mode=options["mode"])
            return fake

        module.init = init  # type: ignore[attr-defined]
        sys.modules["wandb"] = module


def wait_for_mirror() -> None:
    """A fault that pauses training after each epoch until its row was passed to wandb, so that the kill comes later."""
    update = Wandb.update

    def patient(self: Wandb) -> None:
        update(self)
        state, last = self._run_dir / self.STATE, metrics.read_metrics(self._run_dir)[-1]["step"]
        end = time.monotonic() + 60
        while not state.exists() or json.loads(state.read_text())["step"] < last:
            assert time.monotonic() < end, f"the mirror has not sent step {last}"
            time.sleep(0.01)

    Wandb.update = patient  # type: ignore[method-assign]


def entries(record: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in record.read_text().splitlines()]


def records(content: bytes) -> list[bytes]:
    """The records of a .wandb file: LevelDB's log format, after a header of 7 bytes."""
    found, parts, at = [], b"", 7
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(parts)
            parts = b""
    return found


def test_real_offline_runs_are_one_run_with_growing_steps(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is an optional package")
    from wandb.proto import wandb_internal_pb2

    run_dir = tmp_path / "run"
    options = (*WANDB, "logger.wandb_mode=offline", "schedule.epochs=3")
    killed = Run(run_dir, *options, faults=[wait_for_mirror, signal_in_step(7)], env=QUIET)
    assert killed.wait() == [-9]
    finished(run_dir, *options, env=QUIET)
    folders = sorted((run_dir / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
    steps = []
    for data in records(next(folders[-1].glob("*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        steps += [record.history.step.num] if record.HasField("history") else []
    assert steps == [3, 6, 9]  # whole: what the killed process passed to wandb is not on the disk


@pytest.fixture
def online() -> Iterator[dict[str, str]]:
    """An environment in which the service answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {**QUIET, "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}"}


def test_a_continued_run_sends_every_row_once_under_one_id(tmp_path: Path, online: dict[str, str]) -> None:
    record, run_dir = tmp_path / "record", tmp_path / "run"
    for fault in (signal_in_evaluation(2), signal_in_evaluation(2), signal_in_step(10)):
        options = (*WANDB, "schedule.epochs=4", "save_every_steps=1")
        assert Run(run_dir, *options, faults=[fake_wandb(record), fault], env=online).wait() == [-9]
    finished(run_dir, *WANDB, "schedule.epochs=4", faults=[fake_wandb(record)], env=online)
    found = entries(record)
    assert {entry["mode"] for entry in found if "mode" in entry} == {"online"}
    assert len({entry["id"] for entry in found if "id" in entry}) == 1
    assert [entry["step"] for entry in found if "step" in entry] == [3, 6, 9, 12]
    assert found[-1] == {"finish": True}


def test_a_row_that_the_service_never_got_is_sent_again(tmp_path: Path, online: dict[str, str]) -> None:
    record, run_dir = tmp_path / "record", tmp_path / "run"
    killed = Run(run_dir, *WANDB, faults=[fake_wandb(record), wait_for_mirror, signal_in_step(4)], env=online)
    assert killed.wait() == [-9]
    assert json.loads((run_dir / Wandb.STATE).read_text())["step"] == 3
    record.write_text("")  # lost on the way
    finished(run_dir, *WANDB, faults=[fake_wandb(record)], env=online)
    assert [entry["step"] for entry in entries(record) if "step" in entry] == [3, STEPS]


def test_a_server_that_is_down(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is an optional package")
    env = {**QUIET, "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    began = time.monotonic()
    done = finished(tmp_path / "run", *WANDB, "logger.wandb_mode=online", "dist_timeout=20", ranks=2, env=env)
    assert time.monotonic() - began < 60
    assert done.text.count("warning: Weights & Biases is offline: 127.0.0.1:9 cannot be reached") == 1
    assert [row["step"] for row in metrics.read_metrics(tmp_path / "run")] == [3, STEPS]
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_wandb_raises(tmp_path: Path) -> None:
    record = tmp_path / "record"
    done = finished(tmp_path / "run", *WANDB, faults=[fake_wandb(record, raise_at=3)], env=QUIET)
    assert done.text.count("warning: Weights & Biases is off: the service is gone") == 1
    assert [row["step"] for row in metrics.read_metrics(tmp_path / "run")] == [3, STEPS]
    finished(tmp_path / "run", *WANDB, "schedule.epochs=3", "force=true", faults=[fake_wandb(record)], env=QUIET)
    assert [entry["step"] for entry in entries(record) if "step" in entry] == [3, 6, 9]  # made up for


def test_wandb_is_not_installed(tmp_path: Path) -> None:
    done = finished(tmp_path / "run", *WANDB, faults=[fake_wandb(tmp_path / "record", missing=True)], env=QUIET)
    assert done.text.count("warning: Weights & Biases is off: import of wandb halted") == 1


def test_a_stalling_service_delays_no_step(tmp_path: Path) -> None:
    record = tmp_path / "record"
    done = Run(tmp_path / "run", *WANDB, ranks=2, faults=[fake_wandb(record, stall=5.0)], env=QUIET)
    done.wait_for("step 1/6")
    began = time.monotonic()
    done.wait_for("best val top-1")
    assert not record.exists() or len(entries(record)) < 3
    assert time.monotonic() - began < 20
    assert done.wait() == [0, 0]
    assert [entry.get("step") for entry in entries(record)][1:3] == [3, 6]  # waited for at the end


def test_the_end_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    mirror = Wandb.__new__(Wandb)
    monkeypatch.setattr(Wandb, "_start", lambda self: time.sleep(30))
    mirror.__init__(None, tmp_path)  # type: ignore[misc, arg-type]
    began = time.monotonic()
    mirror.finish(patience=0.2)
    assert time.monotonic() - began < 10
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "env", "expected", "warned"),
    [
        (None, {}, "offline", "no key"),
        ("online", {}, "offline", "no key (run `wandb login`)"),
        ("disabled", {}, "disabled", ""),
        ("offline", {"WANDB_API_KEY": "x"}, "offline", ""),
        (None, {"WANDB_API_KEY": "x", "WANDB_BASE_URL": "http://127.0.0.1:9"}, "offline", "offline"),
        (
            "online",
            {"WANDB_API_KEY": "x", "WANDB_BASE_URL": "http://127.0.0.1:9"},
            "offline",
            "127.0.0.1:9 cannot be reached",
        ),
    ],
)
def test_the_mode_is_one_that_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, asked: str | None, env: dict, expected: str, warned: str
) -> None:
    for key in ("WANDB_API_KEY", "WANDB_BASE_URL", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    assert wandb_mode(asked, Path("run")) == expected
    said = capsys.readouterr().err
    assert (warned in said) if warned else said == ""
