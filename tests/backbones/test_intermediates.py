"""`forward_intermediates` is timm's: the same features, the same last map, and the same steps are run."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import attn

SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": (16, 24, 32, 48)},
    "resnet14t": {"channels": (16, 24, 32, 48), "stem_width": 16, "output_stride": 8},
    "densenet121": {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
    "regnety_002": {},
    "regnetv_040": {"w0": 24, "wa": 36.44, "wm": 2.49, "depth": 13, "group_size": 8},
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48), "head_norm_first": True},
    "swin_tiny_patch4_window7_224": SWIN,
    "deit_small_patch16_224": {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "pvt_v2_b0": {"depths": (1, 1, 2, 1), "embed_dims": (16, 24, 32, 48), "num_heads": (1, 2, 2, 4)},
    "mobilenetv2_035": {},
    "test_efficientnet": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {},
}
MOBILE = ("mobilenetv2_035", "test_efficientnet", "mobilenetv3_small_050", "mobilenetv4_conv_small_035")


@cache
def pair(name: str) -> tuple[Any, Any]:
    """timm's network and ours, with the same weights."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10, **NETWORKS[name])
    ours = attn.create_model(name, None, 10, **NETWORKS[name])
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def outcome(model: Any, asked: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """All maps, the last one first if it is given, and the running statistics after them."""
    model = copy.deepcopy(model).train()
    side = 64 if isinstance(model, timm.models.SwinTransformer) else 32
    torch.manual_seed(1)
    with torch.no_grad():
        answer = model.forward_intermediates(torch.randn(2, 3, side, side), **asked)
    maps = answer if isinstance(answer, list) else [answer[0], *answer[1]]
    return maps, list(model.buffers())


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_intermediates_are_timms(name: str, data: st.DataObject) -> None:
    theirs, ours = pair(name)
    extra = name in MOBILE and data.draw(st.booleans(), label="extra_blocks")
    total = len(theirs.blocks) + 1 if extra else len(theirs.feature_info)
    indices = st.none() | st.integers(1, total) | st.lists(st.integers(-total, total - 1), min_size=1)
    asked = {
        "indices": data.draw(indices, label="indices"),
        "norm": data.draw(st.booleans(), label="norm"),
        "stop_early": data.draw(st.booleans(), label="stop_early"),
        "intermediates_only": data.draw(st.booleans(), label="intermediates_only"),
        "output_fmt": "NCHW",
        **({"extra_blocks": True} if extra else {}),
    }
    if asked["stop_early"] and isinstance(theirs, timm.models.MobileNetV3):
        asked["intermediates_only"] = True  # timm's own condition
    for one, other in zip(outcome(theirs, asked), outcome(ours, asked), strict=True):
        assert len(one) == len(other)
        assert all(torch.equal(*maps) for maps in zip(one, other, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_does_not_exist_is_refused(name: str) -> None:
    _, ours = pair(name)
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match="output_fmt='NLC': only NCHW"):
        ours.forward_intermediates(x, output_fmt="NLC")
    for indices in (0, 9, [9], [-9]):
        with pytest.raises(AssertionError, match="out of range"):
            ours.forward_intermediates(x, indices=indices)
