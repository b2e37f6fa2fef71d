"""Checks a backbone's options before timm sees them: timm checks few of them, and takes many a wrong value without a word."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from numbers import Real
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import ResNet
from torch import nn

from attn.config.groups import unknown
from attn.models.options import NAMES, choices_of, describe, fits

# Options of timm's builder and of entry points, which no constructor lists.
OTHERS: dict[str, Any] = {
    **dict.fromkeys(("scriptable", "exportable", "no_jit", "pretrained", "pretrained_strict", "bn_tf", "conv_bias"), bool),
    **dict.fromkeys(("bn_eps", "bn_momentum"), float),
    "cache_dir": str | Path,
}
STEMS, PADDINGS = ("", "deep", "deep_tiered"), ("", "same", "valid", "symmetric")
# Strings that timm compares with a few names, and takes any other for one of them.
NAMED: dict[tuple[type[nn.Module], str], tuple[str, ...]] = {
    (ResNet, "stem_type"): STEMS,
    (DenseNet, "stem_type"): STEMS,
    (EfficientNet, "pad_type"): PADDINGS,
    (MobileNetV3, "pad_type"): PADDINGS,
}
# Lists of which timm ignores what is beyond four stages.
STAGES: dict[type[nn.Module], tuple[str, ...]] = {
    ResNet: ("layers", "channels"),
    ConvNeXt: ("depths", "dims", "kernel_sizes"),
}
MAY_BE_ZERO = ("ls_init_value", "init_values")  # numbers whose default is not 0
DEPTHS = ("layers", "depths", "depth", "block_config", "num_layers", "stage_repeats", "repeats")
MOST_LAYERS = 2000  # beyond, building takes minutes and all of the memory


def check_backbone_options(name: str, options: Mapping[str, Any]) -> None:
    """Checks options against the annotations and defaults of timm's network class; timm checks everything else.

    Args:
        name: a backbone that timm knows.
        options: what `timm.create_model` will get; None means the default, as in timm.

    Raises:
        ValueError: an option has the wrong type, is no name that timm's code has, or is a number that makes no network.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if set(given) <= {"pretrained"} and all(isinstance(value, bool) for value in given.values()):
        return
    network = network_class(name)
    kinds, defaults = _signature(network)
    for key, value in given.items():
        line = f"{key}={value!r} must be"
        kind = kinds.get(
            key, OTHERS.get(key, type(defaults[key]) if isinstance(defaults.get(key), (bool, int, str)) else Any)
        )
        if not _fits(value, kind):
            raise ValueError(f"{line} {_described(kind)}")
        named = next((names for (cls, option), names in NAMED.items() if option == key and issubclass(network, cls)), None)
        if named is not None and value not in named:
            raise ValueError(f"{line} one of {', '.join(map(repr, named))}")
        numbers = [v for v in (value if isinstance(value, (list, tuple)) else [value]) if _is_number(v)]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{line} finite")
        if key.endswith("_rate") and kind is float and not 0 <= value < 1:
            raise ValueError(f"{line} a number, 0 or more and below 1")
        if key == "bn_momentum" and not 0 < value <= 1:
            raise ValueError(f"{line} greater than 0, and at most 1")
        least = defaults.get(key, 1)
        if isinstance(least, (list, tuple)):
            least = min((v for v in least if _is_number(v)), default=1)
        positive = least is None or (_is_number(least) and least > 0)
        if key in kinds | OTHERS and any(n < 0 or (n == 0 and positive and key not in MAY_BE_ZERO) for n in numbers):
            raise ValueError(f"{line} {'greater than 0' if positive and key not in MAY_BE_ZERO else '0 or more'}")
        if key in DEPTHS and any(number > MOST_LAYERS for number in numbers):
            raise ValueError(f"{line} at most {MOST_LAYERS} each")
        for cls, lists in STAGES.items():
            if key in lists and issubclass(network, cls) and isinstance(value, (list, tuple)) and len(value) > 4:
                raise ValueError(f"{line} a list for at most 4 stages")


def options_of_backbone(name: str) -> list[str]:
    """Names of the options of a backbone's network class."""
    return [key for key in _signature(network_class(name))[0] if key != "num_classes"]


def no_such_option(name: str, key: str) -> str:
    """The line for an option that the backbone does not have."""
    return unknown("option", key, options_of_backbone(name))


@cache
def network_class(name: str) -> type[nn.Module]:
    """timm's class of a backbone; `nn.Module` where it cannot be built without options."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return type(timm.create_model(name))
    except Exception:  # building it for use says why
        return nn.Module


def _signature(network: type[nn.Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Annotations and defaults of a network's options, of the fields of its config too where it takes them one by one."""
    kinds, defaults = _annotated(network.__init__)
    for kind in list(kinds.values()):
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):  # RegNet
            more = _annotated(kind.__init__)
            kinds, defaults = {**more[0], **kinds}, {**more[1], **defaults}
    return kinds, defaults


def _annotated(function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        hints = get_type_hints(function)
    except Exception:  # a name that is imported only for the type checker
        hints = {}
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ][1:]
    kinds = {p.name: hints.get(p.name, Any) for p in parameters}
    return kinds, {p.name: p.default for p in parameters if p.default is not p.empty}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _parts(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_class(kind: Any) -> bool:
    """Whether an annotation is of a layer or its class; timm takes the name of a layer too."""
    origin = get_origin(kind)
    return origin in (type, Callable) or (isinstance(kind, type) and origin is None and kind not in (*NAMES, Any, Path))


def _fits(value: Any, kind: Any) -> bool:
    for part in _parts(kind):
        if part is Path:
            fitting = isinstance(value, Path)
        elif get_origin(part) is dict:
            fitting = isinstance(value, Mapping)
        elif _is_class(part):
            fitting = isinstance(value, str) or callable(value) or dataclasses.is_dataclass(part)
        else:
            fitting = fits(value, part)
        if fitting:
            return True
    return False


def _described(kind: Any) -> str:
    choices = choices_of(kind)
    if choices:
        return f"one of {', '.join(map(repr, choices))}"
    names = [
        "a path"
        if part is Path
        else "a mapping"
        if get_origin(part) is dict
        else "a class"
        if _is_class(part)
        else describe(part)
        for part in _parts(kind)
        if part is not type(None)
    ]
    return " or ".join(dict.fromkeys(names))
