"""The schema of the composed config: every key with its type, default, meaning, choices and limits, each in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

POSITIVE = "greater than 0"
NOT_NEGATIVE = "0 or more"
PROBABILITY = "between 0 and 1"
BELOW_ONE = "0 or more, and below 1"
INSIDE = "above 0 and below 1"
LIMITS: dict[str, Callable[[float], bool]] = {
    POSITIVE: lambda v: v > 0,
    INSIDE: lambda v: 0 < v < 1,
    NOT_NEGATIVE: lambda v: v >= 0,
    PROBABILITY: lambda v: 0 <= v <= 1,
    BELOW_ONE: lambda v: 0 <= v < 1,
}
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
METRICS = ("balanced_accuracy", "macro_f1", "mcc")
# The optimizers that read keys of the schedule beside the rates; all others take theirs from `schedule.optimizer_options`.
OWN_OPTIMIZERS: dict[str, tuple[str, ...]] = {"sgd": ("momentum", "nesterov"), "adamw": ("betas",)}
NO_DECAY = ("norm", "batchnorm", "bias", "vector", "depthwise")
REQUIRED: Any = MISSING
PLAIN_NAME = r"(?!.{200})[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*"
A_PLAIN_NAME = "a plain name of letters, digits and . _ + -, because it is part of a path"
WANDB_PROJECT = r"[^/\\#?%:]{1,128}"
# timm treats an unknown policy as the default, or ignores it.
POLICY = (
    r"(original|originalr|v0|v0r|3a)(-mstd\d{1,3}(\.\d+)?)?"
    r"|rand(-m([12]?\d|30)|-n([1-9]|1[0-6])|-mstd\d{1,3}(\.\d+)?|-mmax([1-9]|[12]\d|30)|-inc[01]"
    r"|-p(0?\.\d+|[01](\.0+)?)|-t(weights|3aw?))*"
)


def key(
    default: Any,
    meaning: str,
    *,
    choices: tuple[str, ...] = (),
    limits: str | None = None,
    at_most: float | None = None,
    plain: bool = False,
    read_by: tuple[str, ...] = (),
) -> Any:
    """A field of the schema.

    Args:
        default: its value where no config sets it; REQUIRED if every config must.
        meaning: a line for the help and the reference of keys.
        choices: the strings that it may be, or of which a list may hold some.
        limits: one of `LIMITS`, for a number.
        at_most: a larger value is a mistake that would show late, as a lack of memory, an overflow or a useless network.
        plain: it is part of a path, so it must not hold `..` or the like.
        read_by: the values of `data.source` that use it; with any other value, setting the key is an error.
    """
    metadata = {
        "meaning": meaning,
        "choices": choices,
        "limits": limits,
        "at_most": at_most,
        "plain": plain,
        "read_by": read_by,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def weights_key() -> Any:
    """The key `weights` of everything that reads checkpoints."""
    meaning = "averaged (ema) or raw; auto: averaged where the checkpoint holds them"
    return key("auto", meaning, choices=("auto", "ema", "raw"))


def trust_key() -> Any:
    """The key `trust` of everything that reads checkpoints."""
    return key([], "modules of your own whose attentions the checkpoint may name, as in [mine]: importing one executes it")


@dataclass(frozen=True)
class Key:
    """What the schema says of a key, as in `key`; `name` is dotted, `kind` the type as written."""

    name: str
    kind: str
    default: Any
    meaning: str
    choices: tuple[str, ...]
    limits: str | None
    at_most: float | None
    plain: bool
    read_by: tuple[str, ...]


def keys(schema: type, prefix: str = "") -> Iterator[Key]:
    """The keys of a dataclass and of those in it, in their order."""
    for entry in fields(schema):
        section = SECTIONS.get(str(entry.type))
        if section is not None:
            yield from keys(section, f"{prefix}{entry.name}.")
        elif entry.metadata:
            default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
            yield Key(f"{prefix}{entry.name}", str(entry.type), default, **entry.metadata)


@dataclass
class Data:
    """A data set and its transformations (group `data`)."""

    name: str = key("imagenet", "part of the name of the run directory", plain=True)
    source: str = key(
        "imagefolder",
        "how the data set is stored; packed: as scripts/pack.py writes it; timm takes anything that `timm.data.create_dataset` takes",
        choices=("imagefolder", "packed", "cifar100", "digits", "elpv", "fake", "timm"),
    )
    dataset: str | None = key(
        None, "for source=timm, its name there (`folder`, `tar`, `hfds/...`, `torch/...`)", read_by=("timm",)
    )
    root: str | None = key(None, "directory of the data", read_by=("imagefolder", "packed", "cifar100", "timm"))
    train_split: str = key(
        "train",
        "name of the training split; for imagefolder and packed, of its folder",
        read_by=("imagefolder", "packed", "timm"),
    )
    val_split: str = key(
        "val",
        "name of the validation split; for imagefolder and packed, of its folder",
        read_by=("imagefolder", "packed", "timm"),
    )
    num_classes: int = key(1000, "size of the label set", limits=POSITIVE, at_most=1_000_000)
    image_size: int = key(224, "side of the square input image, in pixels", limits=POSITIVE, at_most=8192)
    test_resize: int = key(
        256, "shorter side before the centre crop of a test image, in pixels", limits=POSITIVE, at_most=16_384
    )
    interpolation: str = key("bilinear", "interpolation of the training images", choices=INTERPOLATIONS)
    test_interpolation: str = key("bilinear", "interpolation of the test images", choices=INTERPOLATIONS)
    mean: list[float] = key([0.485, 0.456, 0.406], "mean of the three channels, on the scale 0 to 1")
    std: list[float] = key([0.229, 0.224, 0.225], "standard deviation of the three channels, on the scale 0 to 1")
    crop: str = key(
        "random_resized",
        "training crop: random_resized, pad (pad by `data.pad` pixels, then crop) or resize (none)",
        choices=("random_resized", "pad", "resize"),
    )
    crop_scale: list[float] = key(
        [0.08, 1.0], "smallest and largest area of a random resized crop, as a fraction of the image"
    )
    crop_ratio: list[float] = key([3 / 4, 4 / 3], "smallest and largest aspect ratio of a random resized crop")
    pad: int = key(4, "pixels around a training image with crop=pad", limits=NOT_NEGATIVE, at_most=8192)
    hflip: float = key(0.5, "probability of a horizontal flip", limits=PROBABILITY)
    rotate: float = key(0.0, "random rotation, in degrees to either side", limits=NOT_NEGATIVE, at_most=180)
    color_jitter: float = key(0.0, "strength for brightness, contrast and saturation", limits=NOT_NEGATIVE, at_most=1)
    auto_augment: str | None = key(None, "timm's policy string, such as rand-m9-mstd0.5-inc1")
    random_erasing: float = key(0.0, "probability of erasing a rectangle of a training image", limits=PROBABILITY)
    labels: str = key(
        "probability",
        "for ELPV: its four probabilities of a defect, or defect: whether it is above one half",
        choices=("probability", "defect"),
        read_by=("elpv",),
    )
    split: int | None = key(
        None,
        "for ELPV: number of a random split, stratified by label and type of cell; null: the fixed split",
        limits=NOT_NEGATIVE,
        read_by=("elpv",),
    )
    held_out: float = key(
        0.2, "for ELPV: fraction of the images that a random split holds out", limits=INSIDE, read_by=("elpv",)
    )
    sample_weight: str | None = key(
        None,
        "for ELPV: weights of the training images in the loss; confidence: the probability that the labellers give to an image's label, as defective or functional; null: all are 1",
        choices=("confidence",),
        read_by=("elpv",),
    )
    packed: str | None = key(
        None,
        "what the packed copy must hold: original, or shorter side and quality such as side256-q90; null: whatever it holds, which is stored with the run",
        read_by=("packed",),
    )
    samples: int = key(1024, "size of the fake data set", limits=POSITIVE, at_most=100_000_000, read_by=("fake",))
    decoder: str = key(
        "pil",
        "how image files are decoded, with the same pixels in all: pil; region decodes only the part of a JPEG file that a crop needs, once `python -m attn.build` has built it; torchcodec, by that package; auto: region if it is built, else pil",
        choices=("pil", "auto", "region", "torchcodec"),
    )
    workers: int | None = key(
        None, "loader processes per rank; null: as many as the rank has processor cores, at most 4", limits=NOT_NEGATIVE
    )
    on_error: str = key(
        "raise",
        "what to do with an unreadable image: raise, or replace a training image by the next readable one and count it",
        choices=("raise", "replace"),
    )


@dataclass
class Schedule:
    """How the network learns (group `schedule`)."""

    name: str = key("default", "the recipe, for the record", plain=True)
    epochs: int = key(100, "passes over the training set", limits=POSITIVE, at_most=1_000_000)
    batch_size: int = key(
        256, "images per optimizer step, over all ranks and accumulated parts together", limits=POSITIVE, at_most=10_000_000
    )
    accumulate: int = key(
        1, "gradient accumulation: parts into which each rank splits its share of a batch", limits=POSITIVE, at_most=100_000
    )
    optimizer: str = key(
        "sgd",
        "sgd, adamw, or a name of timm.optim such as lamb, lion, adopt, muon or kron; a wrong one lists them all",
        plain=True,
    )
    optimizer_options: dict[str, Any] = key(
        {},
        "further options of the optimizer, by the names of its class's arguments, as in `+schedule.optimizer_options.trust_clip=true`",
    )
    lr: float = key(0.1, "peak learning rate, for the whole batch; it is never rescaled", limits=POSITIVE, at_most=1000)
    momentum: float = key(0.9, "momentum of SGD", limits=BELOW_ONE)
    nesterov: bool = key(False, "Nesterov momentum of SGD")
    betas: list[float] = key([0.9, 0.999], "betas of AdamW")
    weight_decay: float = key(1e-4, "applied to all parameters but those in `no_decay`", limits=NOT_NEGATIVE, at_most=10)
    no_decay: list[str] = key(
        [], "kinds of parameters without weight decay; vector: parameters with at most one dimension", choices=NO_DECAY
    )
    curve: str = key("cosine", "curve of the learning rate after the warm-up", choices=("cosine", "step", "constant"))
    min_lr: float = key(0.0, "learning rate at the end of the cosine", limits=NOT_NEGATIVE)
    milestones: list[int] = key([30, 60, 90], "epochs at which curve=step multiplies the learning rate")
    gamma: float = key(0.1, "factor of curve=step at each milestone", limits=POSITIVE, at_most=10)
    warmup_epochs: float = key(0.0, "epochs of linear warm-up", limits=NOT_NEGATIVE, at_most=1_000_000)
    warmup_lr: float | None = key(
        None, "learning rate of the first step of the warm-up; null: lr / steps of the warm-up", limits=NOT_NEGATIVE
    )
    warmup_mode: str = key(
        "inside",
        "inside: the curve runs over the remaining epochs; overlap: it runs over all epochs and the warm-up replaces its "
        "beginning; before: the warm-up comes on top of `schedule.epochs`",
        choices=("inside", "overlap", "before"),
    )
    update: str = key("step", "how often the learning rate is updated", choices=("step", "epoch"))
    label_smoothing: float = key(0.0, "weight of the uniform distribution in the targets", limits=BELOW_ONE)
    mixup: float = key(0.0, "alpha of mixup's Beta distribution; 0 is off", limits=NOT_NEGATIVE, at_most=100)
    cutmix: float = key(0.0, "alpha of cutmix's Beta distribution; 0 is off", limits=NOT_NEGATIVE, at_most=100)
    mix_prob: float = key(1.0, "probability that a batch is mixed at all", limits=PROBABILITY)
    mix_switch_prob: float = key(0.5, "probability of cutmix when both are on", limits=PROBABILITY)
    clip_grad: float | None = key(None, "clip the gradient to this norm; null is off", limits=POSITIVE)
    ema_decay: float | None = key(None, "decay of the averaged weights; null is off", limits=BELOW_ONE)
    amp: str | None = key(None, "precision of autocast; null: float32", choices=("bf16", "fp16"))
    sync_bn: bool = key(False, "batch statistics over all ranks")
    zero_init_last: bool | None = key(
        None, "overrides timm's zero initialisation of the last norm of a residual branch; null leaves it"
    )


@dataclass
class Logger:
    """Views of `metrics.jsonl` (group `logger`)."""

    csv: bool = key(False, "also write metrics.csv")
    plot: bool = key(False, "also write curves.png")
    tensorboard: bool = key(
        False, "mirror epochs and every `log_every`-th step to event files in the run's folder tensorboard"
    )
    wandb: bool = key(False, "mirror to Weights & Biases; offline unless `wandb_mode` or a key says otherwise")
    wandb_project: str = key("attn", "passed to `wandb.init`")
    wandb_mode: str | None = key(
        None,
        "passed to `wandb.init`; null: WANDB_MODE, else online where there is a key",
        choices=("online", "offline", "disabled"),
    )


@dataclass
class Config:
    """A whole run."""

    backbone: dict[str, Any] = key(REQUIRED, "timm's name and keyword arguments (group `backbone`)")
    attention: dict[str, Any] = key(REQUIRED, "mapping of slots (group `attention`)")
    data: Data = field(default_factory=Data)
    schedule: Schedule = field(default_factory=Schedule)
    logger: Logger = field(default_factory=Logger)
    attention_name: str = key("none", "the chosen name, for the record", plain=True)
    seed: int = key(0, "seed of every random choice", limits=NOT_NEGATIVE, at_most=2**63 - 1)
    run_dir: str = key("runs/default", "directory of the checkpoints and metrics; the same command continues the run there")
    resume: str = key(
        "auto", "auto (continue what is in run_dir), never (refuse if there is something), or the path of a checkpoint"
    )
    force: bool = key(False, "continue although the config differs from the checkpoint's")
    pretrained: bool = key(False, "start from timm's weights of the backbone")
    init: str | None = key(
        None,
        "start from the weights of this checkpoint (a file, a folder of attn.save_pretrained, or hf-hub:organisation/name), which "
        "must be those of the model; scripts/convert.py makes them",
    )
    device: str = key("auto", "where to compute; auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    channels_last: bool = key(False, "memory layout NHWC: usually faster")
    compile: bool = key(False, "compile the model by `torch.compile`")
    kernels: str = key(
        "reference",
        "how a block's channel gate is computed with the norm and activation next to it (ResNet, RegNet, MobileNet, "
        "EfficientNet), and AW's convolution. reference: module by module; fused: as one operator, on the CPU in C++, which "
        "`python -m attn.build` builds, on a GPU in Triton; auto: fused if the device has it here, else reference",
        choices=("reference", "auto", "fused"),
    )
    grad_checkpointing: bool = key(False, "recompute activations in the backward pass: less memory, more time")
    deterministic: bool = key(False, "replace or refuse operations that differ from run to run")
    save_every_steps: int | None = key(
        None, "also save a checkpoint every this many steps within an epoch; null is off", limits=POSITIVE
    )
    save_every_minutes: float | None = key(
        None, "also save a checkpoint every this many minutes within an epoch; null is off", limits=POSITIVE
    )
    save_error: str = key("stop", "what to do when a checkpoint cannot be written (disk full)", choices=("stop", "continue"))
    nonfinite: str = key("stop", "what to do at a non-finite loss or gradient", choices=("stop", "skip"))
    monitor: str = key(
        "top1",
        "the validation score that decides which epoch is the best; loss is in nats",
        choices=("top1", "top5", "loss", *METRICS),
    )
    metrics: list[str] = key(
        [], "additional validation scores: balanced_accuracy and macro_f1 in percent, mcc from -1 to 1", choices=METRICS
    )
    early_stop: int | None = key(
        None, "finish the run after this many epochs in a row without a better `monitor`; null is off", limits=POSITIVE
    )
    max_skipped: int = key(10, "steps that may be skipped in a row before the run stops", limits=POSITIVE)
    dist_timeout: float = key(600.0, "seconds to wait for a rank that does not answer", limits=POSITIVE, at_most=10_000_000)
    log_every: int = key(
        50,
        "steps between progress lines when there is no terminal, and between two measurements of the speed in steps.jsonl",
        limits=POSITIVE,
    )


SECTIONS: dict[str, type] = {"Data": Data, "Schedule": Schedule, "Logger": Logger}
