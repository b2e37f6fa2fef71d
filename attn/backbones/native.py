"""The channel weights of the squeeze-and-excitation that timm's own networks have (`attention=none` keeps it)."""

from __future__ import annotations

from timm.layers import SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from attn.attention import Reading


def native_reading(module: nn.Module, x: Tensor) -> Reading | None:
    """What timm's module computes for the map [N, C, H, W] that it gets; None for any other kind of module."""
    pooled = x.mean((2, 3), keepdim=True)
    if isinstance(module, SqueezeExcite):
        weights = module.gate(module.conv_expand(module.act1(module.conv_reduce(pooled))))
    elif isinstance(module, SEModule) and not module.add_maxpool:
        weights = module.gate(module.fc2(module.act(module.bn(module.fc1(pooled)))))
    else:
        return None
    return Reading({"channel": weights.flatten(1)}, (pooled.flatten(1),))
