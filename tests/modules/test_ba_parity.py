"""The authors' BA-Net, BA-Net v2, SGE and FcaNet, and ours: the same names and shapes, the same outputs, the tables' sizes.

The listings leave out the tensors that take no part: the gates of ResNeXt-50 and the DCT weights of FcaNet.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from parity import PARITY, check_listing, check_outputs, recorded_keys
from torch import nn

import attn
from attn.config import groups

KEYS = recorded_keys("ba")

# Our names of what stands in a slot, and theirs; N stands for the convolution bridged last.
BA_NAMES = {r"bridges\.N": "cur_fusion", r"bridges\.(\d)": r"pre_fusions.\1", r"expand": "generation.1"}
BA_V2_NAMES = {
    r"bridges\.(\d)\.weight": r"fusions.\1.0.weight",
    r"select": "proj",
    r"norm": "generation.0",
    r"expand": "generation.2",
}
SE_NAMES = {r"fc1": "fc.0", r"fc2": "fc.2"}
MOBILE_SE_NAMES = {r"conv_reduce": "fc.0", r"conv_expand": "fc.2"}
EFFICIENT_SE_NAMES = {r"conv_reduce": "0", r"conv_expand": "2"}
MOBILE: dict[str, Any] = {"sites": "native", "position": "preact", "block": {"reduction": 6, "gate": "hard_sigmoid"}}
EFFICIENT: dict[str, Any] = {"sites": "native", "block": {"reduction": 6, "act": "silu"}}

# Backbone, attention, settings, what the authors call the holder, names in it.
NETWORKS: dict[str, tuple[str, str, dict[str, Any], str, dict[str, str]]] = {
    **{f"ba_resnet{n}": (f"resnet{n}", "ba", {}, "ba", BA_NAMES) for n in (18, 34, 50, 101, 152)},
    **{f"ba_resnet{n}_v2": (f"resnet{n}", "ba_v2", {}, "ba", BA_V2_NAMES) for n in (18, 34, 50, 101)},
    "ba_resnext50": ("resnext50_32x4d", "ba", {}, "ba", BA_NAMES),
    "ba_mobilenetv3_small": ("mobilenetv3_small_100", "ba", MOBILE, "att", BA_NAMES | MOBILE_SE_NAMES),
    "ba_mobilenetv3_large": ("mobilenetv3_large_100", "ba", MOBILE, "att", BA_NAMES | MOBILE_SE_NAMES),
    "ba_efficientnet_b0": ("tf_efficientnet_b0", "ba", EFFICIENT, "att", BA_NAMES | EFFICIENT_SE_NAMES),
    "fcanet50": ("resnet50", "fca", {}, "att", SE_NAMES),
    "fcanet101": ("resnet101", "fca", {}, "att", SE_NAMES),
    "se_resnet50": ("resnet50", "se", {"block": {"bias": False}}, "se", SE_NAMES),
    "eca_resnet50": ("resnet50", "eca", {"block": {"kernel_size": [3, 5, 5, 7]}}, "eca", {}),
    "sge_resnet50": ("resnet50", "sge", {"block": {"unbiased": True}}, "sge", {}),
}
DENSE = re.compile(r"\.fc\.[02]\.weight$|^classifier\.0\.weight$")  # linear layers of theirs, 1x1 convolutions of ours


def build(network: str) -> nn.Module:
    backbone, name, settings, _, _ = NETWORKS[network]
    config = groups.load("attention", name)
    config["block"] |= settings.get("block", {})
    return attn.create_model(backbone, config | {k: v for k, v in settings.items() if k != "block"})


def their_name(key: str, network: str, last: dict[str, int], places: dict[tuple[str, str], int]) -> str:
    """The authors' name of one of our tensors."""
    holder, names = NETWORKS[network][3:]
    found = re.match(r"(.*\.)(se|attn_pre)\.(.*)$", key)
    if found is not None:
        block, _, inner = found.groups()
        for ours, theirs in names.items():
            renamed, count = re.subn("^" + ours.replace("N", str(last.get(block, 0))) + r"(?=\.|$)", theirs, inner)
            if count:
                inner = renamed
                break
        key = f"{block}{holder}.{inner}"
    if "mobilenet" in network:
        return mobile_name(key, places)
    return efficientnet_name(key, places) if "efficientnet" in network else key


def mobile_name(key: str, places: dict[tuple[str, str], int]) -> str:
    """Of timm's MobileNetV3: all blocks in one sequence, their layers named by place."""
    outer = {
        "conv_stem.": "features.0.0.",
        "bn1.": "features.0.1.",
        "conv_head.": "classifier.0.",
        "classifier.": "classifier.3.",
    }
    for ours, theirs in outer.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    stage, block, layer, rest = key.split(".", 4)[1:]
    number = places[stage, block]
    if number == len(places):
        return {"conv": "conv.0", "bn1": "conv.1"}[layer] + f".{rest}"
    expanded = stage != "0"
    names = (
        {
            "conv_pw": "conv0.0",
            "bn1": "conv0.1",
            "conv_dw": "conv1.0",
            "bn2": "conv1.1",
            "conv_pwl": "conv2.0",
            "bn3": "conv2.1",
        }
        if expanded
        else {"conv_dw": "conv1.0", "bn1": "conv1.1", "conv_pw": "conv2.0", "bn2": "conv2.1"}
    )
    return f"features.{number}.{names.get(layer, layer)}.{rest}"


