"""The DCANet authors' networks and ours: the same names and shapes, and the same outputs for the same weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from parity import PARITY, check_listing, check_outputs, recorded_keys
from torch import nn

import attn
from attn.config import groups

KEYS = recorded_keys("dcanet")

# What stands in our block's slot, and what the authors' block calls it.
SE_NAMES = {r"fc1": "se.fc.0", r"fc2": "se.fc.2"}
JOIN = {
    r"connect\.alpha_beta": "conv.0.weight",
    r"connect\.bias": "conv.0.bias",
    r"connect\.norm": "conv.1",
    r"match": "att_fc",
}
DCA_SE_NAMES = {rf"base\.{k}": v for k, v in SE_NAMES.items()} | {k: f"se.{v}" for k, v in JOIN.items()}
DCA_GE_NAMES = {k: f"ge.{v}" for k, v in JOIN.items()}
SK_NAMES = {
    r"branches\.0\.0": "conv2",
    r"branches\.0\.1": "bn2",
    r"branches\.1\.0": "conv2g",
    r"branches\.1\.1": "bn2g",
    r"fc1": "conv_fc1",
    r"norm": "bn_fc1",
    r"fc2": "conv_fc2",
}
DCA_SK_NAMES = {rf"base\.{k}": v for k, v in SK_NAMES.items()}
for ours, theirs in (("0", "1"), ("1", "2")):
    DCA_SK_NAMES[rf"connects\.{ours}\.alpha_beta"] = f"att_conv{theirs}.0.weight"
    DCA_SK_NAMES[rf"connects\.{ours}\.bias"] = f"att_conv{theirs}.0.bias"
    DCA_SK_NAMES[rf"connects\.{ours}\.norm"] = f"att_conv{theirs}.1"
    DCA_SK_NAMES[rf"matches\.{ours}"] = f"att_fc_{theirs}"
GC_NAMES = {r"key": "conv_mask", r"fc1": "channel_add_conv.0", r"norm": "channel_add_conv.1", r"fc2": "channel_add_conv.3"}
DCA_GC_NAMES = {rf"base\.{k}": f"rgc.{v}" for k, v in GC_NAMES.items()} | {r"weight": "rgc.weight", r"match": "rgc.att_fc"}
CBAM_NAMES = {
    r"channel\.mlps\.0\.0": "cbam.ChannelGate.mlp.1",
    r"channel\.mlps\.0\.2": "cbam.ChannelGate.mlp.3",
    r"spatial\.conv": "cbam.SpatialGate.spatial.conv",
    r"spatial\.norm": "cbam.SpatialGate.spatial.bn",
}
DCA_CBAM_NAMES = {rf"base\.{k}": v for k, v in CBAM_NAMES.items()} | {
    r"match": "cbam.ChannelGate.att_fc",
    r"connect\.alpha_beta": "cbam.ChannelGate.alpha.0.weight",
    r"connect\.norm": "cbam.ChannelGate.alpha.1",
    r"connect_spatial\.norm": "cbam.SpatialGate.bnrelu.0",
    r"connect_spatial": "cbam.SpatialGate",
}

OF_AUTHORS: dict[str, dict[str, Any]] = {"unused": True}
ONE_FC = {**OF_AUTHORS, "matching": "1fc"}
# Backbone, attention, options, names.
NETWORKS: dict[str, tuple[str, str, dict[str, Any], dict[str, str]]] = {
    "se_resnet50": ("resnet50", "se", {}, SE_NAMES),
    "sk2_resnet50": ("resnet50", "sk", {"min_width": 1}, SK_NAMES),
    "sk_resnet50": ("resnet50", "sk", {"min_width": 1, "groups": [None, 32], "dilations": [1, 1]}, SK_NAMES),
    "gc_resnet50": ("resnet50", "gc", {}, {k: f"gc.{v}" for k, v in GC_NAMES.items()}),
    "cbam_resnet50": ("resnet50", "cbam", {}, CBAM_NAMES),
    "dca_se_resnet50": ("resnet50", "dca_se", ONE_FC, DCA_SE_NAMES),
    "dca_se_resnet50_2fc": ("resnet50", "dca_se", OF_AUTHORS, DCA_SE_NAMES),
    "dca_se_resnet18": ("resnet18", "dca_se", ONE_FC, DCA_SE_NAMES),
    "dca_se_resnet34": ("resnet34", "dca_se", ONE_FC, DCA_SE_NAMES),
    "dca_se_resnet101": ("resnet101", "dca_se", ONE_FC, DCA_SE_NAMES),
    "dca_se_resnet101_2fc": ("resnet101", "dca_se", OF_AUTHORS, DCA_SE_NAMES),
    "dca_se_resnet152": ("resnet152", "dca_se", ONE_FC, DCA_SE_NAMES),
    "dca_se_resnet152_2fc": ("resnet152", "dca_se", OF_AUTHORS, DCA_SE_NAMES),
    "dca_sk2_resnet50": ("resnet50", "dca_sk", OF_AUTHORS, DCA_SK_NAMES),
    "dca_ge_resnet50": ("resnet50", "dca_ge", ONE_FC, DCA_GE_NAMES),
    "dca_ge_resnet50_2fc": ("resnet50", "dca_ge", OF_AUTHORS, DCA_GE_NAMES),
    "dca_gc_resnet50": ("resnet50", "dca_gc", OF_AUTHORS, DCA_GC_NAMES),
    "dca_cbam_resnet50": ("resnet50", "dca_cbam", {**OF_AUTHORS, "matching_bias": True}, DCA_CBAM_NAMES),
}


def build(network: str) -> nn.Module:
    backbone, name, options, _ = NETWORKS[network]
    config = groups.load("attention", name)
    (slot,) = {"conv", "block"} & config.keys()
    config[slot] |= options
    return attn.create_model(backbone, config)


def their_name(key: str, names: dict[str, str]) -> str:
    """The authors' name of one of our tensors; what is timm's own has the same name in both."""
    holder = "conv2" if names in (SK_NAMES, DCA_SK_NAMES) else "se"
    for ours, theirs in names.items():
        renamed, count = re.subn(rf"^(layer\d+\.\d+\.){holder}\.{ours}(?=\.|$)", rf"\g<1>{theirs}", key)
        if count:
            return renamed
    return key


def their_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The authors' shape of a tensor that they call `name`; ours has as many elements in the same order."""
    dense = shape[:2]
    if re.search(r"\.se\.fc\.\d\.weight$", name):
        return dense
    if re.search(r"\.(conv_fc\d|gc\.channel_add_conv\.[03]|rgc\.channel_add_conv\.[03]|rgc\.att_fc\.[03])\.weight$", name):
        return (*dense, 1, 1)
    if re.search(r"gc\.(channel_add_conv|att_fc)\.1\.(weight|bias)$", name):
        return (*shape, 1, 1)
    if re.search(r"\.(se\.conv|ge\.conv|att_conv\d|ChannelGate\.alpha)\.0\.weight$", name):
        return (1, 2, 1, 1)
    if re.search(r"(\.conv\.0\.bias|\.att_conv\d\.0\.bias|\.p[12]|\.rgc\.weight)$", name):
        return (1,)
    return shape


def their_tensors(model: nn.Module, names: dict[str, str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our keys with the authors' name and shape."""
    tensors = {}
    for key, tensor in model.state_dict().items():
        name = their_name(key, names)
        tensors[key] = (name, their_shape(name, tuple(tensor.shape)))
    return tensors


@pytest.mark.parametrize("network", NETWORKS)
def test_names_and_shapes_are_those_of_the_authors_checkpoint(network):
    with torch.device("meta"):
        model = build(network)
    check_listing(model, their_tensors(model, NETWORKS[network][3]), KEYS[network])


@pytest.mark.parametrize("network", [name for name in PARITY if name in NETWORKS])
def test_outputs_are_those_of_the_authors_network(network):
    model = build(network)
    check_outputs(model, their_tensors(model, NETWORKS[network][3]), network)


def test_every_resnet_of_dcanet_with_recorded_outputs_is_compared():
    recorded = {name for name, entry in PARITY.items() if entry["source"] == "dcanet" and name.endswith("resnet50")}
    assert recorded - NETWORKS.keys() <= {"sge_resnet50"}  # compared with SGE's own tests
