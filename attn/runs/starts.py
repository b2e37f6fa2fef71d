"""`starts.jsonl`: one line per process that trained in a run: when, from which step, by which command, with what software and hardware.

No result is computed from this file: if it cannot be written, one warning says so and training goes on.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from attn.console import warn
from attn.distributed import Ranks
from attn.runs.checkpoint import versions
from attn.runs.files import append_whole, to_json

STARTS = "starts.jsonl"


def record_start(run_dir: Path, step: int, ranks: Ranks) -> None:
    """Adds the line of this process, which begins at `step`."""
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "step": step,
        "command": shlex.join(["python", *sys.argv]),
        "ranks": ranks.world,
        **hardware(ranks.device),
        "versions": {"python": platform.python_version(), **versions()},
    }
    try:
        append_whole(run_dir / STARTS, to_json(row) + "\n", sync=False)
    except OSError as error:
        warn(f"{run_dir / STARTS} cannot be written: {error.strerror}; the training goes on")


def hardware(device: torch.device) -> dict[str, Any]:
    """What computes here: name of the device, processor cores that this process may use, system."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": name, "cores": cores, "system": f"{platform.system()} {platform.machine()}"}


def processor() -> str:
    """The model of the processor as Linux names it, else its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """All lines that are objects, in their order; nothing where there is no file."""
    path = run_dir / STARTS
    found = []
    for line in path.read_bytes().decode(errors="replace").splitlines() if path.is_file() else ():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                found.append(row)
    return found
