"""`scripts/benchmark.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command

from attn.kernels import cpu


@pytest.mark.slow
def test_a_step_beside_the_plain_backbones(
    in_process: Command, kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpu.library.cache_clear()
    command = ["scripts/benchmark.py", "step", "--backbone=resnet18", "--attentions=se", "--batch=2", "--size=64"]
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
    finally:
        cpu.library.cache_clear()
