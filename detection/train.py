"""Trains a detector: `python detection/train.py ba_net_faster_rcnn --cfg-options model.backbone.attention=ba`.

    python detection/train.py detection/configs/rows/ba_net_faster_rcnn_r50_ba.py
    torchrun --nproc-per-node=4 detection/train.py ba_net_mask_rcnn_r101_ba --amp
    python detection/train.py CONFIG --resume            continue from the last checkpoint in the work directory
    python detection/train.py CONFIG --logger wandb      or tensorboard, beside the files in the work directory

Config and overrides are MMDetection's, and MMDetection does the training: its own tools/train.py does the same.
"""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from attn.errors import UserError
from attn.runs.wandb import wandb_mode
from detection import cli, weights

BACKENDS = {
    "wandb": {"type": "WandbVisBackend", "init_kwargs": {"project": "attn-detection"}},
    "tensorboard": {"type": "TensorboardVisBackend"},
}
EXTRAS = {"wandb": "wandb", "tensorboard": "detection"}


def main() -> None:
    parser = cli.parser(__doc__ or "")
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate to the real batch size")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="CHECKPOINT", help="continue, by default from the last checkpoint"
    )
    parser.add_argument("--logger", choices=sorted(BACKENDS), action="append", default=[], help="log there too")
    args = parser.parse_args()
    cfg = cli.load(args)
    apply(cfg, args)
    weights.check_present(cli.pretrained(cfg))  # before minutes are spent on the data
    runner = cli.build_runner(cfg, "train")
    _tell_batch(runner, cfg)
    runner.train()


def apply(cfg: Config, args: argparse.Namespace) -> None:
    """Puts the options of the command line into the config.

    Raises:
        UserError: a logger's package is not installed.
    """
    if args.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.loss_scale = "dynamic"
    if args.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    for name in args.logger:
        if not _installed(name):
            raise UserError(f"--logger {name} needs the package {name}: pip install 'attn[{EXTRAS[name]}]'")
        backend: dict[str, Any] = dict(BACKENDS[name])
        if name == "wandb":  # without a key it would end the run
            mode = wandb_mode(os.environ.get("WANDB_MODE") or "online", Path(cfg.work_dir))
            backend["init_kwargs"] = {**backend["init_kwargs"], "mode": mode}
        cfg.visualizer.vis_backends = [*cfg.visualizer.vis_backends, backend]


def _installed(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def _tell_batch(runner: Any, cfg: Config) -> None:
    """Warns if the batch size is not the one that the recipe's learning rate is for."""
    scaling = cfg.get("auto_scale_lr") or {}
    expected, batch = scaling.get("base_batch_size"), runner.world_size * cfg.train_dataloader.batch_size
    if expected and batch != expected and not scaling.get("enable"):
        print_log(
            f"{batch} images per step, the learning rate is for {expected}: set train_dataloader.batch_size"
            f"={max(1, expected // runner.world_size)}, or scale it with --auto-scale-lr",
            "current",
            level=30,
        )


if __name__ == "__main__":
    cli.run(main)
