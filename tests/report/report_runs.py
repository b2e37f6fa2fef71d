"""Run folders as training leaves them, with made-up scores."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from commands import composed

from attn.runs import directory, metrics
from attn.runs.starts import STARTS

VERSIONS = {
    "python": "3.11.7",
    "attn": "0.1.0",
    "torch": "2.13.0",
    "torchvision": "0.28.0",
    "timm": "1.0.31",
    "git": "0123456789ab",
}
START = {
    "time": "2026-11-29T10:00:00Z",
    "step": 0,
    "command": "python train.py",
    "ranks": 1,
    "device": "AMD EPYC",
    "cores": 2,
}


def record(folder: Path, *overrides: str, last: float, epochs: int = 20, done: bool = True, noise: float = 0.4) -> Path:
    """A run whose top-1 ends at `last`, in percent."""
    cfg = composed(*overrides, f"run_dir={folder}")
    folder.mkdir(parents=True)
    directory.write_config(folder, cfg)
    chance = random.Random(str(folder.name) + str(overrides))
    rows = []
    for epoch in range(1, epochs + 1):
        part = 1 - math.exp(-5 * epoch / epochs)
        top1 = last if epoch == epochs else 10 + (last - 10) * part + chance.gauss(0, noise)
        rows.append(
            {
                "epoch": epoch,
                "step": 22 * epoch,
                "lr": 0.025 * (1 + math.cos(math.pi * epoch / epochs)),
                "train_loss": 2.3 * (1 - part) + 0.02 + chance.random() * 0.03,
                "val_loss": 2.3 * (1 - part) + 0.12 + chance.random() * 0.05,
                "val_top1": top1,
                "val_top5": min(100.0, top1 + 6),
                "images_per_second": 900.0,
            }
        )
    metrics.append_metrics(folder, rows)
    (folder / STARTS).write_text(json.dumps({**START, "versions": VERSIONS}) + "\n")
    if done:
        (folder / directory.DONE).touch()
    return folder


SCORES = {"none": (93.2, 92.7, 93.5), "se": (93.5, 92.9, 94.3), "ba": (95.2, 94.6, 95.6)}


def record_all(top: Path) -> Path:
    """What `backbone=resnet18 attention=none,se,ba seed=0,1,2 -m` leaves, and what is no finished run."""
    for attention, scores in SCORES.items():
        for seed, last in enumerate(scores):
            overrides = ["backbone=resnet18", f"attention={attention}", f"attention_name={attention}", "data=digits"]
            record(
                top / attention / f"seed{seed}",
                *overrides,
                "schedule=quick",
                "schedule.epochs=20",
                f"seed={seed}",
                last=last,
            )
    overrides = [
        "backbone=resnet18",
        "attention=se",
        "attention_name=se",
        "data=digits",
        "schedule=quick",
        "schedule.epochs=20",
    ]
    record(top / "se" / "seed3", *overrides, "seed=3", last=80.0, epochs=7, done=False)
    broken = record(top / "se" / "broken", *overrides, "seed=4", last=80.0)
    (broken / directory.CONFIG).write_text("backbone: [")
    (top / "elsewhere").mkdir()
    (top / "elsewhere" / metrics.METRICS).write_text('{"epoch": 1, "val_top1": 3}\n')
    return top
