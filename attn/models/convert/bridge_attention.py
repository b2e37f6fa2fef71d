"""The checkpoints of BA-Net's authors, and of the networks that they compare with: SE, ECA, FcaNet, MobileNetV3."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from attn.models.convert.protocol import Architecture, Shape, Shapes, Tensors, blocks, renamed
from attn.modules.fca import DCT

Outer = Callable[[str, Mapping[tuple[int, int], int]], str]  # of a key outside the slots, and the blocks' depths

DENSE = re.compile(r"\.fc\.[02]\.weight$|^classifier\.0\.weight$")  # linear layers of theirs, 1x1 convolutions of ours
SLOT = re.compile(r"(.*\.)(?:se|attn_pre)\.(.*)$")

SE = {"fc1": "fc.0", "fc2": "fc.2"}
MOBILE_SE = {"conv_reduce": "fc.0", "conv_expand": "fc.2"}
EFFICIENT_SE = {"conv_reduce": "0", "conv_expand": "2"}
BA = {"expand": "generation.1"}  # and the bridges, of which the last has a name of its own


def tensors(shapes: Shapes, holder: str, names: Mapping[str, str], outer: Outer | None = None) -> Tensors:
    """The authors' names and shapes.

    Args:
        shapes: of our state dict.
        holder: what the authors call the module in a slot.
        names: what they call the layers in it.
        outer: renames what is not in a slot; by default it has timm's names.
    """
    last: dict[str, int] = {}
    for key in shapes:
        bridge = re.match(r"(.*\.)(?:se|attn_pre)\.bridges\.(\d+)\.", key)
        if bridge is not None:
            last[bridge[1]] = max(int(bridge[2]), last.get(bridge[1], 0))
    depths = blocks(shapes)
    found: Tensors = {}
    for key, shape in shapes.items():
        name, slot = key, SLOT.match(key)
        if slot is not None:
            block, inner = slot.groups()
            bridges = {f"bridges.{i}": f"pre_fusions.{i}" for i in range(last.get(block, 0))}
            bridges |= {f"bridges.{last[block]}": "cur_fusion"} if block in last else {}
            name = f"{block}{holder}.{renamed(inner, {**bridges, **names})}"
        if outer is not None:
            name = outer(name, depths)
        found[key] = (name, their_shape(name, tuple(shape)))
    return found


def their_shape(name: str, shape: Shape) -> Shape:
    return shape[:2] if DENSE.search(name) else shape


EXPANDED = {
    "conv_pw": "conv0.0",
    "bn1": "conv0.1",
    "conv_dw": "conv1.0",
    "bn2": "conv1.1",
    "conv_pwl": "conv2.0",
    "bn3": "conv2.1",
}
SEPARABLE = {"conv_dw": "conv1.0", "bn1": "conv1.1", "conv_pw": "conv2.0", "bn2": "conv2.1"}


def mobile(key: str, depths: Mapping[tuple[int, int], int]) -> str:
    """Of BA-MobileNetV3: all blocks in one sequence, their layers named by place."""
    outer = {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": "classifier.0",
        "classifier": "classifier.3",
    }
    if not key.startswith("blocks."):
        return renamed(key, outer)
    _, stage, block, rest = key.split(".", 3)
    depth = depths[int(stage), int(block)]
    if depth == len(depths) - 1:  # timm's last block is the convolution before the pooling
        return renamed(rest, {"conv": "conv.0", "bn1": "conv.1"})
    return f"features.{depth + 1}.{renamed(rest, SEPARABLE if stage == '0' else EXPANDED)}"


PLAIN_EXPANDED = {
    "conv_pw": "conv.0",
    "bn1": "conv.1",
    "conv_dw": "conv.3",
    "bn2": "conv.4",
    "att": "conv.5",
    "conv_pwl": "conv.7",
    "bn3": "conv.8",
}
PLAIN_SEPARABLE = {"conv_dw": "conv.0", "bn1": "conv.1", "att": "conv.3", "conv_pw": "conv.4", "bn2": "conv.5"}


def plain_mobile(key: str, depths: Mapping[tuple[int, int], int]) -> str:
    """Of their MobileNetV3 with SE: as `mobile`, but the layers of a block are one sequence."""
    if not key.startswith("blocks."):
        return mobile(key, depths)
    _, stage, block, rest = key.split(".", 3)
    depth = depths[int(stage), int(block)]
    if depth == len(depths) - 1:
        return mobile(key, depths)
    return f"features.{depth + 1}.{renamed(rest, PLAIN_SEPARABLE if stage == '0' else PLAIN_EXPANDED)}"


def efficient(key: str, depths: Mapping[tuple[int, int], int]) -> str:
    """Of BA-EfficientNet: the names of the first PyTorch port."""
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    if not key.startswith("blocks."):
        return renamed(key, outer)
    _, stage, block, rest = key.split(".", 3)
    layers = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    layers |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    if stage == "0":
        layers = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    return f"_blocks.{depths[int(stage), int(block)]}.{renamed(rest, layers)}"


def _resnet(holder: str, names: Mapping[str, str]) -> Callable[[Shapes], Tensors]:
    return partial(tensors, holder=holder, names=names)


MOBILE: dict[str, Any] = {"sites": "native", "position": "preact", "block.reduction": 6, "block.gate": "hard_sigmoid"}
PLAIN_MOBILE: dict[str, Any] = {"sites": "native", "position": "expanded", "block.reduction": 4, "block.divisor": 8}
PLAIN_MOBILE |= {"block.gate": "hard_sigmoid"}
EFFICIENT: dict[str, Any] = {"sites": "native", "block.reduction": 6, "block.act": "silu"}
EFFICIENT_DATA = {"test_resize": 224, "test_interpolation": "bicubic"}
ECA: dict[str, Any] = {"block.kernel_size": [3, 5, 5, 7]}
GATES = r"gate[1-4]\.0\.weight|layer[1-4]\.\d+\.Gate\.0\.weight"  # of ResNeXt-50, which its forward pass has no use for


def dct_weights(model: nn.Module) -> dict[str, Tensor]:
    """FcaNet's buffers, which tell its choice of frequencies: [C, S, S] of each block."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, DCT):
            own = DCT(len(module.part), module.size)  # the model's may be on the meta device
            found[f"{name.removesuffix('.se.dct')}.att.dct_layer.weight"] = own.basis[own.part]
    return found


