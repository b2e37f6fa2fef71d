"""The schema of the composed config: every key, its type and its range."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from attn.errors import UserError
from attn.registry import unknown


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


_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list[float]": "a list of numbers, as in [0.5,0.9]",
    "list[int]": "a list of whole numbers, as in [30,60]",
    "list[str]": "a list of names, as in [norm,bias]",
}


def parse(composed: DictConfig) -> Config:
    """Checks a composed config against the schema and gives it as dataclasses.

    Raises:
        UserError: a key is unknown, a value has the wrong type or is out of range.
    """
    composed = composed.copy()
    OmegaConf.set_struct(composed, False)
    raw = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(raw, dict)
    free: dict[str, Any] = {key: raw.pop(key, None) or {} for key in ("backbone", "attention")}
    for key, value in free.items():
        if not isinstance(value, dict):
            raise UserError(f"{key}={value}: must be a mapping; name one, as in {key}=NAME")
    config = typed(
        Config(**free, data=Data(), schedule=Schedule(), logger=Logger()), {str(key): value for key, value in raw.items()}
    )
    validate(config)
    return config


def typed(defaults: Any, raw: dict[str, Any]) -> Any:
    """A mapping as a dataclass, with every value converted to the type that its field has.

    Args:
        defaults: an instance of the dataclass.
        raw: plain containers; keys that are absent keep their defaults.

    Raises:
        UserError: a key is unknown, or a value has the wrong type.
    """
    schema = OmegaConf.structured(defaults)
    OmegaConf.set_readonly(schema, False)  # a frozen dataclass
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, raw))
    except ConfigKeyError as error:
        section, _, _ = (error.full_key or "").rpartition(".")
        node = defaults if not section else lookup(defaults, section)
        prefix = f"{section}." if section else ""
        raise UserError(unknown("key", str(error.full_key), [f"{prefix}{f.name}" for f in fields(node)])) from None
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        value = _given(raw, key)
        expected = _EXPECTED.get(_kind(defaults, key), "another type")
        raise UserError(f"{key}={'null' if value is None else value}: must be {expected}") from None


def _kind(defaults: Any, key: str) -> str:
    """The type of a field as written in its dataclass, without `| None`; of a list's element for `key[0]`."""
    path, _, index = key.partition("[")
    section, _, name = path.rpartition(".")
    node = defaults if not section else lookup(defaults, section)
    kind = next(str(f.type) for f in fields(node) if f.name == name).removesuffix(" | None")
    return kind[5:-1] if index and kind.startswith("list[") else kind


def _given(raw: Any, key: str) -> Any:
    for part in re.findall(r"[^.\[\]]+", key):
        raw = raw[int(part)] if isinstance(raw, list) else raw[part]
    return raw


def from_dict(mapping: dict[str, Any]) -> Config:
    """The config that a checkpoint holds; see `parse` for what it raises."""
    return parse(OmegaConf.create(mapping))


def to_dict(config: Config) -> dict[str, Any]:
    """Plain containers, for a checkpoint or a file."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def validate(config: Config) -> None:
    """Checks ranges and combinations that types cannot express.

    Raises:
        UserError: names the key, its value and what was expected.
    """
    for key, choices in CHOICES.items():
        value = lookup(config, key)
        if value is not None and value not in choices:
            raise UserError(f"{key}={value}: {unknown('value', str(value), choices)}")
    for key, expected in RANGES.items():
        value = lookup(config, key)
        if value is not None and not TESTS[expected](value):
            raise UserError(f"{key}={value}: must be {expected}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}: must be finite")
    schedule, data = config.schedule, config.data
    if not isinstance(config.backbone.get("name"), str):
        raise UserError(
            f"backbone.name={config.backbone.get('name')}: must be the name of a backbone, as in backbone=resnet50"
        )
    for key in ("run_dir", "data.train_split", "data.val_split"):
        if not lookup(config, key):
            raise UserError(f"{key}= is empty; name one, or leave the key out")
    for kind in schedule.no_decay:
        if kind not in NO_DECAY:
            raise UserError(f"schedule.no_decay={list(schedule.no_decay)}: {unknown('kind', kind, NO_DECAY)}")
    if schedule.warmup_mode != "before" and schedule.warmup_epochs > schedule.epochs:
        raise UserError(
            f"schedule.warmup_epochs={schedule.warmup_epochs:g} is longer than schedule.epochs={schedule.epochs}"
        )
    if schedule.min_lr > schedule.lr:
        raise UserError(f"schedule.min_lr={schedule.min_lr:g} is above schedule.lr={schedule.lr:g}")
    if schedule.warmup_lr is not None and schedule.warmup_lr > schedule.lr:
        raise UserError(f"schedule.warmup_lr={schedule.warmup_lr:g} is above schedule.lr={schedule.lr:g}")
    if schedule.nesterov and schedule.optimizer == "sgd" and not schedule.momentum:
        raise UserError("schedule.nesterov=true needs schedule.momentum above 0")
    if any(milestone < 1 for milestone in schedule.milestones):
        raise UserError(f"schedule.milestones={list(schedule.milestones)}: must be epochs, 1 or more")
    if len(schedule.betas) != 2 or not all(0 <= b < 1 for b in schedule.betas):
        raise UserError(f"schedule.betas={list(schedule.betas)}: must be two numbers, 0 or more and below 1")
    for key, pair in (("data.crop_scale", data.crop_scale), ("data.crop_ratio", data.crop_ratio)):
        if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
            raise UserError(f"{key}={list(pair)}: must be two numbers, 0 < low <= high")
    if data.crop_scale[1] > 1:
        raise UserError(f"data.crop_scale={list(data.crop_scale)}: must be shares of the image's area, at most 1")
    for key, triple in (("data.mean", data.mean), ("data.std", data.std)):
        if len(triple) != 3:
            raise UserError(f"{key}={list(triple)}: must be three numbers, one per channel")
    if not all(0 < value < math.inf for value in data.std):
        raise UserError(f"data.std={list(data.std)}: must be greater than 0")
    if data.test_resize < data.image_size:
        raise UserError(
            f"data.test_resize={data.test_resize} is below data.image_size={data.image_size}: test images would be padded with "
            f"black; set data.test_resize={data.image_size} or more"
        )
    if config.resume not in ("auto", "never") and not os.path.isfile(config.resume):
        raise UserError(
            f"resume={config.resume}: must be auto, never or the path of a checkpoint, and there is no such file"
        )


def lookup(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
