"""`scripts/gpu_report.sh`, where there is no GPU: what it says, and that its commands are ones that its tools take."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from commands import NARROW, ROOT, composed

from attn.config.scripts import Parser

SCRIPT = ROOT / "scripts" / "gpu_report.sh"
# Answers for the interpreter: there is a GPU; the tests fail, the loop runs out of its time, all else works.
STAND_IN = """#!/bin/bash
case "$*" in
  *is_available*) exit 0 ;;
  "-m pytest "*) echo "1 failed"; exit 1 ;;
  *"benchmark.py loop"*) exit 124 ;;
esac
"""


def report(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [SCRIPT, *arguments], env={**os.environ, "PYTHON": sys.executable, **env}, capture_output=True, text=True
    )


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = report(str(tmp_path / "gpu"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: torch sees no CUDA device here; ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "gpu").exists()


def commands(folder: Path) -> list[list[str]]:
    """What it would run, without the interpreter."""
    done = report("--dry-run", str(folder), BATCH="64")
    assert done.returncode == 0, done.stderr
    found = [shlex.split(line) for line in done.stdout.splitlines()]
    assert all(interpreter == sys.executable for interpreter, *_ in found)
    return [command for _, *command in found]


def test_its_commands_are_ones_that_its_tools_take(tmp_path: Path) -> None:
    tests, *measures, kill, compiled = commands(tmp_path / "gpu")
    assert not (tmp_path / "gpu").exists()
    assert tests[:5] == ["-m", "pytest", "-q", "-m", "cuda"]
    assert [m[:2] for m in [*measures, compiled]] == [
        ["scripts/benchmark.py", what] for what in ("step", "step", "module", "loop", "step")
    ]
    assert kill[:3] == ["scripts/killtest.py", "--times", "2"]
    cfg = composed(*NARROW, *kill[3:])
    assert (cfg.device, cfg.deterministic, cfg.schedule.amp, cfg.kernels) == ("cuda", True, "fp16", "fused")


@pytest.mark.parametrize("what", ["step", "module", "loop"])
def test_its_measurements_are_ones_that_the_benchmark_takes(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    parser = Parser()
    import_module(f"benchmarks.{what}").add_options(parser)
    for _, measure, *options in (c for c in commands(tmp_path) if c[0] == "scripts/benchmark.py"):
        if measure == what:
            parsed = vars(parser.parse_args(options))
            assert {"device": "cuda", "batch": 64, "size": 224}.items() <= parsed.items()
            assert "bf16" in (parsed.get("amp"), parsed.get("dtype"))
            assert parsed["json"].parent == tmp_path


def test_a_failure_is_named_and_the_others_run(tmp_path: Path) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    done = report(str(tmp_path / "gpu"), PYTHON=str(stand_in))
    assert done.returncode == 1
    assert "tests: exit code 1: 1 failed\n" in done.stdout
    assert "loop: stopped after 40 s\n" in done.stdout
    assert done.stderr == f"failed: tests loop; see their .log in {tmp_path / 'gpu'}\n"
    lines = [json.loads(line) for line in (tmp_path / "gpu" / "report.jsonl").read_text().splitlines()]
    assert {line["name"]: line["exit_code"] for line in lines} == {
        "tests": 1,
        "step": 0,
        "step_aw": 0,
        "module": 0,
        "loop": 124,
        "killtest": 0,
        "step_compiled": 0,
    }
    assert all(line["command"].startswith(str(stand_in)) for line in lines)


def test_it_takes_less_than_ten_minutes() -> None:
    limits = re.findall(r"^(?:run|measure) \w+ (\d+) ", SCRIPT.read_text(), re.MULTILINE)
    assert len(limits) == 7
    assert sum(map(int, limits)) < 600


def test_a_mistake_is_one_line() -> None:
    for arguments in (["--fast"], ["one", "two"]):
        done = report(*arguments)
        assert done.returncode == 2
        assert done.stderr == f"error: {' '.join(arguments)}: expected scripts/gpu_report.sh [--dry-run] [FOLDER]\n"
