"""DCANet's mobile networks and ours: the same names and shapes, and the same outputs for the same weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import PARITY, check_listing, check_outputs, recorded_keys
from torch import nn

import attn
from attn.config import groups

KEYS = recorded_keys("mobile")

# What stands in a slot, and what the authors' block calls it.
JOIN = {"connect.alpha_beta": "conv.0.weight", "connect.bias": "conv.0.bias", "connect.norm": "conv.1", "match": "att_fc"}
SE = {"base.fc1": "fc.0", "base.fc2": "fc.2"}
GATE, SPATIAL = "ChannelGate", "SpatialGate"
CBAM = {
    "channel.mlps.0.0": f"{GATE}.mlp.1",
    "channel.mlps.0.2": f"{GATE}.mlp.3",
    "spatial.conv": f"{SPATIAL}.spatial.conv",
    "spatial.norm": f"{SPATIAL}.spatial.bn",
}
DCA_CBAM = {f"base.{ours}": theirs for ours, theirs in CBAM.items()} | {
    "match": f"{GATE}.att_fc",
    "connect.alpha_beta": f"{GATE}.alpha.0.weight",
    "connect.norm": f"{GATE}.alpha.1",
    "connect_spatial.norm": f"{SPATIAL}.bnrelu.0",
    "connect_spatial": SPATIAL,
}
DCA_SK = {"base.fc1": "conv_fc1", "base.norm": "bn_fc1", "base.fc2": "conv_fc2"}
for branch, kernel in enumerate((3, 5)):
    DCA_SK[f"base.branches.{branch}.0"] = f"conv{kernel}"
    DCA_SK[f"base.branches.{branch}.1"] = f"bn{kernel}"
    DCA_SK[f"connects.{branch}.alpha_beta"] = f"att_conv{branch + 1}.0.weight"
    DCA_SK[f"connects.{branch}.bias"] = f"att_conv{branch + 1}.0.bias"
    DCA_SK[f"connects.{branch}.norm"] = f"att_conv{branch + 1}.1"
    DCA_SK[f"matches.{branch}"] = f"att_fc{branch + 1}"

Outer = Callable[[int, int, int], str]  # stage, block, depth: the authors' name of a block

# The convolutions and norms of a block, in the order of the forward pass; of the expansion-less block, the last four.
LAYERS = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
SEPARABLE = ("conv_dw", "bn1", "conv_pw", "bn2")
MOBILENET = (
    ("conv.0.0", "conv.0.1", "conv.1.0", "conv.1.1", "conv.2", "conv.3"),
    ("conv.0.0", "conv.0.1", "conv.1", "conv.2"),
)
SK_BLOCK = (("layer1.0", "layer1.1", "layersk", "", "layer3.0", "layer3.1"), ("layersk", "", "layer3.0", "layer3.1"))
MNASNET = (tuple(f"layers.{i}" for i in (0, 1, 3, 4, 6, 7)), tuple(str(i) for i in (3, 4, 6, 7)))

# The names of the stem, the head, and a block.
Layout = tuple[str, str, Outer, tuple[tuple[str, ...], tuple[str, ...]]]
FEATURES: Layout = ("features.0", "features.18", lambda stage, block, depth: f"features.{depth + 1}", MOBILENET)
CONV_FEATURES: Layout = ("features.0.conv", "features.18.conv", FEATURES[2], MOBILENET)
PARTS: Layout = ("features1", "features3", lambda stage, block, depth: f"features2.{depth}", MOBILENET)
SK_PARTS: Layout = ("features1.0", "features3.0", PARTS[2], SK_BLOCK)
STACKS: Layout = ("layers", "layers|14", lambda s, b, d: "layers" if s == 0 else f"layers.{s + 7}.{b}", MNASNET)
LAYER_PARTS: Layout = ("layers1", "layers3", lambda s, b, d: "layers1" if s == 0 else f"layers2.{s - 1}.{b}", MNASNET)

END = {"position": "end"}
INVERTED = {**END, "block.stages": [2, 3, 4, 5, 6, 7]}  # MnasNet: not in the separable convolution behind the stem
ONE_FC = {"block.matching": "1fc", "block.unused": True}
R8_SK = {"conv.base.reduction": 8, "conv.base.min_width": 1, "conv.base.act": "relu6", "conv.matching": "2fc"}
R8_SK |= {"conv.reduction": 8, "conv.hand_on": "weights", "conv.unused": True}
V2, MNAS = "mobilenetv2_100", "mnasnet_100"

# Backbone, attention, settings, layout, what the authors call the holder, names in it.
NETWORKS: dict[str, tuple[str, str, dict[str, Any], Layout, str, dict[str, str]]] = {
    "mobilenet_v2": (V2, "none", {}, FEATURES, "", {}),
    "getheta_mobilenet_v2": (V2, "ge_theta_minus", END, FEATURES, "", {}),
    "cbam_mobilenet_v2": (V2, "cbam", {**END, "block.reduction": 8}, FEATURES, "cbam.", CBAM),
    "dca_se_mobilenet_v2": (
        V2,
        "dca_se",
        {**END, **ONE_FC, "block.base.reduction": 8, "block.bias": False},
        CONV_FEATURES,
        "se.",
        SE | JOIN,
    ),
    "dca_getheta_mobilenet_v2": (V2, "dca_ge", END | ONE_FC, PARTS, "ge.", JOIN),
    "dca_cbam_mobilenet_v2": (
        V2,
        "dca_cbam",
        {**END, "block.base.reduction": 8, "block.unused": True},
        CONV_FEATURES,
        "cbam.",
        DCA_CBAM,
    ),
    "dca_sk_mobilenet_v2": (V2, "dca_sk", R8_SK, SK_PARTS, "layersk.", DCA_SK),
    "mnasnet1_0": (MNAS, "none", {}, STACKS, "", {}),
    "getheta_mnasnet1_0": (MNAS, "ge_theta_minus", INVERTED, STACKS, "", {}),
    "cbam_mnasnet1_0": (MNAS, "cbam", {**INVERTED, "block.reduction": 8}, STACKS, "cbam.", CBAM),
    "dca_se_mnasnet1_0": (MNAS, "dca_se", {**INVERTED, "block.unused": True}, LAYER_PARTS, "se.", SE | JOIN),
    "dca_se_mnasnet1_0r8": (
        MNAS,
        "dca_se",
        {**INVERTED, "block.base.first_reduction": 8, "block.reduction": 8, "block.unused": True},
        LAYER_PARTS,
        "se.",
        SE | JOIN,
    ),
    "dca_getheta_mnasnet1_0": (MNAS, "dca_ge", INVERTED | ONE_FC, LAYER_PARTS, "ge.", JOIN),
    "dca_cbam_mnasnet1_0": (MNAS, "dca_cbam", {**INVERTED, "block.unused": True}, LAYER_PARTS, "cbam.", DCA_CBAM),
    "dca_cbam_mnasnet1_0r8": (
        MNAS,
        "dca_cbam",
        {**INVERTED, "block.base.reduction": 8, "block.unused": True},
        LAYER_PARTS,
        "cbam.",
        DCA_CBAM,
    ),
}


def build(network: str) -> nn.Module:
    backbone, attention, settings, *_ = NETWORKS[network]
    config = groups.load("attention", attention)
    for key, value in settings.items():
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return attn.create_model(backbone, config)


def their_name(key: str, network: str, depth: dict[tuple[str, str], int]) -> str:
    """The authors' name of one of our tensors."""
    _, _, _, (stem, head, outer, (expanded, separable)), holder, names = NETWORKS[network]
    head, _, first = head.partition("|")
    for layers, prefix, start in ((("conv_stem", "bn1"), stem, 0), (("conv_head", "bn2"), head, int(first or 0))):
        for i, layer in enumerate(layers, start=start):
            if key.startswith(f"{layer}."):
                return f"{prefix}.{i}.{key.removeprefix(f'{layer}.')}"
    if key.startswith("classifier."):
        return key.replace("classifier", "classifier.1")
    stage, block, layer, inner = key.split(".", 4)[1:]
    prefix = outer(int(stage), int(block), depth[stage, block])
    renamed = re.sub(
        "^(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + r")(?=\.|$)", lambda m: names[m[1]], inner
    )
    if layer == "attn_end" or (layer == "conv_dw" and holder == "layersk."):
        return f"{prefix}.{holder}{renamed}"
    theirs = dict(zip(SEPARABLE, separable, strict=True)) if stage == "0" else dict(zip(LAYERS, expanded, strict=True))
    return f"{prefix}.{theirs[layer]}.{inner}"


