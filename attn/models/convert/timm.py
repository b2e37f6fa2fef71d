"""The weights of timm and of torchvision."""

from __future__ import annotations

from functools import partial

import timm

from attn.backbones import families
from attn.models.convert import dcanet
from attn.models.convert.protocol import Architecture, same

# torchvision's, by its names; where timm ships a network of the same layers.
TORCHVISION: dict[str, Architecture] = {
    **{name: Architecture(name, "none", same) for name in (f"resnet{n}" for n in (18, 34, 50, 101, 152))},
    **{name: Architecture(name, "none", same) for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")},
    **{name: Architecture(name, "none", same) for name in ("wide_resnet50_2", "wide_resnet101_2")},
    **{name: Architecture(name, "none", same) for name in (f"densenet{n}" for n in (121, 161, 169, 201))},
    "mobilenet_v2": Architecture("mobilenetv2_100", "none", partial(dcanet.mobile, layout=dcanet.FEATURES)),
    "mnasnet1_0": Architecture("mnasnet_100", "none", partial(dcanet.mobile, layout=dcanet.STACKS)),
}


def architecture(name: str) -> Architecture | None:
    """timm's network of a name, its own attention (SE, ECA ...) included; None if it has none."""
    families()  # registers the networks that timm lacks
    return Architecture(name, "none", same) if timm.is_model(name) else None