ARCHITECTURES: dict[str, Architecture] = {
    **{f"ba_resnet{n}": Architecture(f"resnet{n}", "ba", _resnet("ba", BA)) for n in (18, 34, 50, 101, 152)},
    "ba_resnext50": Architecture("resnext50_32x4d", "ba", _resnet("ba", BA), dropped=GATES),
    **{
        f"ba_mobilenetv3_{size}": Architecture(
            f"mobilenetv3_{size}_100",
            "ba",
            partial(tensors, holder="att", names=BA | MOBILE_SE, outer=mobile),
            MOBILE,
        )
        for size in ("small", "large")
    },
    **{
        f"mobilenetv3_{size}_banet": Architecture(
            f"mobilenetv3_{size}_100",
            "se",
            partial(tensors, holder="att", names=SE, outer=plain_mobile),
            PLAIN_MOBILE,
        )
        for size in ("small", "large")
    },
    "ba_efficientnet_b0": Architecture(
        "tf_efficientnet_b0",
        "ba",
        partial(tensors, holder="att", names=BA | EFFICIENT_SE, outer=efficient),
        EFFICIENT,
        EFFICIENT_DATA,
    ),
    **{f"se_resnet{n}_banet": Architecture(f"resnet{n}", "se", _resnet("se", SE), {"block.bias": False}) for n in (50, 101)},
    **{f"fcanet{n}": Architecture(f"resnet{n}", "fca", _resnet("att", SE), constants=dct_weights) for n in (50, 101)},
    **{f"eca_resnet{n}_ksize3557": Architecture(f"resnet{n}", "eca", _resnet("eca", {}), ECA) for n in (50, 101)},
}
