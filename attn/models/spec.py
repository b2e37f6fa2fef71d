"""Turns the name or mapping of an attention into the content of each slot."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from attn.attention import Attention
from attn.config.groups import load, unknown

SLOTS = ("block", "conv", "stage")
SETTINGS: dict[str, Any] = {"sites": "all", "position": None, "convs": None}  # other allowed keys, with defaults


@dataclass(frozen=True)
class AttentionSpec:
    """The content of each slot, and where it is placed.

    Attributes:
        block, conv, stage: an `Attention` class with its options, or None for an empty slot.
        sites: all, or native for only those block sites where the backbone has its own attention.
        position: where in a block the slot is, if the family offers a choice; None for its default.
        convs: which convolutions the conv slot covers, if the family offers a choice; None for its default.
    """

    block: partial[Attention] | None = None
    conv: partial[Attention] | None = None
    stage: partial[Attention] | None = None
    sites: str = "all"
    position: str | None = None
    convs: str | None = None

    @property
    def filled(self) -> dict[str, partial[Attention]]:
        """The slots that are not empty."""
        slots = {"block": self.block, "conv": self.conv, "stage": self.stage}
        return {slot: attention for slot, attention in slots.items() if attention is not None}


def resolve_attention(attention: str | Mapping[str, Any] | None) -> AttentionSpec:
    """The spec of a name, of a mapping as in `configs/attention/*.yaml`, or of None.

    Only subclasses of `Attention` are ever imported as a `_target_`: a mapping may come from a checkpoint.

    Raises:
        ValueError: unknown name, key or target.
    """
    if not (attention is None or isinstance(attention, (str, Mapping))):
        raise ValueError(f"attention={attention!r} must be a name, a mapping of slots or None")
    mapping = load("attention", attention) if isinstance(attention, str) else dict(attention or {})
    for key in mapping:
        if key not in SLOTS and key not in SETTINGS:
            raise ValueError(unknown("attention key", key, [*SLOTS, *SETTINGS]))
    slots = {slot: _build(mapping[slot], f"attention.{slot}") for slot in SLOTS if mapping.get(slot) is not None}
    return AttentionSpec(**slots, **{key: mapping[key] for key in SETTINGS if key in mapping})


def targets(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every `_target_` in a mapping of slots, at any depth, with its path; nothing is imported."""
    prefix = f"{where}." if where else ""
    if isinstance(node, Mapping):
        for key, child in node.items():
            if key == "_target_":
                yield f"{prefix}_target_", child
            else:
                yield from targets(child, f"{prefix}{key}")
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from targets(child, f"{prefix}{index}")


def _build(node: Any, where: str) -> Any:
    """Turns mappings with `_target_` into partials, also in options and in lists of them; other values are not changed."""
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
        named = node["_target_"] if isinstance(node, Mapping) else f"{target!r:.60}"
        raise ValueError(f"{where}: {named} is not a subclass of attn.attention.Attention")
    return partial(target, **options)


def locate(path: Any, where: str) -> Any:
    """The class that a `_target_` names.

    Raises:
        ValueError: it cannot be imported; the message uses `where` to name the setting.
    """
    if not isinstance(path, str) or "." not in path:
        raise ValueError(f"{where}._target_={path!r} must be a module and a class, as in attn.modules.se.SE")
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}._target_={path!r} cannot be imported: {error}") from None
