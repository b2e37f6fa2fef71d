"""The weights of torchvision, by its names; where timm or this project has a network of the same layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.layers import gen_relative_position_index
from torch import Tensor, nn

from attn.models.convert import dcanet
from attn.models.convert.protocol import Architecture, Shapes, Tensors, blocks, renamed, same

Rules = Mapping[str, str | Callable[[re.Match[str]], str]]  # pattern of the beginning of a name: what takes its place

SEPARABLE = {"conv_dw": "0.0", "bn1": "0.1", "se.conv_reduce": "1.fc1", "se.conv_expand": "1.fc2"}
EXPANDED = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1"}
EXPANDED |= {"se.conv_reduce": "2.fc1", "se.conv_expand": "2.fc2"}


def mobile(shapes: Shapes, staged: bool, ends: Mapping[str, str]) -> Tensors:
    """Of EfficientNet, whose blocks are numbered by stage, and of MobileNetV3, which numbers them all in one sequence.

    Args:
        shapes: of our state dict.
        staged: by stage.
        ends: the names of what is not in a block.
    """
    depths = blocks(shapes)
    attended = {key.rpartition(".se.")[0] for key in shapes if ".se." in key}
    found: Tensors = {}
    for key, shape in shapes.items():
        if not key.startswith("blocks."):
            name = renamed(key, ends)
            found[key] = (name, tuple(shape[:2] if name == "classifier.0.weight" else shape))  # linear there, 1x1 here
            continue
        _, stage, block, rest = key.split(".", 3)
        depth = depths[int(stage), int(block)]
        place = f"features.{int(stage) + 1}.{block}" if staged else f"features.{depth + 1}"
        if rest.startswith(("conv.", "bn1.")) and f"blocks.{stage}.{block}.conv.weight" in shapes:  # the last convolution
            found[key] = (f"{place}.{renamed(rest, {'conv': '0', 'bn1': '1'})}", tuple(shape))
            continue
        after = int(f"blocks.{stage}.{block}" in attended)  # the projection follows the attention, where there is one
        if f"blocks.{stage}.{block}.conv_pwl.weight" in shapes:
            names = EXPANDED | {"conv_pwl": f"{2 + after}.0", "bn3": f"{2 + after}.1"}
        else:
            names = SEPARABLE | {"conv_pw": f"{1 + after}.0", "bn2": f"{1 + after}.1"}
        found[key] = (f"{place}.block.{renamed(rest, names)}", tuple(shape))
    return found


STEM = {"conv_stem": "features.0.0", "bn1": "features.0.1"}
EFFICIENT_ENDS = STEM | {"conv_head": "features.8.0", "bn2": "features.8.1", "classifier": "classifier.1"}
MOBILE_ENDS = STEM | {"conv_head": "classifier.0", "classifier": "classifier.3"}


def by_rules(shapes: Shapes, rules: Rules) -> Tensors:
    """Each name with the first pattern that matches its beginning replaced; a name that none matches stays."""
    found: Tensors = {}
    for key, shape in shapes.items():
        name = key
        for pattern, replacement in rules.items():
            name, changed = re.subn(rf"^{pattern}", replacement, key)
            if changed:
                break
        found[key] = (name, (*shape, 1, 1) if name.endswith("layer_scale") else tuple(shape))
    return found


def doubled(offset: int, rest: str) -> Callable[[re.Match[str]], str]:
    """A stage's number where stages and the layers between them are numbered together."""
    return lambda match: f"features.{2 * int(match[1]) + offset}.{match.expand(rest)}"


REGNET: Rules = {
    r"stem\.conv": "stem.0",
    r"stem\.bn": "stem.1",
    r"s(\d)\.b(\d+)\.(.*)": lambda match: (
        f"trunk_output.block{match[1]}.block{match[1]}-{int(match[2]) - 1}.{regnet_layer(match[3])}"
    ),
    r"head\.fc": "fc",
}


def regnet_layer(rest: str) -> str:
    names = {
        f"conv{i}.{ours}": f"f.{letter}.{theirs}"
        for i, letter in enumerate("abc", 1)
        for ours, theirs in (("conv", 0), ("bn", 1))
    }
    return renamed(rest, names | {"se": "f.se", "downsample.conv": "proj.0", "downsample.bn": "proj.1"})


