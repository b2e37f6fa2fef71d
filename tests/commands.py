"""Running the scripts of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A whole run in seconds: the smallest residual network of timm on real digits.
TINY = ["data=digits", "schedule=quick", "data.image_size=32", "data.test_resize=32", "schedule.batch_size=64"]
TINY += ["backbone=resnet18", "backbone.name=resnet10t", "schedule.epochs=1", "logger=none"]

Command = Callable[..., subprocess.CompletedProcess]


def call(
    arguments: list[str], ranks: int = 1, timeout: float = 300, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Runs a script of the repository with the current interpreter, under torchrun if `ranks` is more than 1."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **(env or {})}
    return subprocess.run(
        [*launcher, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )
