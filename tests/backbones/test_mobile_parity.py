"""DCANet's mobile networks and ours: the same outputs for the same weights. Names and shapes: test_convert.py."""

from __future__ import annotations

from pathlib import Path

from parity import PARITY, check_outputs


def test_outputs_are_those_of_the_authors_network(tmp_path: Path) -> None:
    check_outputs("dca_se_mobilenet_v2", tmp_path)


def test_every_mobile_network_of_dcanet_with_recorded_outputs_is_compared() -> None:
    recorded = {name for name, entry in PARITY.items() if entry["source"] == "dcanet" and "resnet" not in name}
    assert recorded == {"dca_se_mobilenet_v2"}
