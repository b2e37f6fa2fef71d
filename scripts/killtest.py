"""Kills a run at random moments and compares what comes out.

    python scripts/killtest.py --times 20 --ranks 1 attention=ba ...

Trains once without interruption; then, `--times` times, trains again, sends SIGKILL to all ranks at a random moment of a
random step, and continues with the same command; in the end the SHA-256 of weights, averaged weights, optimizer and metrics
must be that of the uninterrupted run. Overrides for train.py follow the options; the default is a small network on real
digits with mixup, EMA, bf16 and gradient accumulation. With AMP on a GPU: `device=cuda deterministic=true
schedule.amp=fp16`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NoReturn

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from attn.config import command_line, parse, scripts
from attn.config.groups import config_dir
from attn.config.schema import Config
from attn.config.scripts import not_negative, positive
from attn.errors import UserError
from attn.runs import checkpoint, metrics
from attn.runs.fingerprint import fingerprint
from attn.training import loop

DEFAULT = ["data=digits", "schedule=quick", "data.image_size=32", "data.test_resize=32", "schedule.epochs=2", "logger=none"]
DEFAULT += ["schedule.batch_size=64", "backbone=resnet18", "backbone.name=resnet10t", "+backbone.channels=[16,24,32,48]"]
DEFAULT += ["+backbone.stem_width=16", "+backbone.drop_path_rate=0.1", "attention=ba", "attention.block.reduction=4"]
DEFAULT += ["schedule.mixup=0.2", "schedule.ema_decay=0.99", "schedule.amp=bf16", "schedule.accumulate=2"]
DEFAULT += ["data.workers=2", "save_every_steps=5", "log_every=1"]


def start(cfg: Config, ranks: int, output: Path) -> list[int]:
    """Forks a process for each rank, in a session of its own; they need not import torch again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            train_and_leave(cfg, rank, ranks, port, output)
        started.append(pid)
    return started


def train_and_leave(cfg: Config, rank: int, ranks: int, port: int, output: Path) -> NoReturn:
    code = 1
    try:
        os.setsid()
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if ranks > 1:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in places.items()})
        loop.train(cfg)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(pids: list[int]) -> bool:
    """Waits; returns whether all ended well."""
    return [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)


def killed_at(cfg: Config, ranks: int, step: int, delay: float, output: Path) -> bool:
    """Trains, kills all ranks `delay` seconds after a step; returns whether they were still running."""
    pids = start(cfg, ranks, output)
    mark = f"step {step}/" if step else " parameters, "
    while not output.exists() or mark not in output.read_text():
        time.sleep(0.002)
    time.sleep(delay)
    for pid in pids:  # not their loader processes: those have to notice
        os.kill(pid, signal.SIGKILL)
    return not finish(pids)


def main() -> int:
    parser = scripts.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=positive, default=20, help="kill points (default 20)")
    parser.add_argument("--ranks", type=positive, default=1, help="processes that train together (default 1)")
    parser.add_argument("--seed", type=not_negative, default=0, help="of the kill points (default 0)")
    parser.add_argument("overrides", nargs="*", help="for train.py")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="killtest-"))
    draw = random.Random(options.seed)
    torch.set_num_threads(1)  # threads of this process would be missing in its forks

    def config_for(run_dir: Path) -> Config:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            overrides = [*DEFAULT, *options.overrides, f"run_dir={run_dir}", "attention_name=killtest"]
            try:
                return parse.parse(compose("train", overrides))
            except HydraException as error:
                raise UserError(command_line.explain(error, "train", overrides)) from None

    reference = folder / "uninterrupted"
    began = time.monotonic()
    if not finish(start(config_for(reference), options.ranks, folder / "uninterrupted.txt")):
        sys.exit((folder / "uninterrupted.txt").read_text())
    length, total = time.monotonic() - began, metrics.read_metrics(reference)[-1]["step"]
    expected = fingerprint(reference)
    print(f"uninterrupted: {total} steps in {length:.1f} s; {expected[:16]}", flush=True)

    failed = 0
    for trial in range(options.times):
        run_dir = folder / f"killed{trial}"
        cfg, last = config_for(run_dir), run_dir / checkpoint.LAST
        step, delay = draw.randrange(total), draw.uniform(0, length / total)
        was_killed = killed_at(cfg, options.ranks, step, delay, folder / f"{trial}-killed.txt")
        found = checkpoint.read(last)["step"] if last.exists() else 0
        same = finish(start(cfg, options.ranks, folder / f"{trial}-continued.txt")) and fingerprint(run_dir) == expected
        failed += not same
        where = f"killed after step {step} of {total}, continued at {found}" if was_killed else "had ended before the kill"
        print(f"{trial + 1:3d}: {where}: {'equal' if same else 'DIFFERENT'}", flush=True)
        if same:
            shutil.rmtree(run_dir)
    print(f"{options.times - failed} of {options.times} equal to the uninterrupted run")
    if failed:
        print(f"kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    scripts.run(main)
