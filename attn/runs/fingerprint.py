"""Whether two runs ended the same, bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from attn.runs import checkpoint, metrics

KEYS = ("model", "ema", "optimizer", "scaler", "step", "evaluated", "best", "meter")


def fingerprint(run_dir: Path, name: str = checkpoint.LAST) -> str:
    """SHA-256 of weights, averaged weights, optimizer, scaler, counters and best score, and of all metrics but the speed.

    Args:
        run_dir: folder of a run.
        name: its checkpoint.
    """
    sums = hashlib.sha256()

    def add(node: Any, path: str) -> None:
        if isinstance(node, torch.Tensor):
            # As bytes: numpy has no bfloat16.
            sums.update(path.encode() + node.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(node, dict):
            for key in sorted(node, key=str):
                add(node[key], f"{path}/{key}")
        elif isinstance(node, (list, tuple)):
            for index, child in enumerate(node):
                add(child, f"{path}/{index}")
        else:
            sums.update(f"{path}={node!r}".encode())

    content = checkpoint.read(run_dir / name)
    add({key: content[key] for key in KEYS}, "")
    add([{k: v for k, v in row.items() if k != "images_per_second"} for row in metrics.read_metrics(run_dir)], "metrics")
    return sums.hexdigest()
