"""Runs with the key `kernels`: continued bit for bit in their own form, refused in another, plain if nothing is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Command
from fault_harness import PER_EPOCH, RICH, Run, compose_config, finished
from fault_injection import signal_in_step

import attn
from attn.kernels import cpu
from attn.runs import checkpoint, directory
from attn.runs.fingerprint import fingerprint

KILLED = [-9]


def test_killed_and_continued_in_its_form(tmp_path: Path, kernel_cache: Path, uninterrupted: Callable[[int], str]) -> None:
    env = {"XDG_CACHE_HOME": str(kernel_cache)}
    plain = {"base": RICH, "env": {"XDG_CACHE_HOME": str(tmp_path)}}
    whole = finished(tmp_path / "whole", "kernels=fused", "data.workers=0", base=RICH, env=env)
    assert "kernels=fused: 4 of 4 blocks are fused on cpu\n" in whole.text
    run = tmp_path / "run"
    killed = Run(run, "kernels=auto", "save_every_steps=1", base=RICH, env=env, faults=[signal_in_step(PER_EPOCH + 1)])
    assert killed.wait() == KILLED
    assert checkpoint.read(run / "last.pt")["config"]["kernels"] == "fused"
    for change in ("kernels=reference", "kernels=auto"):  # what is not built is not fused
        refused = Run(run, change, **plain)
        assert refused.wait() == [2]
        assert "kernels: fused -> reference" in refused.text
    finished(run, "kernels=fused", base=RICH, env=env)
    assert fingerprint(run) == fingerprint(tmp_path / "whole")
    assert fingerprint(run) != uninterrupted(1)  # that of plain modules: they differ in rounding


def test_force_changes_the_form(tmp_path: Path, kernel_cache: Path) -> None:
    assert Run(tmp_path / "run", faults=[signal_in_step(PER_EPOCH)]).wait() == KILLED
    content = checkpoint.read(tmp_path / "run" / "last.pt")
    del content["config"]["kernels"]  # as in those of older versions
    checkpoint.save(content, tmp_path / "run", best=False)
    env = {"XDG_CACHE_HOME": str(kernel_cache)}
    refused = Run(tmp_path / "run", "kernels=fused", env=env)
    assert refused.wait() == [2]
    assert "kernels: reference -> fused" in refused.text
    assert "blocks are fused" in finished(tmp_path / "run", "kernels=fused", "force=true", env=env).text
    assert "kernels: fused" in (tmp_path / "run" / directory.CONFIG).read_text()


def test_where_nothing_is_built(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    refused = Run(tmp_path / "run", "kernels=fused", env=env)
    assert refused.wait() == [2]
    assert refused.text.count("\n") == 1
    assert "kernels=fused: the C++ form is not built here; build it with python -m attn.kernels.build" in refused.text
    assert not (tmp_path / "run").exists()
    auto = finished(tmp_path / "run", "kernels=auto", env=env)
    assert auto.text.count("kernels=auto: reference is used") == 1
    assert "blocks are fused" not in auto.text
    again = finished(tmp_path / "plain", env=env)
    assert "kernels" not in again.text
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "plain")


def test_a_family_without_fused_blocks_says_so(tmp_path: Path, kernel_cache: Path) -> None:
    overrides = ["~backbone.channels", "~backbone.stem_width", "backbone.name=shufflenet_v2_x1_0"]
    run = finished(tmp_path / "run", "kernels=fused", *overrides, env={"XDG_CACHE_HOME": str(kernel_cache)})
    assert run.text.count("kernels=fused: no block is fused, shufflenet_v2_x1_0 has none that can be") == 1


def test_a_fused_run_is_evaluated_anywhere(
    tmp_path: Path, kernel_cache: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    finished(run, "kernels=fused", env={"XDG_CACHE_HOME": str(kernel_cache)})
    trained = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    x, outputs = torch.randn(2, 3, 32, 32), []
    try:
        for cache, warned in ((kernel_cache, False), (tmp_path / "empty", True)):
            monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
            cpu.library.cache_clear()
            done = in_process(["eval.py", f"checkpoint={run / 'last.pt'}"])
            assert done.returncode == 0, done.stderr
            assert ("was trained with kernels=fused: plain modules are used" in done.stderr) is warned
            scores = json.loads((run / "eval-last.json").read_text())
            assert scores["loss"] == pytest.approx(trained["val_loss"], rel=1e-5 if warned else 0, abs=0)
            outputs.append(attn.load(run / "last.pt")(x).detach())
    finally:
        cpu.library.cache_clear()
    torch.testing.assert_close(*outputs)


def test_the_key_is_checked(tmp_path: Path) -> None:
    from attn.errors import UserError

    with pytest.raises(UserError, match=r"kernels=quick: unknown value 'quick'.*fused"):
        compose_config([*RICH, "kernels=quick"], tmp_path / "run")
