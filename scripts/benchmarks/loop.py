"""A step of the training loop beside a bare loop of ten lines on the same model and the same batches.

The bare loop counts nothing, checks nothing and saves nothing: it is what the guarantees of a run cost. It is timed with torch's
default SGD and with its fused form, which attn uses."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from attn.config.scripts import positive
from benchmarks import measure
from benchmarks.compose import composed
from benchmarks.measure import Contender


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="resnet50", help="name of the backbone (default resnet50)")
    parser.add_argument("--attention", default="none", help="name of the attention (default none)")
    parser.add_argument("--batch", type=positive, default=16, help="images per batch (default 16)")
    parser.add_argument("--size", type=positive, default=128, help="side of the images in pixels (default 128)")
    parser.add_argument("--steps", type=positive, default=2, help="steps per measurement (default 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default cpu)")
    parser.add_argument("--amp", choices=["bf16", "fp16"], help="autocast, in all of them")
    parser.add_argument(
        "--layout",
        choices=["channels_last", "contiguous"],
        default="channels_last",
        help="of the maps in memory (default channels_last)",
    )
    measure.add_options(parser)


def run(options: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(options.threads)
    # The contenders train models of their own, from the same weights and on the same batches, which are in memory.
    cfg = composed(
        f"backbone={options.backbone}",
        f"attention={options.attention}",
        "data=fake",
        f"data.image_size={options.size}",
        f"data.test_resize={options.size}",
        f"data.samples={4 * options.batch}",
        "data.workers=0",
        "nonfinite=skip",
        "max_skipped=1000000000",
        f"schedule.batch_size={options.batch}",
        "schedule.curve=constant",
        "schedule.lr=0.01",
        f"schedule.amp={options.amp or 'null'}",
        f"channels_last={str(options.layout == 'channels_last').lower()}",
        f"device={options.device}",
    )
    with tempfile.TemporaryDirectory() as folder:
        found = [
            Contender("bare loop", bare(cfg, options, Path(folder) / "bare", fused=False)),
            Contender("bare loop, fused SGD", bare(cfg, options, Path(folder) / "fused", fused=True)),
            Contender("attn", ours(cfg, options, Path(folder) / "attn")),
        ]
        return measure.compare(found, options, f"Training loop, {options.backbone}, {options.device}")


def prepared(cfg: Any, folder: Path) -> tuple[Any, Iterator[Any]]:
    """A run at its start, and its batches again and again, as loader processes hand them over."""
    import torch

    from attn.distributed import Ranks, pick_device
    from attn.training import setup
    from attn.training.stop_request import StopRequest

    folder.mkdir()
    ranks = Ranks(0, 1, pick_device(cfg.device))
    run = setup.prepare(replace(cfg, run_dir=str(folder)), folder, ranks, StopRequest(), None)
    assert run is not None
    batches = list(run.data.batches(0, run.data.steps_per_epoch, ranks))
    if ranks.device.type == "cuda":
        torch.cuda.synchronize()
    return run, itertools.cycle(batches)


def bare(cfg: Any, options: argparse.Namespace, folder: Path, fused: bool) -> Callable[[], None]:
    import torch
    from torch.nn.functional import cross_entropy

    from attn.data.loader import to_device
    from attn.evaluation.evaluate import autocast

    run, batches = prepared(cfg, folder)
    model, device, schedule = run.state.model, run.ranks.device, cfg.schedule
    optimizer = torch.optim.SGD(
        model.parameters(), schedule.lr, schedule.momentum, weight_decay=schedule.weight_decay, fused=fused or None
    )
    scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")

    def steps() -> None:
        for batch in itertools.islice(batches, options.steps):
            batch = to_device(batch, device, cfg.channels_last, run.data.dataset.pixels)
            optimizer.zero_grad()
            with autocast(schedule.amp, device):
                loss = cross_entropy(model(batch.images), batch.labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return steps


def ours(cfg: Any, options: argparse.Namespace, folder: Path) -> Callable[[], None]:
    import torch

    from attn.data.ahead import Ahead
    from attn.training.loop import train_step

    run, batches = prepared(cfg, folder)
    ahead = Ahead(batches, run.ranks.device)

    def steps() -> None:
        for _ in range(options.steps):
            train_step(run, ahead)
        if run.ranks.device.type == "cuda":
            torch.cuda.synchronize()

    return steps
