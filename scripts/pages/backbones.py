"""The page of the backbones: which slots each offers, and its size."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from attn.backbones import families
from attn.backbones.family import Family, Slot
from attn.config import groups
from attn.models import flops
from attn.models.create import create_model, list_backbones
from attn.tabulate import markdown_lines


def table() -> str:
    """A row per backbone of `configs/backbone`, counted on the meta device without an attention of its own."""
    lines = [("backbone", "params, M", "GFLOPs (ptflops)", "block sites", "position", "conv sites", "convs", "stages")]
    for name in list_backbones():
        options = groups.load("backbone", name)
        with torch.device("meta"):
            model = create_model(options.pop("name"), None, **options)
        family = next(family for family in families() if isinstance(model, family.network))
        sites = {slot: list(family.sockets(model, slot, where)) for slot, where in _wheres(family)}
        size = flops.count(model, model.pretrained_cfg["input_size"])
        lines.append(
            (
                f"`{name}`",
                f"{size.params / 1e6:.2f}",
                f"{size.ptflops / 1e9:.2f}",
                str(len(sites["block"])),
                ", ".join(family.block_positions),
                str(len(sites.get("conv", ()))),
                ", ".join(family.conv_kinds),
                str(len(sites["stage"])),
            )
        )
    return "\n".join(markdown_lines(lines, right=(1, 2, 3, 5, 7)))


def _wheres(family: Family) -> Iterator[tuple[Slot, str]]:
    """The slots that a family has, each with its default place."""
    yield "block", family.block_positions[0]
    if family.conv_kinds:
        yield "conv", family.conv_kinds[0]
    yield "stage", ""
