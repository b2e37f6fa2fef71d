"""From a config to all that training needs: data, model, optimizer, and the checkpoint to continue from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attn import console, rng
from attn.config.schema import Config
from attn.data.loader import Seeded, TrainData, evaluation_data, train_data
from attn.distributed import Ranks
from attn.errors import UserError
from attn.models.auxiliary import extra_loss
from attn.models.create import check_input, set_last_norm
from attn.models.unused import ignore_unused
from attn.runs import checkpoint, directory, load, metrics
from attn.runs.checkpoint import LAST
from attn.training import optim
from attn.training.state import Best, State
from attn.training.stopping import finish


@dataclass
class Job:
    """What `prepare` makes of a config."""

    data: TrainData
    val: Seeded
    state: State
    net: nn.Module  # the model as it is called in training: DDP around it on several ranks
    mixup: Mixup | None
    total_steps: int


def find_checkpoint(cfg: Config, run_dir: Path) -> Path | None:
    """The checkpoint to continue from, by `resume`; the run's own goes before one from elsewhere.

    Raises:
        UserError: none of the checkpoints is sound, the config differs in what changes the result, or resume=never and there
            is one.
    """
    if cfg.resume == "never":
        if (run_dir / LAST).exists():
            raise UserError(
                f"resume=never, but {run_dir} holds a run: remove it, choose another run_dir=, or use resume=auto"
            )
        return None
    path: Path | None = None
    if cfg.resume != "auto" and Path(cfg.resume).resolve().parent == run_dir.resolve():
        path = Path(cfg.resume)  # back to an older one of this run
    else:
        newest = checkpoint.newest(run_dir)
        if newest is not None:
            path, problems = newest
            for problem in problems:
                console.warn(f"{problem}; going back to {path}")
        elif cfg.resume != "auto":
            path = Path(cfg.resume)
    if path is None:
        return None
    changed = directory.differences(load.load_config(checkpoint.read(path), path), cfg)
    if changed and not cfg.force:
        raise UserError(
            f"{path} was made with another config ({'; '.join(changed)}): use the old values, another run_dir=, or force=true"
        )
    return path


def prepare(cfg: Config, run_dir: Path, ranks: Ranks, path: Path | None) -> Job | None:
    """Opens the data, builds the model, takes up the checkpoint at `path`; None if the run is finished already."""
    found = None if path is None else checkpoint.read(path)
    if found is not None:
        checkpoint.expect_resumable(found, str(path))
    schedule = cfg.schedule
    data = train_data(cfg.data, schedule.batch_size, schedule.accumulate, cfg.seed, ranks)
    val = evaluation_data(cfg.data)
    mixup = build_mixup(cfg, ranks)
    total = optim.total_steps(schedule, data.steps_per_epoch)
    if ranks.first:
        metrics.rewind_metrics(run_dir, found["evaluated"] if found is not None else 0)
    if found is not None and found["step"] >= total and found["evaluated"] * data.steps_per_epoch >= total:
        if ranks.first:
            console.say(f"finished already: {total // data.steps_per_epoch} epochs in {run_dir}")
            finish(cfg, run_dir, Best(**found["best"]))
        return None

    set_determinism(cfg.deterministic)
    rng.seed_everything(cfg.seed, "initialisation")
    model: Any = load.build(cfg, pretrained=cfg.pretrained and found is None)
    if schedule.zero_init_last is not None and not cfg.pretrained:
        set_last_norm(model, zero=schedule.zero_init_last)
    if cfg.init is not None and found is None:
        load.load_weights(model, load.pick_weights(checkpoint.read(cfg.init), None, cfg.init), cfg.init)
    if schedule.batch_size == ranks.world * schedule.accumulate and not (schedule.sync_bn and ranks.world > 1):
        check_single_image(cfg, model)
    if ranks.world > 1:
        ignore_unused(model, partial(check_loss, cfg))
    if schedule.sync_bn:
        if ranks.device.type == "cpu":
            raise ValueError("schedule.sync_bn=true: torch synchronises BatchNorm on GPUs only; leave it off on the CPU")
        if ranks.world > 1:  # alone there is nothing to share, and SyncBatchNorm would refuse a single image
            model = convert_sync_batchnorm(model)
    if cfg.grad_checkpointing:
        model.set_grad_checkpointing(True)
    layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
    model = model.to(ranks.device, memory_format=layout)
    ema = None if schedule.ema_decay is None else ModelEmaV3(model, decay=schedule.ema_decay)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=schedule.amp == "fp16")
    state = State(model, ema, optim.build_optimizer(schedule, model), scaler)
    if found is not None:
        state.restore(found, str(path))
        if ranks.first:
            console.say(f"continuing from {path} at step {state.step} of {total}")
    if ranks.first:
        (run_dir / directory.DONE).unlink(missing_ok=True)
        directory.write_config(run_dir, cfg)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        console.say(
            f"{cfg.backbone['name']} + {cfg.attention_name}: {parameters:.2f} M parameters, {len(data.dataset)} images"
        )
    if cfg.compile:
        model.compile()
    net: nn.Module = model
    if ranks.world > 1:
        net = DistributedDataParallel(model, device_ids=[ranks.device] if ranks.device.type == "cuda" else None)
    return Job(data, val, state, net, mixup, total)


def check_loss(cfg: Config, model: nn.Module, device: torch.device) -> Tensor:
    """The training loss of two images, of a copy of the model on a device."""
    images = torch.zeros(2, 3, cfg.data.image_size, cfg.data.image_size, device=device)
    targets = torch.zeros(2, dtype=torch.long, device=device)
    logits = model(images)
    return F.cross_entropy(logits, targets) + extra_loss(model, images, targets, logits)


def check_single_image(cfg: Config, model: nn.Module) -> None:
    """Where a forward pass gets one image.

    Raises:
        ValueError: a norm of the model has one value per channel then, and no variance.
    """
    try:
        check_input(model, cfg.data.image_size, training=True)
    except ValueError as error:
        raise ValueError(
            f"schedule.batch_size={cfg.schedule.batch_size} gives one image to each forward pass (a rank's accumulated part): "
            f"the model {error}; raise schedule.batch_size, or lower schedule.accumulate or the number of ranks"
        ) from None


def build_mixup(cfg: Config, ranks: Ranks) -> Mixup | None:
    """timm's mixup and cutmix, or None when both are off.

    Raises:
        ValueError: the images of a pass cannot be paired.
    """
    schedule = cfg.schedule
    if not schedule.mixup and not schedule.cutmix:
        return None
    parts = ranks.world * schedule.accumulate
    if schedule.batch_size // parts % 2:
        raise ValueError(
            f"schedule.batch_size={schedule.batch_size} gives {schedule.batch_size // parts} images to each of {ranks.world} ranks "
            f"x {schedule.accumulate} accumulated parts: mixup and cutmix need an even number"
        )
    return Mixup(
        mixup_alpha=schedule.mixup,
        cutmix_alpha=schedule.cutmix,
        prob=schedule.mix_prob,
        switch_prob=schedule.mix_switch_prob,
        label_smoothing=schedule.label_smoothing,
        num_classes=cfg.data.num_classes,
    )


def set_determinism(on: bool) -> None:
    """With `on`, operations that differ from run to run are replaced or refused (slower on a GPU)."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may choose another algorithm each time
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = not on and torch.cuda.is_available()
