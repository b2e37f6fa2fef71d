"""A file that a command writes replaces nothing but an older one of its kind, and a wrong place is refused before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from attn.errors import UserError
from attn.runs import convert
from attn.runs.outputs import expect_older, expect_picture, expect_place, is_weights


def test_only_an_older_file_of_the_kind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert not expect_older(path, "out=", "image,", "CSV file")
    path.write_text("")
    assert not expect_older(path, "out=", "image,", "CSV file")
    path.write_text("image,label\n")
    assert expect_older(path, "out=", "image,", "CSV file")
    for other in (b"ima", b"\x89PNG\xff", b"my notes"):
        path.write_bytes(other)
        with pytest.raises(UserError, match=r"out=.*a\.csv exists and is no CSV file, so it is not replaced"):
            expect_older(path, "out=", "image,", "CSV file")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    expect_place(tmp_path / "new" / "a.csv", "out=")
    with pytest.raises(UserError, match=r"out=.* is a folder"):
        expect_place(tmp_path, "out=")
    with pytest.raises(UserError, match="/file is a file"):
        expect_place(tmp_path / "file" / "a.csv", "out=")
    with pytest.raises(UserError, match="out=/dev/null is a device"):
        expect_place(Path("/dev/null"), "out=")
    with pytest.raises(UserError, match=r"out=.*cannot be written: File name too long"):
        expect_place(tmp_path / ("a" * 300), "out=")
    with pytest.raises(UserError, match=r"there is no folder .*/new"):
        expect_older(tmp_path / "new" / "a.csv", "out=", "image,", "CSV file")
    with pytest.raises(UserError, match=r"must end in \.png"):
        expect_picture(tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match="may not be written to"):
        expect_place(tmp_path / "a.csv", "out=")


def test_weights_are_told_apart(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "best.pt")
    (tmp_path / "text").write_text("text")
    torch.export.save(torch.export.export(torch.nn.Linear(1, 1), (torch.ones(1, 1),)), tmp_path / "best.pt2")
    assert [is_weights(tmp_path / name) for name in ("best.pt", "text", "best.pt2", "none")] == [True, False, False, False]


@pytest.mark.parametrize(
    ("out", "told"),
    [("file/a.pt", "file is a file"), ("attention=se", "looks like an override"), ("file", "exists: remove it")],
)
def test_a_checkpoint_is_converted_to_a_place_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(UserError, match=told):
        convert.convert_own("nowhere.pt", Path(out), [])


@pytest.mark.parametrize(
    "command",
    [
        ["eval.py", "checkpoint={0}", "predictions={0}"],
        ["scripts/predict.py", "checkpoint={0}", "images=.", "out={0}"],
        ["scripts/export.py", "checkpoint={0}", "format=onnx", "out={0}", "force=true"],
        ["scripts/report.py", ".", "out={0}"],
        ["scripts/benchmark.py", "step", "--json", "{0}"],
        ["scripts/compare.py", ".", "--picture", "{0}"],
    ],
)
def test_no_command_writes_over_a_checkpoint(tmp_path: Path, command: list[str], in_process) -> None:
    if "format=onnx" in command:
        pytest.importorskip("onnxscript")
    path = tmp_path / "best.pt"
    torch.save({"model": {}}, path)
    before = path.read_bytes()
    done = in_process([argument.format(path) for argument in command])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert f"{path}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before
