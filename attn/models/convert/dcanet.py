"""The checkpoints of DCANet's authors: ResNets, MobileNetV2 and MnasNet, plain, attended and connected."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from attn.models.convert.protocol import Architecture, Shape, Shapes, Tensors, blocks, renamed, same

# What is in a slot, and what the authors call it, below the name of the holder.
JOIN = {"connect.alpha_beta": "conv.0.weight", "connect.bias": "conv.0.bias", "connect.norm": "conv.1", "match": "att_fc"}
SE = {"fc1": "fc.0", "fc2": "fc.2"}
GATE, SPATIAL = "ChannelGate", "SpatialGate"
CBAM = {
    "channel.mlps.0.0": f"{GATE}.mlp.1",
    "channel.mlps.0.2": f"{GATE}.mlp.3",
    "spatial.conv": f"{SPATIAL}.spatial.conv",
    "spatial.norm": f"{SPATIAL}.spatial.bn",
}
GC = {"key": "conv_mask", "fc1": "channel_add_conv.0", "norm": "channel_add_conv.1", "fc2": "channel_add_conv.3"}


def based(names: Mapping[str, str]) -> dict[str, str]:
    """The names of an attention that is connected."""
    return {f"base.{ours}": theirs for ours, theirs in names.items()}


def selective(branches: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Of selective kernels, by the authors' names of the convolutions and norms."""
    names = {"fc1": "conv_fc1", "norm": "bn_fc1", "fc2": "conv_fc2"}
    for i, (conv, norm) in enumerate(branches):
        names |= {f"branches.{i}.0": conv, f"branches.{i}.1": norm}
    return names


def connected_selective(names: Mapping[str, str], match: str) -> dict[str, str]:
    found = based(names)
    for i in (0, 1):
        found |= {f"connects.{i}.alpha_beta": f"att_conv{i + 1}.0.weight", f"connects.{i}.bias": f"att_conv{i + 1}.0.bias"}
        found |= {f"connects.{i}.norm": f"att_conv{i + 1}.1", f"matches.{i}": f"{match}{i + 1}"}
    return found


DCA_SE = based(SE) | JOIN
DCA_GC = based(GC) | {"weight": "weight", "match": "att_fc"}
DCA_CBAM = based(CBAM) | {
    "match": f"{GATE}.att_fc",
    "connect.alpha_beta": f"{GATE}.alpha.0.weight",
    "connect.norm": f"{GATE}.alpha.1",
    "connect_spatial.norm": f"{SPATIAL}.bnrelu.0",
    "connect_spatial": SPATIAL,
}
SK = selective((("conv2", "bn2"), ("conv2g", "bn2g")))
DCA_SK = connected_selective(SK, "att_fc_")
MOBILE_SK = selective((("conv3", "bn3"), ("conv5", "bn5")))
DCA_MOBILE_SK = connected_selective(MOBILE_SK, "att_fc")


def their_shape(name: str, shape: Shape) -> Shape:
    """The authors' shape of a tensor that they call `name`."""
    dense = shape[:2]
    if re.search(r"\.se\.fc\.\d\.weight$", name):
        return dense
    if re.search(r"\.(conv_fc\d|gc\.channel_add_conv\.[03]|rgc\.channel_add_conv\.[03]|rgc\.att_fc\.[03])\.weight$", name):
        return (*dense, 1, 1)
    if re.search(r"gc\.(channel_add_conv|att_fc)\.1\.(weight|bias)$", name):
        return (*shape, 1, 1)
    if re.search(r"\.((se|ge)\.conv|att_conv\d|ChannelGate\.alpha)\.0\.weight$", name):
        return (1, 2, 1, 1)
    if re.search(r"\.((se|ge)\.conv\.0\.bias|att_conv\d\.0\.bias|p[12]|rgc\.weight)$", name):
        return (1,)
    if re.search(r"\.sge\.(weight|bias)$", name):
        return (1, *shape)
    return shape


