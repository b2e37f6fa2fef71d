"""The time until something happens: of commands beside importing their libraries, or of a sweep's cell until its first step is done.

`command`: `train.py --cfg job` and `train.py --help` beside `python -c "import torch, timm, hydra"`, each a process of its own.
`cell`: in a process that has imported everything, as the cells of a sweep after the first, all that comes before the end of the
first step beside building the same model, opening the same data and taking one step."""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.compose import composed
from benchmarks.measure import Contender

ROOT = Path(__file__).resolve().parents[2]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("until", choices=["command", "cell"], help="what is timed")
    parser.add_argument("--backbone", default="resnet50", help="of the cell (default resnet50)")
    measure.add_options(parser)


def run(options: argparse.Namespace) -> int:
    if options.until == "command":
        commands = {
            "import torch, timm, hydra": ["-c", "import torch, timm, hydra"],
            "train.py --cfg job": ["train.py", "--cfg", "job"],
            "train.py --help": ["train.py", "--help"],
        }
        found = [Contender(name, process(arguments)) for name, arguments in commands.items()]
        return measure.compare(found, options, "Start of a command", warmup=1)
    import torch

    torch.set_num_threads(options.threads)
    keys = [
        f"backbone={options.backbone}",
        "attention=se",
        "data=digits",
        "schedule=quick",
        "channels_last=true",
        "device=cpu",
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = [Contender("bare", bare(composed(*keys))), Contender("cell", cell(keys, Path(folder)))]
        return measure.compare(found, options, "Until the first step of a sweep's cell")


def process(arguments: list[str]) -> Callable[[], Any]:
    return lambda: subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def bare(cfg: Any) -> Callable[[], None]:
    """The model, the data, one step: nothing is checked or written."""
    import torch
    from torch.nn.functional import cross_entropy

    import attn
    from attn.data.loader import evaluation_data, to_device, train_data
    from attn.distributed import Ranks

    ranks = Ranks(0, 1, torch.device("cpu"))

    def start() -> None:
        torch.manual_seed(0)
        model = attn.create_model(cfg.backbone["name"], "se", cfg.data.num_classes).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, fused=True)
        data = train_data(cfg.data, cfg.schedule.batch_size, 1, 0, ranks)
        evaluation_data(cfg.data)
        batch = to_device(next(data.batches(0, 1, ranks)), ranks.device, True, data.dataset.pixels)
        cross_entropy(model.train()(batch.images), batch.labels).backward()
        optimizer.step()

    return start


def cell(keys: list[str], folder: Path) -> Callable[[], None]:
    """What Hydra and `attn.training.loop.train` do until its first step is done."""
    from attn.data.ahead import Ahead
    from attn.distributed import launch
    from attn.runs import directory
    from attn.training import setup
    from attn.training.loop import train_step
    from attn.training.stop_request import StopRequest

    numbers = itertools.count()

    def start() -> None:
        run_dir = folder / str(next(numbers))
        own = composed(*keys)  # Hydra composes the config of each cell
        with launch(own.device, own.dist_timeout) as ranks, directory.claim(run_dir), StopRequest() as request:
            own = setup.with_data(setup.with_kernels(replace(own, run_dir=str(run_dir)), ranks), ranks)
            run = setup.prepare(own, run_dir, ranks, request, setup.find_checkpoint(own, run_dir))
            assert run is not None
            train_step(run, Ahead(run.data.batches(0, 1, ranks), ranks.device))

    return start
