"""Stochastic depth in training: with the same seed the same branches are dropped as in timm's networks."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import attn
from attn.backbones import families

SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)}
SMALL = {"layers": (1, 2, 1, 1), "channels": (16, 24, 32, 64)}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": SMALL,
    "resnet50": SMALL,
    "seresnet50": SMALL,
    "regnety_002": {},
    "regnetv_040": {"w0": 24, "wa": 36.44, "wm": 2.49, "depth": 13, "group_size": 8},
    "convnext_atto": {"depths": (1, 2, 1, 1), "dims": (16, 24, 32, 48)},
    "swin_tiny_patch4_window7_224": SWIN,
    "efficientnet_b0": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_hybrid_medium": {},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 3},
    "pvt_v2_b0": {},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_branches_are_dropped(name: str) -> None:
    options = {"drop_path_rate": 0.6, **NETWORKS[name]}
    theirs, ours = timm.create_model(name, num_classes=10, **options), attn.create_model(name, None, 10, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        if parameter.ndim <= 1:  # layer scales and last norms start near 0, which would hide the branch
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 64, 64, generator=generator)
    found = []
    for model, seed in ((theirs, 1), (ours, 1), (theirs, 2)):
        torch.manual_seed(seed)
        found.append(model.train()(x))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_every_family_of_timms_that_drops_branches_is_compared() -> None:
    with torch.device("meta"):
        compared = {type(timm.create_model(name, **options)) for name, options in NETWORKS.items()}
    timms = {family.network for family in families() if family.network.__module__.startswith("timm.")}
    assert timms - compared == {timm.models.DenseNet}  # refuses drop_path_rate
    with pytest.raises(ValueError, match="drop_path_rate"):
        attn.create_model("densenet121", None, 10, drop_path_rate=0.1)


# The last block whose shortcut is its input.
PLAIN = {"cifar_preresnet110": -1, "cifar_preresnet110_bottleneck": -1, "cifar_wrn28_8": -1, "cifar_efficientnet_b0": -2}


@pytest.mark.parametrize("name", PLAIN)
def test_a_dropped_branch_leaves_the_shortcut(name: str) -> None:
    model: Any = attn.create_model(name, None, 10, drop_path_rate=0.5)
    blocks = [module for module in model.modules() if getattr(getattr(module, "drop_path", None), "drop_prob", 0.0) > 0]
    rates = [block.drop_path.drop_prob for block in blocks]
    assert rates == sorted(rates)
    block = blocks[PLAIN[name]]
    block.drop_path.drop_prob = 1 - 1e-12
    x = torch.randn(3, next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d)), 8, 8)
    with torch.no_grad():
        dropped, _ = block.train()((x.clone(), (None, None)))
        assert torch.equal(dropped, x)
        kept, _ = block.eval()((x.clone(), (None, None)))
        assert not torch.allclose(kept, x)