def resnet(shapes: Shapes, slot: str, holder: str, names: Mapping[str, str]) -> Tensors:
    """Of a ResNet, whose names outside the slots are timm's.

    Args:
        shapes: of our state dict.
        slot: our name of the module in a slot.
        holder: theirs; empty where its layers are the block's own.
        names: their names of its layers.
    """
    found: Tensors = {}
    for key, shape in shapes.items():
        name, inside = key, re.match(rf"(layer\d+\.\d+\.){slot}\.(.*)$", key)
        if inside is not None and names:
            name = f"{inside[1]}{holder}{renamed(inside[2], names)}"
        found[key] = (name, their_shape(name, tuple(shape)))
    return found


# The convolutions and norms of a block, in the order of the forward pass; of the expansion-less block, the last four.
LAYERS = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
SEPARABLE = ("conv_dw", "bn1", "conv_pw", "bn2")

Names = tuple[tuple[str, ...], tuple[str, ...]]
MOBILENET: Names = (
    ("conv.0.0", "conv.0.1", "conv.1.0", "conv.1.1", "conv.2", "conv.3"),
    ("conv.0.0", "conv.0.1", "conv.1", "conv.2"),
)
SK_BLOCK: Names = (("conv.0.0", "conv.0.1", "conv.1", "", "conv.2", "conv.3"), ("conv.0", "", "conv.1", "conv.2"))
DCA_SK_BLOCK: Names = (
    ("layer1.0", "layer1.1", "layersk", "", "layer3.0", "layer3.1"),
    ("layersk", "", "layer3.0", "layer3.1"),
)
MNASNET: Names = (tuple(f"layers.{i}" for i in (0, 1, 3, 4, 6, 7)), tuple(str(i) for i in (3, 4, 6, 7)))

Outer = Callable[[int, int, int], str]  # stage, block, depth: the authors' name of a block
Layout = tuple[tuple[str, str], tuple[str, str], Outer, Names]  # convolution and norm of stem and head; block; its layers


def ends(stem: str, head: str, first: int = 0) -> tuple[tuple[str, str], tuple[str, str]]:
    return (f"{stem}.0", f"{stem}.1"), (f"{head}.{first}", f"{head}.{first + 1}")


def _sequence(stage: int, block: int, depth: int) -> str:
    return f"features.{depth + 1}"


def _parts(stage: int, block: int, depth: int) -> str:
    return f"features2.{depth}"


def _stacks(stage: int, block: int, depth: int) -> str:
    return "layers" if stage == 0 else f"layers.{stage + 7}.{block}"


def _layer_parts(stage: int, block: int, depth: int) -> str:
    return "layers1" if stage == 0 else f"layers2.{stage - 1}.{block}"


FEATURES: Layout = (*ends("features.0", "features.18"), _sequence, MOBILENET)
SK_FEATURES: Layout = (*ends("features.0", "features.18"), _sequence, SK_BLOCK)
CONV_FEATURES: Layout = (*ends("features.0.conv", "features.18.conv"), _sequence, MOBILENET)
PARTS: Layout = (*ends("features1", "features3"), _parts, MOBILENET)
SK_PARTS: Layout = (*ends("features1.0", "features3.0"), _parts, DCA_SK_BLOCK)
STACKS: Layout = (*ends("layers", "layers", 14), _stacks, MNASNET)
LAYER_PARTS: Layout = (*ends("layers1", "layers3"), _layer_parts, MNASNET)


