"""Checkpoints from elsewhere: which networks there are, by source, and what their tensors are called here."""

from __future__ import annotations

from collections.abc import Mapping

from attn.config import groups
from attn.models.convert import ba_v2, bridge_attention, dcanet, timm, torchvision
from attn.models.convert.protocol import Architecture

AUTHORS: dict[str, Mapping[str, Architecture]] = {
    "bridge-attention": bridge_attention.ARCHITECTURES,
    "ba-v2": ba_v2.ARCHITECTURES,
    "dcanet": dcanet.ARCHITECTURES,
}
SOURCES: dict[str, Mapping[str, Architecture]] = {**AUTHORS, "torchvision": torchvision.ARCHITECTURES}
CHOICES = (*SOURCES, "timm")
ENDINGS = ("_bav2repo", "_banet", "_dcanet", "_ksize3557", "_inferred")  # which a name may do without


def find(source: str, name: str) -> Architecture:
    """The network of a source.

    Raises:
        ValueError: there is none of this name; the message names the nearest, or the source that has it.
    """
    if source not in CHOICES:
        raise ValueError(groups.unknown("source", source, CHOICES))
    if source == "timm":
        found = timm.architecture(name)
        if found is None:
            raise ValueError(f"unknown arch {name!r}: timm has no model of this name")
        return found
    known = names(source)
    if name in known:
        return known[name]
    others = [other for other in SOURCES if name in names(other)]
    hint = f"; --source {others[0]} has it" if others else ""
    raise ValueError(groups.unknown("arch", name, known) + hint)


def names(source: str) -> dict[str, Architecture]:
    """The networks of a source (not timm) under each name that they go by."""
    listed = SOURCES[source]
    found = dict(listed)
    for name, architecture in listed.items():
        for ending in ENDINGS:
            found.setdefault(name.removesuffix(ending), architecture)
    return found
