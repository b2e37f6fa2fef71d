"""From a config to all that training needs: data, model, optimizer, and the checkpoint to continue from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attn import console, rng
from attn.config.schema import Config
from attn.data.datasets import class_names, expect_same_classes, sample_weights
from attn.data.loader import Seeded, TrainData, evaluation_data, train_data
from attn.data.settle import settled
from attn.distributed import Ranks, fail_together
from attn.errors import UserError
from attn.kernels import form_here, missing
from attn.models.auxiliary import extra_loss
from attn.models.create import check_input, fused_blocks, set_last_norm
from attn.models.unused import ignore_unused
from attn.runs import checkpoint, directory, folder, load, metrics, starts, steps
from attn.runs.checkpoint import BEST, LAST, PREVIOUS
from attn.runs.steps import StepLog
from attn.training import optim, optimizers
from attn.training.run import Run
from attn.training.state import Best, State, another_optimizer
from attn.training.stop_request import StopRequest
from attn.training.stopping import finish


class Found(NamedTuple):
    """The checkpoint that a run continues from; each rank reads it once."""

    path: Path
    content: dict[str, Any]


def read_found(path: Path | None) -> Found | None:
    """The checkpoint at the path that the first rank chose."""
    return None if path is None else Found(path, checkpoint.read(path))


def with_kernels(cfg: Config, ranks: Ranks) -> Config:
    """The config with the form of the kernels that is used: `auto` is fused if every rank has the form for its device.

    Raises:
        UserError: `fused`, and some rank does not have it.
    """
    with fail_together(ranks):
        form = form_here(cfg.kernels, ranks.device.type)
    used = "fused" if all(other == "fused" for other in ranks.gather(form)) else "reference"
    if cfg.kernels == "auto" and used == "reference" and ranks.first:
        lacks = missing(ranks.device.type) or "another rank has no fused form"
        console.say(f"kernels=auto: reference is used, {lacks}")
    return replace(cfg, kernels=used)


def with_data(cfg: Config, ranks: Ranks) -> Config:
    """The config with the decoder and the packing that are used; `auto` is region if it is built for every rank.

    Raises:
        UserError: they are not here on some rank.
    """
    with fail_together(ranks):
        data = settled(cfg.data)
    if any(other != data.decoder for other in ranks.gather(data.decoder)):
        data = replace(data, decoder="pil")
    if cfg.data.decoder == "auto" and ranks.first:
        console.say(f"data.decoder=auto: {data.decoder} is used")
    return replace(cfg, data=data)


def find_checkpoint(cfg: Config, run_dir: Path) -> Found | None:
    """The checkpoint to continue from, by `resume`; the run's own is preferred to one from elsewhere.

    Raises:
        UserError: none of the checkpoints is sound, the config differs in what changes the result, or resume=never and there
            is one.
    """
    if cfg.resume == "never":
        if any((run_dir / name).exists() for name in (LAST, PREVIOUS, BEST, directory.DONE, metrics.METRICS)):
            raise UserError(
                f"resume=never, but {run_dir} holds a run: remove it, choose another run_dir=, or use resume=auto"
            )
        return None
    found: Found | None = None
    if cfg.resume != "auto" and Path(cfg.resume).resolve().parent == run_dir.resolve():
        found = read_found(Path(cfg.resume))  # back to an older one of this run
    else:
        newest = checkpoint.newest(run_dir)
        if newest is not None:
            found = Found(*newest[:2])
            for problem in newest[2]:
                console.warn(f"{problem}; going back to {found.path}")
        elif cfg.resume != "auto":
            found = read_found(Path(cfg.resume))
    path = None if found is None else found.path
    own = None if path is None or path.resolve().parent != run_dir.resolve() else path
    asked = own is not None and cfg.resume != "auto" and Path(cfg.resume).resolve() == own.resolve()
    if (run_dir / directory.DONE).exists() and not asked and (own is None or own.name != LAST):
        left = "there is no other checkpoint" if own is None else f"{own} is older"
        raise UserError(
            f"{run_dir} is finished, but its {LAST} is gone or damaged, and {left}: nothing was trained again; remove "
            f"{run_dir / directory.DONE} to do so, or choose another run_dir="
        )
    if found is None:
        return None
    changed = directory.differences(load.load_config(found.content, found.path), cfg)
    if changed and not cfg.force:
        raise UserError(
            f"{path} was made with another config ({'; '.join(changed)}): use the old values, another run_dir=, or "
            "force=true"
        )
    return found


def prepare(cfg: Config, run_dir: Path, ranks: Ranks, request: StopRequest, found: Found | None) -> Run | None:
    """Opens the data, builds the model and loads the checkpoint that was found; None if the run is already finished.

    Raises:
        UserError, ValueError: data, model, checkpoint and config do not fit.
    """
    if found is not None:
        checkpoint.expect_resumable(found.content, str(found.path))
    schedule = cfg.schedule
    optimizers.check(schedule)
    data = train_data(cfg.data, schedule.batch_size, schedule.accumulate, cfg.seed, ranks)
    val = evaluation_data(cfg.data)
    classes = check_classes(cfg, data, val, found)
    mixup = build_mixup(cfg, ranks)
    total = optim.total_steps(schedule, data.steps_per_epoch)
    over = found is not None and is_finished(cfg, found.content, total, data.steps_per_epoch)
    if found is not None:
        expect_possible(found, data.steps_per_epoch)
    if over and found is not None and found.path.resolve().parent != run_dir.resolve():
        raise ValueError(
            f"resume={found.path} is finished: its {total // data.steps_per_epoch} epochs are all that schedule.epochs="
            f"{schedule.epochs} asks for, and nothing is left to train in {run_dir}; raise schedule.epochs to train on, or "
            f"evaluate it: eval.py checkpoint={found.path}"
        )
    if ranks.first:
        rewind(run_dir, None if found is None else found.content)
    if found is not None and over:
        load.expect_finite(found.content["model"], str(found.path))
        if ranks.first:
            console.say(f"finished already: {found.content['evaluated']} epochs in {run_dir}")
            finish(cfg, run_dir, Best(**found.content["best"]))
        return None
    model = build_model(cfg, ranks, fresh=found is None)
    state = build_state(cfg, ranks, model, classes)
    if found is not None:
        continue_from(found, state, cfg, run_dir, ranks, total)
    if ranks.first:
        (run_dir / directory.DONE).unlink(missing_ok=True)
        directory.write_config(run_dir, cfg)
        starts.record_start(run_dir, state.step, ranks)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        images = f"{len(data.dataset)} images"
        console.say(f"{cfg.backbone['name']} + {cfg.attention_name}: {parameters:.2f} M parameters, {images}")
        if cfg.init is not None and found is None:
            console.say(f"starting from the weights of {cfg.init}")
        if cfg.kernels != "reference":
            console.say(told_of_kernels(cfg, model, ranks.device))
    log = StepLog(run_dir, cfg.log_every)
    found_weights = sample_weights(data.dataset.dataset)
    weights = None if found_weights is None else torch.from_numpy(found_weights)
    return Run(cfg, run_dir, ranks, request, data, val, state, wrap(cfg, ranks, model), weights, mixup, total, log)


def check_classes(cfg: Config, data: TrainData, val: Seeded, found: Found | None) -> list[str] | None:
    """The names of the classes, the same in training, validation and checkpoint; None where the data set names none.

    Raises:
        ValueError: they differ.
    """
    classes = class_names(data.dataset.dataset)
    where = f"data={cfg.data.name} data.root={cfg.data.root}:"
    expect_same_classes(classes, class_names(val.dataset), f"{where} {cfg.data.train_split} and {cfg.data.val_split}")
    if found is not None:
        expect_same_classes(found.content.get("classes"), classes, f"{where} checkpoint {found.path} and these images")
    return classes


def build_model(cfg: Config, ranks: Ranks, fresh: bool) -> Any:
    """The model on its device, with weights as at the start of a run.

    Args:
        fresh: no checkpoint will be loaded, so `pretrained` applies.

    Raises:
        UserError, ValueError: backbone, attention, images and ranks do not fit.
    """
    schedule = cfg.schedule
    set_determinism(cfg.deterministic)
    rng.seed_everything(cfg.seed, "initialisation")
    what = "timm's weights, which may have to be downloaded" if cfg.pretrained and fresh else "the network to be built"
    with console.told_if_slow(f"{what} ({cfg.backbone['name']})"):
        model: Any = load.build(cfg, pretrained=cfg.pretrained and fresh)
    if schedule.zero_init_last is not None and not cfg.pretrained:
        set_last_norm(model, zero=schedule.zero_init_last)
    if cfg.init is not None and fresh:
        load.load_weights(model, load.pick_weights(folder.read(cfg.init), None, cfg.init), cfg.init)
    if schedule.batch_size == ranks.world * schedule.accumulate and not (schedule.sync_bn and ranks.world > 1):
        check_single_image(cfg, model)
    if ranks.world > 1:
        ignore_unused(model, partial(check_loss, cfg))
    if schedule.sync_bn:
        if ranks.device.type == "cpu":
            raise ValueError("schedule.sync_bn=true: torch synchronises BatchNorm on GPUs only; leave it off on the CPU")
        if ranks.world > 1:  # one rank shares nothing, and SyncBatchNorm would refuse a single image
            model = convert_sync_batchnorm(model)
    if cfg.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return model.to(ranks.device, memory_format=torch.channels_last if cfg.channels_last else torch.contiguous_format)


def build_state(cfg: Config, ranks: Ranks, model: nn.Module, classes: list[str] | None) -> State:
    """Everything that training changes, as at the start of a run."""
    schedule = cfg.schedule
    ema = None if schedule.ema_decay is None else ModelEmaV3(model, decay=schedule.ema_decay)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=schedule.amp == "fp16")
    optimizer = optim.build_optimizer(schedule, model)
    return State(model, ema, optimizer, scaler, best=Best(monitor=cfg.monitor), classes=classes)


def continue_from(found: Found, state: State, cfg: Config, run_dir: Path, ranks: Ranks, total: int) -> None:
    """Loads the whole state from a checkpoint, and prints where the run continues.

    Raises:
        BadCheckpoint: it is of another architecture or optimizer.
    """
    if load.load_config(found.content, found.path).schedule.optimizer != cfg.schedule.optimizer:  # with force=true
        raise another_optimizer(found.path)
    state.load_state_dict(found.content, str(found.path))
    if state.best.monitor != cfg.monitor:  # with force=true: scores of two kinds cannot be compared
        state.best = Best(monitor=cfg.monitor)
    if ranks.first:
        state.history = [*metrics.read_metrics(run_dir), *state.rows]
        console.say(f"continuing from {found.path} at step {state.step} of {total}")


def wrap(cfg: Config, ranks: Ranks, model: nn.Module) -> nn.Module:
    """The model as it is called in training: compiled if asked for, in DDP on several ranks."""
    if cfg.compile:
        model.compile()
    if ranks.world == 1:
        return model
    return DistributedDataParallel(model, device_ids=[ranks.device] if ranks.device.type == "cuda" else None)


def expect_possible(found: Found, per_epoch: int) -> None:
    """Checks that a checkpoint's counters are ones that training reaches; else nothing would be trained, or nothing
    evaluated.

    Raises:
        BadCheckpoint: more epochs than its own config asks for, or more steps than its epochs have here.
    """
    step, evaluated = found.content["step"], found.content["evaluated"]
    asked = optim.total_epochs(load.load_config(found.content, found.path).schedule)
    if evaluated > math.ceil(asked):
        raise checkpoint.BadCheckpoint(
            f"checkpoint {found.path} is damaged: it has {evaluated} evaluated epochs, and its own schedule.epochs asks for "
            f"{asked:g}"
        )
    if step > (evaluated + 1) * per_epoch:
        raise checkpoint.BadCheckpoint(
            f"checkpoint {found.path} is at step {step} after {evaluated} evaluated epochs, which is beyond the next one's "
            f"end: an epoch has {per_epoch} steps here. It is damaged, or was trained on more images or with another "
            "schedule.batch_size: use those, or start from its weights by init= and another run_dir="
        )


def is_finished(cfg: Config, found: Mapping[str, Any], total: int, per_epoch: int) -> bool:
    """Whether a checkpoint is the end: all steps are done, or `early_stop` applies, and all is evaluated."""
    evaluated = found["evaluated"] * per_epoch
    if found["step"] >= total:
        return evaluated >= total
    return evaluated == found["step"] and Best(**found["best"]).outlasted(found["evaluated"], cfg.early_stop)


def told_of_kernels(cfg: Config, model: nn.Module, device: torch.device) -> str:
    """One line: how many of the model's blocks run fused."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, None: torch.float32}[cfg.schedule.amp]
    fused, able = fused_blocks(model, device, dtype)
    if not able:
        return (
            f"kernels={cfg.kernels}: no block is fused, {cfg.backbone['name']} has none that can be; plain modules are used"
        )
    rest = "" if fused == able else "; the others run as plain modules"
    return f"kernels={cfg.kernels}: {fused} of {able} blocks are fused on {device.type}{rest}"