def mobile(shapes: Shapes, layout: Layout, holder: str = "", names: Mapping[str, str] | None = None) -> Tensors:
    """Of MobileNetV2 and MnasNet.

    Args:
        shapes: of our state dict.
        layout: the names of stem, head and blocks.
        holder: their name of the module at the end of a block.
        names: their names of the layers of that, or of the selective kernels in place of the depthwise convolution.
    """
    stem, head, outer, (expanded, separable) = layout
    outside = dict(zip(("conv_stem", "bn1", "conv_head", "bn2", "classifier"), (*stem, *head, "classifier.1"), strict=True))
    depths = blocks(shapes)
    found: Tensors = {}
    for key, shape in shapes.items():
        if not key.startswith("blocks."):
            found[key] = (renamed(key, outside), tuple(shape))
            continue
        _, stage, block, layer, inner = key.split(".", 4)
        prefix = outer(int(stage), int(block), depths[int(stage), int(block)])
        layers = dict(zip(SEPARABLE, separable, strict=True) if stage == "0" else zip(LAYERS, expanded, strict=True))
        name = f"{prefix}.{layers.get(layer, holder)}.{renamed(inner, names or {})}"
        found[key] = (name, their_shape(name, tuple(shape)))
    return found


def _resnet(
    backbone: str,
    attention: str,
    holder: str,
    names: Mapping[str, str],
    slot: str = "se",
    **block: Any,
) -> Architecture:
    group = "conv" if slot == "conv2" else "block"
    settings = {f"{group}.{option}": value for option, value in block.items()}
    return Architecture(backbone, attention, partial(resnet, slot=slot, holder=holder, names=names), settings)


def _mobile(
    backbone: str,
    attention: str,
    settings: Mapping[str, Any],
    layout: Layout,
    holder: str = "",
    names: Mapping[str, str] | None = None,
) -> Architecture:
    return Architecture(backbone, attention, partial(mobile, layout=layout, holder=holder, names=names), settings)


ONE_FC: dict[str, Any] = {"unused": True, "matching": "1fc"}
TWO_FC: dict[str, Any] = {"unused": True}
R50 = "resnet50"

RESNETS: dict[str, Architecture] = {
    "resnet50_dcanet": Architecture(R50, "none", same),
    "getheta_resnet50": Architecture(R50, "ge_theta_minus", same),
    **{f"se_resnet{n}_dcanet": _resnet(f"resnet{n}", "se", "se.", SE) for n in (50, 101, 152)},
    "sge_resnet50": _resnet(R50, "sge", "sge.", {"weight": "weight", "bias": "bias"}, unbiased=True),
    "gc_resnet50": _resnet(R50, "gc", "gc.", GC),
    "cbam_resnet50": _resnet(R50, "cbam", "cbam.", CBAM),
    "sk2_resnet50": _resnet(R50, "sk", "", SK, "conv2", min_width=1),
    "sk_resnet50": _resnet(R50, "sk", "", SK, "conv2", min_width=1, groups=[None, 32], dilations=[1, 1]),
    **{f"dca_se_resnet{n}": _resnet(f"resnet{n}", "dca_se", "se.", DCA_SE, **ONE_FC) for n in (18, 34, 50, 101, 152)},
    **{f"dca_se_resnet{n}_2fc_inferred": _resnet(f"resnet{n}", "dca_se", "se.", DCA_SE, **TWO_FC) for n in (50, 101, 152)},
    "dca_getheta_resnet50": _resnet(R50, "dca_ge", "ge.", JOIN, **ONE_FC),
    "dca_getheta_resnet50_2fc_inferred": _resnet(R50, "dca_ge", "ge.", JOIN, **TWO_FC),
    "dca_gc_resnet50": _resnet(R50, "dca_gc", "rgc.", DCA_GC, **TWO_FC),
    "dca_cbam_resnet50": _resnet(R50, "dca_cbam", "cbam.", DCA_CBAM, **TWO_FC, matching_bias=True),
    "dca_sk2_resnet50": _resnet(R50, "dca_sk", "", DCA_SK, "conv2", **TWO_FC),
}

