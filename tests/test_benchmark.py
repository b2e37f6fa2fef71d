"""`scripts/benchmark.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from commands import Command

from attn.data import region
from attn.kernels import cpu


@pytest.mark.slow
def test_a_step_beside_the_plain_backbones(
    in_process: Command, kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpu.library.cache_clear()
    command = ["scripts/benchmark.py", "step", "--backbone=resnet18", "--attentions=se", "--batch=2", "--size=64"]
    command += ["--profile=operators"]
    command += ["--threads=1", "--pairs=2", "--others=1", f"--json={tmp_path / 'r.json'}", f"--picture={tmp_path / 'r.png'}"]
    try:
        refused = in_process(command)
        assert refused.returncode == 2
        assert "kernels=fused: the C++ form is not built here" in refused.stderr
        monkeypatch.setenv("XDG_CACHE_HOME", str(kernel_cache))
        cpu.library.cache_clear()
        done = in_process(command)
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / "r.json").read_text())
        rows = {row["name"]: row for row in result["contenders"]}
        assert list(rows) == ["plain", "timm se", "se reference", "se fused"]
        assert rows["plain"]["kept"] == 1
        assert rows["se fused"]["kept"] < rows["se reference"]["kept"]
        assert rows["plain"]["kept_bytes"] < rows["plain"]["peak_bytes"]
        assert rows["se fused"]["peak"] < rows["se reference"]["peak"]
        for name in ("timm se", "se reference", "se fused"):
            low, middle, high = rows[name]["cpu"]
            assert 0 < low <= middle <= high
            assert rows[name]["pairs"] == 2
        assert (tmp_path / "r.png").stat().st_size > 1000
        assert "se fused" in done.stdout
        times = result["profile"]
        assert list(times) == list(rows)
        assert times["plain"]["aten::convolution_backward"] > 0
        assert "attn::squeezeBackward" in times["se fused"]
        assert "attn::squeezeBackward" not in times["se reference"]
        assert re.search(r"^aten::convolution_backward( +\d+\.\d\d){4}$", done.stdout, re.MULTILINE)
    finally:
        cpu.library.cache_clear()


def test_modules_beside_their_blocks(
    in_process: Command, kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(kernel_cache))
    cpu.library.cache_clear()
    small = ["scripts/benchmark.py", "module", "--backbone=resnet18", "--batch=2"]
    small += ["--threads=1", "--pairs=1", "--others=1000"]  # in so short a time the machine's own count is too coarse
    try:
        done = in_process([*small, "--shape=32,6", "--attentions=aw,ba", f"--json={tmp_path / 'r.json'}"])
        assert done.returncode == 0, done.stderr
        rows = {row["name"]: row for row in json.loads((tmp_path / "r.json").read_text())["contenders"]}
        conv = [f"conv all x1 {name}" for name in ("plain", "aw naive", "aw reference", "aw fused")]
        block = [f"block all x1 {name}" for name in ("plain", "ba reference", "ba fused")]
        assert sorted(rows) == sorted([*conv, *block])
        assert {name: row["against"] for name, row in rows.items()} == {
            **dict.fromkeys(conv, conv[0]),
            **dict.fromkeys(block, block[0]),
        }
        assert rows[conv[0]]["peak"] == rows[block[0]]["peak"] == 1
        assert rows[conv[3]]["peak"] < rows[conv[1]]["peak"]
        assert {name for name, row in rows.items() if row["wall"] is None} == {conv[0], block[0]}
        assert "wall / plain" in done.stdout
        # SK has its own norm, and no fused form.
        done = in_process([*small, "--size=32", "--attentions=sk", "--forms=reference,fused"])
        names = [line.split("  ")[0] for line in done.stdout.splitlines() if line.startswith("conv+norm")]
        assert names[:4] == [
            f"conv+norm {row}"
            for row in ("64@8 x2 plain", "64@8 x2 sk reference", "128@8/2 x1 plain", "128@8/2 x1 sk reference")
        ]
        assert names[-1] == "conv+norm all x8 sk reference"
    finally:
        cpu.library.cache_clear()
    assert "fills neither the conv nor the block slot" in in_process([*small, "--attentions=bam"]).stderr
    assert "expected CHANNELS,SIDE" in in_process([*small, "--shape=32"]).stderr
    assert "choose from naive, reference, fused" in in_process([*small, "--forms=fast"]).stderr
    assert "knows the ResNet family only" in in_process([*small, "--backbone=mobilenetv2_050"]).stderr


@pytest.mark.parametrize("what", ["step", "module"])
def test_a_gpu_that_is_not_there(in_process: Command, what: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    refused = in_process(["scripts/benchmark.py", what, "--device=cuda", "--amp=bf16"])
    assert refused.returncode == 2
    assert refused.stderr == "error: --device=cuda: torch finds no GPU here; use --device cpu\n"


def test_the_input_beside_torchvisions(in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    region.library.cache_clear()
    command = ["scripts/benchmark.py", "input", "--evaluation", "--images=4", "--batch=2", "--pairs=1", "--others=9"]
    try:
        refused = in_process(command)
        assert refused.returncode == 2
        assert "error: the region decoder is not built: python -m attn.build" in refused.stderr
        built, line = region.build()
        if not built:
            pytest.skip(line)
        region.library.cache_clear()
        done = in_process([*command, "--profile=functions", f"--json={tmp_path / 'r.json'}"])
        assert done.returncode == 0, done.stderr
        assert "torchvision and attn region give the same pixels: yes" in done.stdout
        assert re.search(r"^data/region.py: \w+( +\d+\.\d\d){6}$", done.stdout, re.MULTILINE)
        names = [row["name"] for row in json.loads((tmp_path / "r.json").read_text())["contenders"]]
        assert names[:4] == ["torchvision", "timm", "attn pil", "attn region"]
        assert names[4:] == ["attn packed, region", "attn packed at 256, region"]
        training = in_process([argument for argument in command if argument != "--evaluation"])
        assert training.returncode == 0, training.stderr
    finally:
        region.library.cache_clear()


def test_the_loop_beside_a_bare_one(in_process: Command) -> None:
    command = ["scripts/benchmark.py", "loop", "--backbone=resnet18", "--batch=2", "--size=32", "--steps=1", "--threads=1"]
    done = in_process([*command, "--pairs=1", "--others=9"])
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[-3:]] == ["bare loop", "bare loop, fused SGD", "attn"]


def test_the_start_of_a_cell(in_process: Command) -> None:
    command = ["scripts/benchmark.py", "startup", "cell", "--backbone=resnet18", "--threads=1", "--pairs=1", "--others=9"]
    done = in_process(command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("cell")


def test_inference_beside_the_plain_backbone(in_process: Command, tmp_path: Path) -> None:
    command = ["scripts/benchmark.py", "inference", "--backbone=resnet18", "--attentions=se", "--batch=1", "--size=64"]
    command += ["--threads=1", "--pairs=2", "--others=1", f"--json={tmp_path / 'r.json'}"]
    done = in_process([*command, "--forms=eager,folded"])
    assert done.returncode == 0, done.stderr
    rows = [row["name"] for row in json.loads((tmp_path / "r.json").read_text())["contenders"]]
    assert rows == [f"{net} {form}" for net in ("plain", "timm se", "se") for form in ("eager", "folded")]
    assert "choose from eager, folded, compiled, frozen" in in_process([*command, "--forms=fast"]).stderr
    assert in_process([*command, "--attentions=nonsense"]).stderr.startswith("error: ")


@pytest.mark.parametrize("value", ["-1", "x", "nan"])
def test_a_share_that_would_drop_every_pair_is_refused(value: str, in_process) -> None:
    done = in_process(["scripts/benchmark.py", "step", "--others", value])
    assert done.returncode == 2
    assert f"--others: '{value}' must be a number, 0 or more" in done.stderr
