"""A network's mapping without default values: a config written before an option existed means its default."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from attn.attention import Attention
from attn.models.create import create_model
from attn.models.options import defaults_of
from attn.models.spec import SETTINGS, SLOTS, locate


def without_defaults(backbone: Mapping[str, Any], attention: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping that defines a network, without keys whose value is the default of their class.

    Two networks are the same if their results are equal, even if different versions of a class wrote them: a key that one of
    them lacks has its default. Only this package is imported. Keys with unknown defaults stay: those of other classes that
    are not imported yet, and those of a backbone except its rates and `in_chans`, the only ones for which timm's entry
    points use the default of the network's class.

    Args:
        backbone: `name` and options, as in `configs/backbone/*.yaml`.
        attention: slots and settings, as in `configs/attention/*.yaml`.

    Returns:
        `{"backbone": ..., "attention": ...}` in plain containers.
    """
    filled = {key: _stripped(value) for key, value in attention.items()}
    return {
        "backbone": _differing(dict(backbone), _backbone_defaults(backbone["name"]) if len(backbone) > 1 else {}),
        "attention": _differing(filled, {**dict.fromkeys(SLOTS), **SETTINGS}),
    }


def _stripped(node: Any) -> Any:
    if isinstance(node, (list, tuple)):
        return [_stripped(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    content = {key: _stripped(value) for key, value in node.items()}
    target = content.get("_target_")
    return _differing(content, _target_defaults(target)) if isinstance(target, str) else content


def _differing(content: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are not the defaults; true is not 1."""
    return {
        key: value
        for key, value in content.items()
        if key not in defaults or value != defaults[key] or isinstance(value, bool) != isinstance(defaults[key], bool)
    }


def _target_defaults(target: str) -> dict[str, Any]:
    module = target.rpartition(".")[0]
    if not module.startswith("attn.modules.") and module not in sys.modules:
        return {}  # the mapping may come from an untrusted source, and importing a module executes it
    try:
        cls = locate(target, "attention")
    except Exception:  # a user's module, which may be missing or raise any error
        return {}
    if not (isinstance(cls, type) and issubclass(cls, Attention)):
        return {}
    return {name: _stripped(_plain(value)) for name, value in defaults_of(cls).items()}


def _plain(default: Any) -> Any:
    """A default as it would be written in a config."""
    if isinstance(default, type) and issubclass(default, Attention):
        return {"_target_": f"{default.__module__}.{default.__qualname__}"}
    return list(default) if isinstance(default, tuple) else default


@cache
def _backbone_defaults(name: str) -> dict[str, Any]:
    try:
        with torch.device("meta"):
            network = type(create_model(name))
    except ValueError:
        return {}
    return {key: value for key, value in defaults_of(network).items() if key.endswith("_rate") or key == "in_chans"}