CONVNEXT: Rules = {
    r"stem\.": "features.0.",
    r"stages\.(\d)\.downsample\.": doubled(0, ""),
    r"stages\.(\d)\.blocks\.(\d+)\.gamma": doubled(1, r"\2.layer_scale"),
    r"stages\.(\d)\.blocks\.(\d+)\.conv_dw": doubled(1, r"\2.block.0"),
    r"stages\.(\d)\.blocks\.(\d+)\.norm": doubled(1, r"\2.block.2"),
    r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc1": doubled(1, r"\2.block.3"),
    r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc2": doubled(1, r"\2.block.5"),
    r"head\.norm": "classifier.0",
    r"head\.fc": "classifier.2",
}
SWIN: Rules = {
    r"patch_embed\.proj": "features.0.0",
    r"patch_embed\.norm": "features.0.2",
    r"layers\.(\d)\.downsample\.": doubled(0, ""),
    r"layers\.(\d)\.blocks\.(\d+)\.mlp\.fc1": doubled(1, r"\2.mlp.0"),
    r"layers\.(\d)\.blocks\.(\d+)\.mlp\.fc2": doubled(1, r"\2.mlp.3"),
    r"layers\.(\d)\.blocks\.(\d+)\.": doubled(1, r"\2."),
    r"head\.fc": "head",
}
LAYER = r"encoder.layers.encoder_layer_\1."
VIT: Rules = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    r"patch_embed\.proj": "conv_proj",
    r"blocks\.(\d+)\.norm(\d)": LAYER + r"ln_\2",
    r"blocks\.(\d+)\.attn\.qkv\.": LAYER + "self_attention.in_proj_",
    r"blocks\.(\d+)\.attn\.proj": LAYER + "self_attention.out_proj",
    r"blocks\.(\d+)\.mlp\.fc1": LAYER + "mlp.0",
    r"blocks\.(\d+)\.mlp\.fc2": LAYER + "mlp.3",
    r"norm\.": "encoder.ln.",
    "head": "heads.head",
}


def swin_constants(model: nn.Module) -> dict[str, Tensor]:
    """The index of the relative positions of each block, which torchvision saves and timm computes."""
    found = {}
    for name, module in model.named_modules():
        place = re.fullmatch(r"layers\.(\d)\.blocks\.(\d+)\.attn", name)
        if place is not None:
            side: Any = module.window_size
            index = gen_relative_position_index(tuple(side)).flatten()
            found[f"features.{2 * int(place[1]) + 1}.{place[2]}.attn.relative_position_index"] = index
    return found


def _plain(name: str) -> Architecture:
    return Architecture(name, "none", same)


BICUBIC: dict[str, Any] = {"test_interpolation": "bicubic"}
# Image and shorter side with which torchvision tests the weights that it ships.
EFFICIENT: dict[str, tuple[int, int]] = {
    "b0": (224, 256),
    "b1": (240, 256),
    "b2": (288, 288),
    "b3": (300, 320),
    "b4": (380, 384),
}
CONVNEXTS = {"tiny": 236, "small": 230, "base": 232, "large": 232}
SWINS = {"t": ("tiny", 232), "s": ("small", 246), "b": ("base", 238)}
# Its 800mf and 8gf have other widths than timm's regnety_008 and regnety_080.
REGNETS = {"400mf": "004", "1_6gf": "016", "3_2gf": "032", "16gf": "160", "32gf": "320"}

ARCHITECTURES: dict[str, Architecture] = {
    **{name: _plain(name) for name in (f"resnet{n}" for n in (18, 34, 50, 101, 152))},
    **{name: _plain(name) for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")},
    **{name: _plain(name) for name in ("wide_resnet50_2", "wide_resnet101_2")},
    **{name: _plain(name) for name in (f"densenet{n}" for n in (121, 161, 169, 201))},
    "shufflenet_v2_x1_0": _plain("shufflenet_v2_x1_0"),
    "mobilenet_v2": Architecture("mobilenetv2_100", "none", partial(dcanet.mobile, layout=dcanet.FEATURES)),
    "mnasnet1_0": Architecture("mnasnet_100", "none", partial(dcanet.mobile, layout=dcanet.STACKS)),
    **{
        f"mobilenet_v3_{size}": Architecture(
            f"mobilenetv3_{size}_100", "none", partial(mobile, staged=False, ends=MOBILE_ENDS), network={"bn_eps": 0.001}
        )
        for size in ("small", "large")
    },
    **{
        f"efficientnet_{size}": Architecture(
            f"efficientnet_{size}",
            "none",
            partial(mobile, staged=True, ends=EFFICIENT_ENDS),
            data={"image_size": side, "test_resize": resize, **BICUBIC},
        )
        for size, (side, resize) in EFFICIENT.items()
    },
    **{
        f"regnet_y_{size}": Architecture(f"regnety_{n}", "none", partial(by_rules, rules=REGNET))
        for size, n in REGNETS.items()
    },
    **{
        f"convnext_{size}": Architecture(
            f"convnext_{size}", "none", partial(by_rules, rules=CONVNEXT), data={"test_resize": resize}
        )
        for size, resize in CONVNEXTS.items()
    },
    **{
        f"swin_{letter}": Architecture(
            f"swin_{size}_patch4_window7_224",
            "none",
            partial(by_rules, rules=SWIN),
            data={"test_resize": resize, **BICUBIC},
            constants=swin_constants,
        )
        for letter, (size, resize) in SWINS.items()
    },
    **{
        f"vit_{letter}_16": Architecture(f"vit_{size}_patch16_224", "none", partial(by_rules, rules=VIT))
        for letter, size in (("b", "base"),)
    },
}
