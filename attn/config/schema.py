"""The schema of the composed config: every key, its type and its range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Data:
    """A data set and its transformations (group `data`).

    Attributes:
        name: part of the run's directory.
        source: imagefolder, cifar100, digits, elpv, fake, or timm for anything that `timm.data.create_dataset` takes.
        dataset: for source=timm, its name there (`hfds/...`, `wds/...`, `tar/...`, `torch/...`).
        root: directory of the data.
        train_split, val_split: names of the splits (for imagefolder: of the folders).
        num_classes: size of the label set.
        image_size: side of the square that the network gets, in pixels.
        test_resize: shorter side before the centre crop of a test image, in pixels.
        interpolation, test_interpolation: nearest, bilinear or bicubic.
        mean, std: of the channels, on the scale 0..1.
        crop: training crop: random_resized, pad (pad by `pad` pixels, then crop) or resize (none).
        crop_scale, crop_ratio: area and aspect ratio of a random resized crop.
        hflip: probability of a horizontal flip.
        rotate: random rotation, in degrees to either side.
        color_jitter: strength for brightness, contrast and saturation.
        auto_augment: timm's policy string, such as rand-m9-mstd0.5-inc1.
        random_erasing: probability.
        samples: size of the fake data set.
        workers: loader processes per rank.
        on_error: raise, or replace an unreadable training image by the next readable one and count it.
    """

    name: str = "imagenet"
    source: str = "imagefolder"
    dataset: str | None = None
    root: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    num_classes: int = 1000
    image_size: int = 224
    test_resize: int = 256
    interpolation: str = "bilinear"
    test_interpolation: str = "bilinear"
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    crop: str = "random_resized"
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    pad: int = 4
    hflip: float = 0.5
    rotate: float = 0.0
    color_jitter: float = 0.0
    auto_augment: str | None = None
    random_erasing: float = 0.0
    samples: int = 1024
    workers: int = 4
    on_error: str = "raise"


@dataclass
class Schedule:
    """How the network learns (group `schedule`).

    Attributes:
        epochs: passes over the training set.
        batch_size: images per optimizer step, over all ranks and accumulated parts together.
        accumulate: parts into which each rank cuts its share of a batch.
        optimizer: sgd or adamw.
        lr: peak learning rate, for the whole batch; it is never rescaled.
        momentum, nesterov: of SGD.
        betas: of AdamW.
        weight_decay: applied to all parameters but those in `no_decay`.
        no_decay: kinds of parameters without decay: norm, batchnorm, bias, vector (one dimension or none), depthwise.
        curve: cosine, step or constant.
        min_lr: where the cosine ends.
        milestones, gamma: epochs of the steps, and the factor of each.
        warmup_epochs: linear warm-up.
        warmup_lr: learning rate of its first step; null for lr / steps of the warm-up.
        warmup_mode: inside (the curve runs over the remaining epochs), overlap (the curve runs over all epochs, its beginning
            is replaced), before (the warm-up comes on top of `epochs`).
        update: step or epoch: how often the learning rate moves.
        label_smoothing: share of the uniform distribution in the targets.
        mixup, cutmix: alpha of the Beta distributions; 0 is off.
        mix_prob, mix_switch_prob: probability of mixing at all, and of cutmix when both are on.
        clip_grad: largest norm of the gradient; null is off.
        ema_decay: decay of the averaged weights; null is off.
        amp: bf16 or fp16 autocast; null is off.
        sync_bn: batch statistics over all ranks.
        zero_init_last: overrides timm's zero initialisation of the last norm of a residual branch; null leaves it.
    """

    name: str = "default"
    epochs: int = 100
    batch_size: int = 256
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 1e-4
    no_decay: list[str] = field(default_factory=list)
    curve: str = "cosine"
    min_lr: float = 0.0
    milestones: list[int] = field(default_factory=lambda: [30, 60, 90])
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    warmup_lr: float | None = None
    warmup_mode: str = "inside"
    update: str = "step"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    clip_grad: float | None = None
    ema_decay: float | None = None
    amp: str | None = None
    sync_bn: bool = False
    zero_init_last: bool | None = None


@dataclass
class Logger:
    """Views of `metrics.jsonl` (group `logger`).

    Attributes:
        csv, plot: also write metrics.csv and curves.png.
        wandb: mirror to Weights & Biases; offline unless `wandb_mode` or a key says otherwise.
        wandb_project, wandb_mode: passed to `wandb.init`.
    """

    csv: bool = False
    plot: bool = False
    wandb: bool = False
    wandb_project: str = "attn"
    wandb_mode: str | None = None


@dataclass
class Config:
    """A whole run.

    Attributes:
        backbone: timm's name and keyword arguments (group `backbone`).
        attention: mapping of slots (group `attention`).
        attention_name: the chosen name, for the record.
        seed: of everything random.
        run_dir: where checkpoints and metrics lie; the same command continues there.
        resume: auto (continue what is in run_dir), never (refuse if there is something), or the path of a checkpoint.
        force: continue although the config differs from the checkpoint's.
        pretrained: start from timm's weights of the backbone.
        init: start from the weights of this checkpoint, which must be those of the model (scripts/convert.py makes them).
        device: auto, cpu or cuda.
        channels_last, compile, grad_checkpointing, deterministic: of the computation.
        save_every_steps, save_every_minutes: further checkpoints within an epoch; null is off.
        save_error: stop, or continue when a checkpoint cannot be written (disk full).
        nonfinite: stop at a non-finite loss or gradient, or skip that step.
        max_skipped: steps that may be skipped in a row before the run stops.
        dist_timeout: seconds after which a silent rank is given up.
        log_every: steps between progress lines when there is no terminal.
    """

    backbone: dict[str, Any]
    attention: dict[str, Any]
    data: Data
    schedule: Schedule
    logger: Logger
    attention_name: str = "none"
    seed: int = 0
    run_dir: str = "runs/default"
    resume: str = "auto"
    force: bool = False
    pretrained: bool = False
    init: str | None = None
    device: str = "auto"
    channels_last: bool = False
    compile: bool = False
    grad_checkpointing: bool = False
    deterministic: bool = False
    save_every_steps: int | None = None
    save_every_minutes: float | None = None
    save_error: str = "stop"
    nonfinite: str = "stop"
    max_skipped: int = 10
    dist_timeout: float = 600.0
    log_every: int = 50


INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


CHOICES: dict[str, tuple[str, ...]] = {
    "data.source": ("imagefolder", "cifar100", "digits", "elpv", "fake", "timm"),
    "data.interpolation": INTERPOLATIONS,
    "data.test_interpolation": INTERPOLATIONS,
    "data.crop": ("random_resized", "pad", "resize"),
    "data.on_error": ("raise", "replace"),
    "schedule.optimizer": ("sgd", "adamw"),
    "schedule.curve": ("cosine", "step", "constant"),
    "schedule.warmup_mode": ("inside", "overlap", "before"),
    "schedule.update": ("step", "epoch"),
    "schedule.amp": ("bf16", "fp16"),
    "device": ("auto", "cpu", "cuda"),
    "save_error": ("stop", "continue"),
    "nonfinite": ("stop", "skip"),
    "logger.wandb_mode": ("online", "offline", "disabled"),
}


POSITIVE = "greater than 0"


NOT_NEGATIVE = "0 or more"


SHARE = "between 0 and 1"


BELOW_ONE = "0 or more, and below 1"


RANGES: dict[str, str] = {
    "schedule.epochs": POSITIVE,
    "schedule.batch_size": POSITIVE,
    "schedule.accumulate": POSITIVE,
    "schedule.lr": POSITIVE,
    "schedule.gamma": POSITIVE,
    "schedule.clip_grad": POSITIVE,
    "schedule.min_lr": NOT_NEGATIVE,
    "schedule.weight_decay": NOT_NEGATIVE,
    "schedule.warmup_epochs": NOT_NEGATIVE,
    "schedule.warmup_lr": NOT_NEGATIVE,
    "schedule.mixup": NOT_NEGATIVE,
    "schedule.cutmix": NOT_NEGATIVE,
    "schedule.momentum": BELOW_ONE,
    "schedule.label_smoothing": BELOW_ONE,
    "schedule.mix_prob": SHARE,
    "schedule.mix_switch_prob": SHARE,
    "schedule.ema_decay": BELOW_ONE,
    "data.num_classes": POSITIVE,
    "data.image_size": POSITIVE,
    "data.test_resize": POSITIVE,
    "data.samples": POSITIVE,
    "data.workers": NOT_NEGATIVE,
    "data.pad": NOT_NEGATIVE,
    "data.rotate": NOT_NEGATIVE,
    "data.color_jitter": NOT_NEGATIVE,
    "data.hflip": SHARE,
    "data.random_erasing": SHARE,
    "seed": NOT_NEGATIVE,
    "save_every_steps": POSITIVE,
    "save_every_minutes": POSITIVE,
    "max_skipped": POSITIVE,
    "dist_timeout": POSITIVE,
    "log_every": POSITIVE,
}


TESTS: dict[str, Callable[[float], bool]] = {
    POSITIVE: lambda v: v > 0,
    NOT_NEGATIVE: lambda v: v >= 0,
    SHARE: lambda v: 0 <= v <= 1,
    BELOW_ONE: lambda v: 0 <= v < 1,
}


NO_DECAY = ("norm", "batchnorm", "bias", "vector", "depthwise")