def check_loss(cfg: Config, model: nn.Module, device: torch.device) -> Tensor:
    """The training loss of two blank images, for a copy of the model on `device`."""
    images = torch.zeros(2, 3, cfg.data.image_size, cfg.data.image_size, device=device)
    targets = torch.zeros(2, dtype=torch.long, device=device)
    logits = model(images)
    return F.cross_entropy(logits, targets) + extra_loss(model, images, targets, logits)


def rewind(run_dir: Path, content: Mapping[str, Any] | None) -> None:
    """Makes metrics.jsonl and steps.jsonl agree with the checkpoint, and warns of what was wrong with them."""
    if content is None:
        told = metrics.rewind_metrics(run_dir, None)
    else:
        pending = [row["epoch"] for row in content["rows"]]
        told = metrics.rewind_metrics(run_dir, content["evaluated"], content.get("history", ()), pending)
    for line in told:
        console.warn(line)
    steps.rewind_steps(run_dir, 0 if content is None else content["step"])


def check_single_image(cfg: Config, model: nn.Module) -> None:
    """Checks a model whose forward passes get a single image.

    Raises:
        ValueError: a norm of the model would get one value per channel, which has no variance.
    """
    try:
        check_input(model, cfg.data.image_size, training=True)
    except ValueError as error:
        raise ValueError(
            f"schedule.batch_size={cfg.schedule.batch_size} gives one image to each forward pass (a rank's accumulated "
            f"part): the model {error}; raise schedule.batch_size, or lower schedule.accumulate or the number of ranks"
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
            f"schedule.batch_size={schedule.batch_size} gives {schedule.batch_size // parts} images to each of "
            f"{ranks.world} ranks x {schedule.accumulate} accumulated parts: mixup and cutmix need an even number"
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