def efficientnet_name(key: str, places: dict[tuple[str, str], int]) -> str:
    """Of timm's EfficientNet: the names of the first PyTorch port, which the authors use."""
    outer = {
        "conv_stem.": "_conv_stem.",
        "bn1.": "_bn0.",
        "conv_head.": "_conv_head.",
        "bn2.": "_bn1.",
        "classifier.": "_fc.",
    }
    for ours, theirs in outer.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    stage, block, layer, rest = key.split(".", 4)[1:]
    names = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
    }
    names |= {"bn3": "_bn2"}
    if stage == "0":
        names = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    return f"_blocks.{places[stage, block] - 1}.{names.get(layer, layer)}.{rest}"


def their_tensors(model: nn.Module, network: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our keys with the authors' name and shape."""
    state = model.state_dict()
    last: dict[str, int] = {}
    places: dict[tuple[str, str], int] = {}
    for key in state:
        bridge = re.match(r"(.*\.)(?:se|attn_pre)\.bridges\.(\d)\.", key)
        if bridge is not None:
            last[bridge[1]] = max(int(bridge[2]), last.get(bridge[1], 0))
        block = re.match(r"blocks\.(\d+)\.(\d+)\.", key)
        if block is not None:
            places.setdefault((block[1], block[2]), len(places) + 1)
    tensors = {}
    for key, tensor in state.items():
        name, shape = their_name(key, network, last, places), tuple(tensor.shape)
        if DENSE.search(name):
            shape = shape[:2]
        if re.search(r"\.sge\.(weight|bias)$", name):
            shape = (1, *shape)
        tensors[key] = (name, shape)
    return tensors


@pytest.mark.parametrize("network", KEYS)
def test_names_and_shapes_are_those_of_the_authors_checkpoint(network):
    with torch.device("meta"):
        model = build(network)
    check_listing(model, their_tensors(model, network), KEYS[network])


@pytest.mark.parametrize(
    "network",
    ["ba_resnet18", "ba_resnet50", "ba_resnet18_v2", "ba_resnet50_v2", "ba_mobilenetv3_small", "sge_resnet50"],
)
def test_outputs_are_those_of_the_authors_network(network):
    model = build(network)
    check_outputs(model, their_tensors(model, network), network)


def test_every_network_of_ba_net_with_recorded_outputs_is_compared():
    recorded = {name for name, entry in PARITY.items() if entry["source"] in ("bridge-attention", "ba-v2")}
    assert recorded <= NETWORKS.keys()


SIZES = {
    ("resnet18", "se"): (("bias", False), 11_776_552),
    ("resnet34", "se"): (("bias", False), 21_954_856),
    ("resnet50", "se"): (("bias", False), 28_071_976),
    ("resnet101", "se"): (("bias", False), 49_292_328),
    ("resnet152", "se"): (("bias", False), 66_770_984),
    ("resnet50", "eca"): (("gamma", 2), 25_557_118),
    ("resnet101", "eca"): (("gamma", 2), 44_549_331),
    ("resnet18", "ba"): (("reduction", 16), 11_820_552),
    ("resnet34", "ba"): (("reduction", 16), 22_034_392),
    ("resnet50", "ba"): (("reduction", 16), 28_706_376),
    ("resnet101", "ba"): (("reduction", 16), 50_490_312),
    ("resnext50_32x4d", "ba"): (("unused", True), 28_850_504),
    ("resnet18", "ba_v2"): (("reduction", 16), 11_820_336),
    ("resnet34", "ba_v2"): (("reduction", 16), 22_033_968),
    ("resnet50", "ba_v2"): (("reduction", 16), 28_702_664),
    ("resnet101", "ba_v2"): (("reduction", 16), 50_482_316),
    ("resnext50_32x4d", "ba_v2"): (("reduction", 16), 28_803_272),
}


@pytest.mark.parametrize(("backbone", "name"), SIZES)
def test_sizes_of_the_tables(backbone, name):
    (option, value), expected = SIZES[backbone, name]
    config = groups.load("attention", name)
    config["block"][option] = value
    with torch.device("meta"):
        model = attn.create_model(backbone, config)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_rounded_sizes_of_the_deepest_networks():
    for backbone, name, millions in (("resnet50", "se", 28.09), ("resnet101", "se", 49.33), ("resnet152", "ba", 68.43)):
        with torch.device("meta"):
            model = attn.create_model(backbone, name)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
