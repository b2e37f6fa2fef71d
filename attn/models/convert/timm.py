"""The weights of timm."""

from __future__ import annotations

import timm

from attn.backbones import families
from attn.models.convert.protocol import Architecture, same


def architecture(name: str) -> Architecture | None:
    """timm's network of a name, its own attention (SE, ECA ...) included; None if it has none."""
    families()  # registers the networks that timm lacks
    return Architecture(name, "none", same) if timm.is_model(name) else None
