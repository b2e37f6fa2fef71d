"""The DCANet authors' networks and ours: the same outputs for the same weights. Names and shapes: test_convert.py."""

from __future__ import annotations

import pytest
from parity import PARITY, check_outputs, recorded

NETWORKS = [name for name in recorded("dcanet") if "resnet" in name]


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_are_those_of_the_authors_network(network, tmp_path):
    check_outputs(network, tmp_path)


def test_every_resnet_of_dcanet_with_recorded_outputs_is_compared():
    with_outputs = [name for name, entry in PARITY.items() if entry["source"] == "dcanet" and "resnet" in name]
    assert len(NETWORKS) == len(with_outputs) == 9
