"""The checkpoints of BA-Net v2's authors, whose repository holds the first version too, under other names."""

from __future__ import annotations

from functools import partial

from attn.models.convert import bridge_attention
from attn.models.convert.protocol import Architecture

V1 = {"expand": "generation.1", **{f"bridges.{i}": f"fusions.{i}" for i in range(3)}}
V2 = {
    "select": "proj",
    "norm": "generation.0",
    "expand": "generation.2",
    **{f"bridges.{i}": f"fusions.{i}.0" for i in range(3)},
}

ARCHITECTURES: dict[str, Architecture] = {
    f"ba_resnet{n}_{version}_bav2repo": Architecture(
        f"resnet{n}", attention, partial(bridge_attention.tensors, holder="ba", names=names)
    )
    for version, attention, names in (("v1", "ba", V1), ("v2", "ba_v2", V2))
    for n in (18, 34, 50, 101)
}