V2, MNAS = "mobilenetv2_100", "mnasnet_100"
END = {"position": "end"}
INVERTED = {**END, "block.stages": [2, 3, 4, 5, 6, 7]}  # MnasNet: not in the separable convolution after the stem
UNUSED = {"block.unused": True}
ONE_FC_BLOCK = {"block.matching": "1fc", **UNUSED}
SK_R8 = {"conv.reduction": 8, "conv.min_width": 1, "conv.act": "relu6"}
DCA_SK_R8 = {"conv.base.reduction": 8, "conv.base.min_width": 1, "conv.base.act": "relu6", "conv.matching": "2fc"}
DCA_SK_R8 |= {"conv.reduction": 8, "conv.hand_on": "weights", "conv.unused": True}
DCA_SE_R8 = {**END, **ONE_FC_BLOCK, "block.base.reduction": 8, "block.bias": False}

MOBILES: dict[str, Architecture] = {
    "mobilenet_v2_dcanet": _mobile(V2, "none", {}, FEATURES),
    "getheta_mobilenet_v2": _mobile(V2, "ge_theta_minus", END, FEATURES),
    "se_mobilenet_v2": _mobile(V2, "se", {**END, "block.reduction": 8}, FEATURES, "se", SE),
    "cbam_mobilenet_v2": _mobile(V2, "cbam", {**END, "block.reduction": 8}, FEATURES, "cbam", CBAM),
    "sk_mobilenet_v2": _mobile(V2, "sk", SK_R8, SK_FEATURES, names=MOBILE_SK),
    "dca_se_mobilenet_v2": _mobile(V2, "dca_se", DCA_SE_R8, CONV_FEATURES, "se", DCA_SE),
    "dca_getheta_mobilenet_v2": _mobile(V2, "dca_ge", END | ONE_FC_BLOCK, PARTS, "ge", JOIN),
    "dca_cbam_mobilenet_v2": _mobile(
        V2, "dca_cbam", {**END, **UNUSED, "block.base.reduction": 8}, CONV_FEATURES, "cbam", DCA_CBAM
    ),
    "dca_sk_mobilenet_v2": _mobile(V2, "dca_sk", DCA_SK_R8, SK_PARTS, names=DCA_MOBILE_SK),
    "mnasnet1_0_dcanet": _mobile(MNAS, "none", {}, STACKS),
    "getheta_mnasnet1_0": _mobile(MNAS, "ge_theta_minus", INVERTED, STACKS),
    "se_mnasnet1_0": _mobile(MNAS, "se", INVERTED, STACKS, "se", SE),
    "se_mnasnet1_0r8": _mobile(MNAS, "se", {**INVERTED, "block.first_reduction": 8}, STACKS, "se", SE),
    "cbam_mnasnet1_0": _mobile(MNAS, "cbam", {**INVERTED, "block.reduction": 8}, STACKS, "cbam", CBAM),
    "dca_se_mnasnet1_0": _mobile(MNAS, "dca_se", INVERTED | UNUSED, LAYER_PARTS, "se", DCA_SE),
    "dca_se_mnasnet1_0r8": _mobile(
        MNAS,
        "dca_se",
        {**INVERTED, **UNUSED, "block.base.first_reduction": 8, "block.reduction": 8},
        LAYER_PARTS,
        "se",
        DCA_SE,
    ),
    "dca_getheta_mnasnet1_0": _mobile(MNAS, "dca_ge", INVERTED | ONE_FC_BLOCK, LAYER_PARTS, "ge", JOIN),
    "dca_cbam_mnasnet1_0": _mobile(MNAS, "dca_cbam", INVERTED | UNUSED, LAYER_PARTS, "cbam", DCA_CBAM),
    "dca_cbam_mnasnet1_0r8": _mobile(
        MNAS, "dca_cbam", {**INVERTED, **UNUSED, "block.base.reduction": 8}, LAYER_PARTS, "cbam", DCA_CBAM
    ),
}

ARCHITECTURES: dict[str, Architecture] = RESNETS | MOBILES
