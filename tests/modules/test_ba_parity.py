"""The authors' BA-Net and BA-Net v2, and ours: the same outputs, the tables' sizes. Names and shapes: test_convert.py."""

from __future__ import annotations

import pytest
import torch
from parity import PARITY, check_outputs, recorded

import attn
from attn.config import groups

NETWORKS = [*recorded("bridge-attention"), *recorded("ba-v2")]


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_are_those_of_the_authors_network(network, tmp_path):
    check_outputs(network, tmp_path)


def test_every_network_of_ba_net_with_recorded_outputs_is_compared():
    with_outputs = [name for name, entry in PARITY.items() if entry["source"] in ("bridge-attention", "ba-v2")]
    assert len(NETWORKS) == len(with_outputs) == 5


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