def their_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The authors' shape of a tensor that they call `name`; ours has as many elements in the same order."""
    dense = shape[:2]
    if re.search(r"\.se\.fc\.\d\.weight$", name):
        return dense
    if re.search(r"\.conv_fc\d\.weight$", name):
        return (*dense, 1, 1)
    if re.search(r"\.((se|ge)\.conv|att_conv\d|ChannelGate\.alpha)\.0\.weight$", name):
        return (1, 2, 1, 1)
    if re.search(r"\.((se|ge)\.conv\.0\.bias|att_conv\d\.0\.bias|p[12])$", name):
        return (1,)
    return shape


def their_tensors(model: nn.Module, network: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our keys with the authors' name and shape."""
    state = model.state_dict()
    depth: dict[tuple[str, str], int] = {}
    for key in state:
        block = re.match(r"blocks\.(\d+)\.(\d+)\.", key)
        if block is not None:
            depth.setdefault((block[1], block[2]), len(depth))
    names = {key: their_name(key, network, depth) for key in state}
    return {key: (name, their_shape(name, tuple(state[key].shape))) for key, name in names.items()}


@pytest.mark.parametrize("network", KEYS)
def test_names_and_shapes_are_those_of_the_authors_network(network: str) -> None:
    with torch.device("meta"):
        model = build(network)
    check_listing(model, their_tensors(model, network), KEYS[network])


def test_outputs_are_those_of_the_authors_network() -> None:
    network = "dca_se_mobilenet_v2"
    model = build(network)
    check_outputs(model, their_tensors(model, network), network)


def test_every_mobile_network_of_dcanet_with_recorded_outputs_is_compared() -> None:
    recorded = {name for name, entry in PARITY.items() if entry["source"] == "dcanet" and "resnet" not in name}
    assert recorded == {"dca_se_mobilenet_v2"}
