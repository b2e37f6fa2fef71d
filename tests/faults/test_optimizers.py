"""A run with an optimizer of timm that was killed and continued is the uninterrupted run, whatever its state is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_harness import TINY, Run, finished
from fault_injection import signal_in_step

from attn.runs.fingerprint import fingerprint

# A counter in the groups, flags and names in the state, foreach, a type in the groups.
OPTIMIZERS = {
    "lamb": ["+schedule.optimizer_options.trust_clip=true"],
    "muon": ["schedule.no_decay=[norm,bias]"],
    "adopt": ["+schedule.optimizer_options.foreach=true"],
    "adafactorbv": [],
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_killed_and_continued(tmp_path: Path, name: str) -> None:
    options = [f"schedule.optimizer={name}", "schedule.lr=0.01", *OPTIMIZERS[name], "save_every_steps=1"]
    finished(tmp_path / "whole", *options, base=TINY)
    assert Run(tmp_path / "run", *options, base=TINY, faults=[signal_in_step(4)]).wait() == [-9]
    again = finished(tmp_path / "run", *options, base=TINY)
    assert "at step 4 of 6" in again.text
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")


def test_force_cannot_take_the_state_of_a_relative(tmp_path: Path) -> None:
    """Adam and NAdam have states of other names under groups of nearly the same ones."""
    finished(tmp_path / "run", "schedule.optimizer=adam", "schedule.lr=0.01", "schedule.epochs=1")
    other = Run(tmp_path / "run", "schedule.optimizer=adamw", "schedule.lr=0.01", "force=true")
    assert other.wait() == [2]
    assert "holds the state of another optimizer" in other.text
