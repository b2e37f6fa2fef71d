"""From a composed config to dataclasses: types, ranges and combinations are checked here."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from attn.config import schema
from attn.config.groups import unknown
from attn.config.schema import METRICS, Config, Data, Logger, Schedule
from attn.errors import UserError

_EXPECTED = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "list[float]": "a list of numbers, as in [0.5,0.9]",
    "list[int]": "a list of integers, as in [30,60]",
    "list[str]": "a list of names, as in [norm,bias]",
    "dict[str, Any]": "a mapping",
}


def parse(composed: DictConfig, used: bool = False) -> Config:
    """Checks a composed config against the schema and returns it as dataclasses.

    Args:
        composed: the config.
        used: it is of a network that is there, so that only what describes the network has to be in range: an older version
            may have trained it with values that this one refuses.

    Raises:
        UserError: a key is unknown, a value has the wrong type or is out of range.
    """
    composed = composed.copy()
    OmegaConf.set_struct(composed, False)
    raw = resolved(composed)
    free: dict[str, Any] = {key: raw.pop(key, None) or {} for key in ("backbone", "attention")}
    for key, value in free.items():
        if not isinstance(value, dict):
            raise UserError(f"{key}={value}: must be a mapping; name one, as in {key}=NAME")
    free["attention"] = without_partial(free["attention"])
    config = to_dataclass(
        Config(**free, data=Data(), schedule=Schedule(), logger=Logger()), {str(key): value for key, value in raw.items()}
    )
    if used:
        _check_network(config)
        check_choices(config)
        return config
    for key in ("run_dir", "resume", "init"):
        if getattr(config, key) is not None:
            setattr(config, key, expanded(key, getattr(config, key)))
    if config.data.root is not None:
        expanded("data.root", config.data.root)  # kept as it is written: another user's checkpoint means that user's home
    validate(config)
    return config


def expanded(key: str, path: str) -> str:
    """A path with `~` as the home that it means.

    Raises:
        UserError: there is no such user; a folder of that name would be made.
    """
    full = os.path.expanduser(path)
    if full.startswith("~"):
        raise UserError(
            f"{key}={path}: there is no user {full.partition('/')[0][1:]!r} here; write the whole path, or ./{path}"
        )
    return full


def resolved(composed: DictConfig) -> dict[Any, Any]:
    """A composed config as plain containers, with its interpolations resolved.

    Raises:
        UserError: one of them leads nowhere; names the key.
    """
    try:
        raw = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        key = error.full_key or "the config"
        raise UserError(f"{key}: cannot be resolved: {str(error).splitlines()[0]}; set it to a plain value") from None
    assert isinstance(raw, dict)
    return raw


def without_partial(node: Any) -> Any:
    """A mapping without the keys `_partial_: true`, which configs of version 0.1 hold beside each `_target_`."""
    if isinstance(node, dict):
        return {key: without_partial(value) for key, value in node.items() if key != "_partial_"}
    return [without_partial(item) for item in node] if isinstance(node, list) else node


def to_dataclass(defaults: Any, raw: dict[str, Any]) -> Any:
    """A mapping as a dataclass, with every value converted to the type that its field has.

    Args:
        defaults: an instance of the dataclass.
        raw: plain containers; keys that are absent keep their defaults.

    Raises:
        UserError: a key is unknown, or a value has the wrong type.
    """
    for entry in fields(defaults):
        if str(entry.type) in schema.SECTIONS and not isinstance(raw.get(entry.name, {}), dict):
            raise UserError(f"{entry.name}={raw[entry.name]}: must be a mapping; name one, as in {entry.name}=NAME")
    for key, value in flatten(raw).items():  # OmegaConf takes any number for true
        if (
            isinstance(value, (int, float))
            and value not in (0, 1)
            and _has(defaults, key)
            and _kind(defaults, key) == "bool"
        ):
            raise UserError(f"{key}={value}: must be true or false")
    structure = OmegaConf.structured(defaults)
    OmegaConf.set_readonly(structure, False)  # a frozen dataclass
    try:
        return OmegaConf.to_object(OmegaConf.merge(structure, raw))
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


def _has(defaults: Any, key: str) -> bool:
    """Whether a dotted key is a field of the dataclass or of those in it."""
    section, _, name = key.rpartition(".")
    try:
        node = defaults if not section else lookup(defaults, section)
    except AttributeError:
        return False
    return is_dataclass(node) and any(entry.name == name for entry in fields(node))


def _given(raw: Any, key: str) -> Any:
    for part in re.findall(r"[^.\[\]]+", key):
        raw = raw[int(part)] if isinstance(raw, list) else raw[part]
    return raw


def from_dict(mapping: dict[str, Any]) -> Config:
    """The config that a file of a run holds: plain values, of which none is an interpolation.

    Values that only training reads may be out of range, because an older version may have written the file; see `parse` for
    what it raises.
    """
    for key, value in _strings(mapping):
        if "${" in value:
            raise UserError(f"{key}={value}: is an interpolation, which is not resolved in a file: it may only hold values")
    return parse(OmegaConf.create(mapping), used=True)


def _strings(node: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every string in nested containers, keys included, with its place."""
    if isinstance(node, str):
        yield where, node
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from _strings(key, where)
            yield from _strings(child, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from _strings(child, f"{where}[{index}]")


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
    check_values(config)
    schedule, data = config.schedule, config.data
    _check_network(config)
    check_data(data)
    if not config.run_dir:
        raise UserError("run_dir= is empty; name one, or leave the key out")
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
    if schedule.optimizer not in schema.OWN_OPTIMIZERS:
        for owner, names in schema.OWN_OPTIMIZERS.items():
            for name in names:
                value, default = getattr(schedule, name), getattr(Schedule(), name)
                if value != default:
                    raise UserError(
                        f"schedule.{name}={_shown(value)} is of {owner}, and schedule.optimizer={schedule.optimizer} does "
                        f"not read it: leave it at {_shown(default)}; the optimizer's own options are "
                        "schedule.optimizer_options"
                    )
    if any(milestone < 1 for milestone in schedule.milestones):
        raise UserError(f"schedule.milestones={list(schedule.milestones)}: must be epochs, 1 or more")
    if list(schedule.milestones) != sorted(set(schedule.milestones)):
        raise UserError(f"schedule.milestones={list(schedule.milestones)}: must be increasing, each epoch once")
    if schedule.curve == "step" and not schedule.milestones:
        raise UserError(
            "schedule.milestones=[]: schedule.curve=step needs an epoch or more; schedule.curve=constant has none"
        )
    if len(schedule.betas) != 2 or not all(0 <= b < 1 for b in schedule.betas):
        raise UserError(f"schedule.betas={list(schedule.betas)}: must be two numbers, 0 or more and below 1")
    if config.data.sample_weight is not None and (schedule.mixup or schedule.cutmix):
        raise UserError(
            f"data.sample_weight={config.data.sample_weight}: a mixed image has the labels of two images, but no weight of its own: "
            "set schedule.mixup=0 and schedule.cutmix=0, or data.sample_weight=null"
        )
    if not re.fullmatch(schema.WANDB_PROJECT, config.logger.wandb_project):
        raise UserError(
            f"logger.wandb_project={config.logger.wandb_project}: must be a name of 1 to 128 characters without / \\ # ? % :"
        )
    if config.init is not None and config.pretrained:
        raise UserError(
            f"init={config.init}: the weights cannot come from there and from timm too; leave out pretrained=true"
        )
    if config.resume not in ("auto", "never") and not os.path.isfile(config.resume):
        raise UserError(
            f"resume={config.resume}: must be auto, never or the path of a checkpoint, and there is no such file"
        )


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def _check_network(config: Config) -> None:
    data, name = config.data, config.backbone.get("name")
    if data.num_classes < 2:
        raise UserError(f"data.num_classes={data.num_classes}: must be 2 or more, because one class leaves nothing to learn")
    if not isinstance(name, str):
        raise UserError(f"backbone.name={name}: must be the name of a backbone, as in backbone=resnet50")
    if not re.fullmatch(schema.PLAIN_NAME, name):
        raise UserError(f"backbone.name={name}: must be {schema.A_PLAIN_NAME}")
    for key in schema.keys(Config):
        if key.name in ("data.num_classes", "data.image_size"):
            _check_range(key, lookup(config, key.name))


def check_data(data: Data) -> None:
    """Checks ranges and combinations in a data set's section.

    Raises:
        UserError: names the key, its value and what was expected.
    """
    for entry in schema.keys(Data, "data."):
        value = getattr(data, entry.name.partition(".")[2])
        _check_range(entry, value)
        if entry.read_by and value != entry.default and data.source not in entry.read_by:
            readers = " and ".join(entry.read_by)
            raise UserError(
                f"{entry.name}={value}: data.source={data.source} takes none, only {readers} "
                f"{'do' if ' ' in readers else 'does'}; leave the key out"
            )
    for split in ("train_split", "val_split"):
        if not getattr(data, split):
            raise UserError(f"data.{split}= is empty; name one, or leave the key out")
    for key, pair in (("data.crop_scale", data.crop_scale), ("data.crop_ratio", data.crop_ratio)):
        if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
            raise UserError(f"{key}={list(pair)}: must be two numbers, 0 < low <= high")
    if not 0.01 <= data.crop_ratio[0] <= data.crop_ratio[1] <= 100:
        raise UserError(f"data.crop_ratio={list(data.crop_ratio)}: must be between 0.01 and 100")
    if data.crop == "pad" and data.pad > data.image_size:
        raise UserError(
            f"data.pad={data.pad}: must be at most data.image_size={data.image_size}; more would crop black squares"
        )
    if data.auto_augment is not None and not re.fullmatch(schema.POLICY, data.auto_augment):
        raise UserError(
            f"data.auto_augment={data.auto_augment}: must be a policy of timm, as in rand-m9-mstd0.5-inc1 (m to 30, n to "
            "16), original, originalr, v0, v0r or 3a"
        )
    if data.crop_scale[1] > 1:
        raise UserError(f"data.crop_scale={list(data.crop_scale)}: must be shares of the image's area, at most 1")
    for key, triple in (("data.mean", data.mean), ("data.std", data.std)):
        if len(triple) != 3:
            raise UserError(f"{key}={list(triple)}: must be three numbers, one per channel")
    if not all(1e-4 <= value < math.inf for value in data.std):
        raise UserError(f"data.std={list(data.std)}: must be greater than 0, and at least 0.0001: images are divided by it")
    if not all(0 <= value <= 1 for value in data.mean):
        raise UserError(f"data.mean={list(data.mean)}: must be on the scale 0 to 1, as in [0.485,0.456,0.406]")
    if not all(value <= 1 for value in data.std):
        raise UserError(f"data.std={list(data.std)}: must be on the scale 0 to 1, as in [0.229,0.224,0.225]")
    if data.test_resize < data.image_size:
        raise UserError(
            f"data.test_resize={data.test_resize} is below data.image_size={data.image_size}: test images would be padded "
            f"with black; set data.test_resize={data.image_size} or more"
        )


def check_values(config: Any) -> None:
    """Checks each value of a dataclass against the choices and limits of its key.

    Raises:
        UserError: names the key, its value and what was expected.
    """
    check_choices(config)
    for key in schema.keys(type(config)):
        _check_range(key, lookup(config, key.name))


def check_choices(config: Any) -> None:
    """Checks that the strings of a dataclass are among the choices of their keys.

    Raises:
        UserError: names the key, its value and the choices.
    """
    for key in schema.keys(type(config)):
        value = lookup(config, key.name)
        for item in value if isinstance(value, list) else [value]:
            if item is not None and key.choices and item not in key.choices:
                raise UserError(f"{key.name}={value}: {unknown('value', str(item), key.choices)}")


def _check_range(key: schema.Key, value: Any) -> None:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"{key.name}={value}: must be finite")
    if value is not None and key.limits is not None and not schema.LIMITS[key.limits](value):
        raise UserError(f"{key.name}={value}: must be {key.limits}")
    if value is not None and key.at_most is not None and value > key.at_most:
        raise UserError(f"{key.name}={value}: must be at most {key.at_most}")
    if key.plain and not re.fullmatch(schema.PLAIN_NAME, value):
        raise UserError(f"{key.name}={value}: must be {schema.A_PLAIN_NAME}")


def all_metrics(config: Config) -> list[str]:
    """The further scores that an evaluation computes: those of `metrics`, and of `monitor`."""
    return [name for name in METRICS if name in (*config.metrics, config.monitor)]


def lookup(config: Any, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        k: v for key, child in node.items() for k, v in flatten(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }
