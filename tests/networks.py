"""Small networks, and which attentions fit them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

import attn

SMALL: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": [16, 32, 48, 64], "stem_width": 16}
SIZES = {"resnet18": SMALL, "resnet50": SMALL}
# One of every norm kind: BatchNorm after basic blocks and bottlenecks, BatchNorm with a fused activation.
NETWORKS = ["resnet18", "resnet50", "mobilenetv3_small_050"]
# Their groups and reductions need more channels than these networks have, or a dense convolution.
UNFIT = {"resnet18": {"dia", "sge"}, "mobilenetv3_small_050": {"aa", "bam", "bam_ba2m", "dia", "ea", "sasa", "sge"}}
PAIRS = [(net, name) for net in NETWORKS for name in attn.list_attentions() if name not in UNFIT.get(net, ())]


def fitting(attention: str) -> str:
    """The first of the networks that an attention fits."""
    return next(net for net in NETWORKS if (net, attention) in PAIRS)


def build(backbone: str, attention: Any) -> nn.Module:
    """A small network whose running statistics are no longer those of a fresh one."""
    torch.manual_seed(0)
    model = attn.create_model(backbone, attention, 8, **SIZES.get(backbone, {}))
    for module in model.modules():
        if isinstance(module, BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model
