"""Names to configurations: `configs/attention/*.yaml` and `configs/backbone/*.yaml` are the registry."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

GROUPS = ("backbone", "attention", "data", "schedule", "logger")
SLOTS = ("block", "conv", "stage")
SETTINGS = {"sites": "all", "position": None, "convs": None}


def config_dir() -> Path:
    """The directory of the configs: in the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def names(group: str) -> list[str]:
    """Sorted names of the choices of a config group."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def load(group: str, name: str) -> dict[str, Any]:
    """The content of one choice.

    Raises:
        ValueError: there is no such name; the message proposes the nearest ones.
    """
    if name not in names(group):
        raise ValueError(unknown(group, name, names(group)))
    return yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text()) or {}


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """The line for a name that does not exist: what was meant, and what there is."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}: {hint}choose from {', '.join(choices)}"


def resolve_attention(attention: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """A name, a mapping of slots, or None, as {slot: partial of an `Attention` class} plus `sites`, `position`, `convs`.

    Only subclasses of `Attention` are ever imported as a `_target_`: a mapping may come from a checkpoint.

    Raises:
        ValueError: unknown name, key or target.
    """
    if not (attention is None or isinstance(attention, (str, Mapping))):
        raise ValueError(f"attention={attention!r} must be a name, a mapping of slots or None")
    mapping = load("attention", attention) if isinstance(attention, str) else dict(attention or {})
    resolved: dict[str, Any] = dict(SETTINGS)
    for key, value in mapping.items():
        if key in SLOTS:
            if value is not None:
                resolved[key] = _build(value, f"attention.{key}")
        elif key in SETTINGS:
            resolved[key] = value
        else:
            raise ValueError(unknown("attention key", key, [*SLOTS, *SETTINGS]))
    return resolved


def _build(node: Any, where: str) -> Any:
    """Turns mappings with `_target_` into partials, in options and in lists of them too; anything else is passed on."""
    from attn.attention import Attention

    if isinstance(node, partial):
        target, options = node.func, node.keywords
    elif isinstance(node, Mapping) and "_target_" in node:
        target = locate(node["_target_"], where)
        options = {k: _build(v, f"{where}.{k}") for k, v in node.items() if k not in ("_target_", "_partial_")}
    elif isinstance(node, type):
        target, options = node, {}
    elif "." not in where.removeprefix("attention."):
        raise ValueError(f"{where}={node!r} must be a mapping with a _target_, an Attention class or a partial of one")
    elif isinstance(node, (list, tuple)):
        return [_build(item, f"{where}.{i}") for i, item in enumerate(node)]
    else:
        return node
    if not (isinstance(target, type) and issubclass(target, Attention)):
        raise ValueError(f"{where}: {target!r} is no subclass of attn.attention.Attention")
    return partial(target, **options)


def locate(path: Any, where: str) -> Any:
    """The class that a `_target_` names.

    Raises:
        ValueError: it cannot be imported; `where` says which setting holds it.
    """
    if not isinstance(path, str) or "." not in path:
        raise ValueError(f"{where}._target_={path!r} must be a module and a class, as in attn.modules.se.SE")
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}._target_={path!r} cannot be imported: {error}") from None
