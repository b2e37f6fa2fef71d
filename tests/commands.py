"""Running the scripts of the repository, and composing their configs."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import forked
from hydra import compose, initialize_config_dir

from attn.config import parse
from attn.config.groups import config_dir
from attn.config.schema import Config

ROOT = Path(__file__).resolve().parent.parent
# The smallest residual network of timm.
SMALL = ["backbone=resnet18", "backbone.name=resnet10t", "data.image_size=32", "data.test_resize=32", "logger=none"]
# A whole run in seconds, on real digits.
TINY = ["data=digits", "schedule=quick", *SMALL, "schedule.batch_size=64", "schedule.epochs=1"]
# The same with a fraction of the channels, where only the run matters.
NARROW = [*TINY, "+backbone.channels=[16,32,48,64]", "+backbone.stem_width=16"]

Command = Callable[..., subprocess.CompletedProcess]


def patience(seconds: float) -> float:
    """How long a test waits before it fails: `seconds` on a quiet machine, times ATTN_TEST_TIMEOUT_SCALE on a busy one."""
    return seconds * float(os.environ.get("ATTN_TEST_TIMEOUT_SCALE", "1"))


def composed(*overrides: str) -> Config:
    """The config of `train.py OVERRIDES`, parsed. `attention_name` is `test` unless the overrides set it."""
    return copy.deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> Config:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return parse.parse(compose("train", ["attention_name=test", *overrides]))


def call(
    arguments: Sequence[object],
    ranks: int = 1,
    timeout: float = 300,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> subprocess.CompletedProcess:
    """Runs a script in a process of its own for each rank, forked after its imports (`forked`); `-m` and `-c` start fresh."""
    if str(arguments[0]).startswith("-"):
        return call_fresh(arguments, ranks, timeout, env, cwd)
    return forked.run([str(a) for a in arguments], ranks, patience(timeout), _environment(env), cwd)


def call_fresh(
    arguments: Sequence[object],
    ranks: int = 1,
    timeout: float = 300,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> subprocess.CompletedProcess:
    """Runs the current interpreter as a user does, under torchrun if `ranks` is more than 1."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=patience(timeout),
        env=_environment(env),
        check=False,
    )


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **(env or {})}
