"""Options of the computation, together, in the training loop on two ranks, with an attention that talks between them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from fault_harness import Fault, Run, fingerprint, finished
from fault_injection import signal_in_step

import attn
from attn import checkpoint, run, state
from attn.data import evaluation_data
from attn.dist import Ranks
from attn.evaluate import evaluate

# A stage with a softmax over the batch of all ranks: its second computation has collectives in it.
SLOTS = {"ba2m global": ["attention=ba2m", "attention.stage.reduction=4", "attention.stage.batch=global"]}
KILLED_IN = 4  # of six steps
LOOP = ["schedule.ema_decay=0.5", "schedule.accumulate=2", "save_every_steps=1"]


def print_weights() -> None:
    """Each rank prints a sum of its parameters after every epoch."""
    original = state.State.share_buffers

    def share_buffers(self: state.State) -> None:
        sums = hashlib.sha256()
        for parameter in self.model.parameters():
            sums.update(parameter.detach().contiguous().numpy().tobytes())
        print("weights", sums.hexdigest(), flush=True)
        original(self)

    state.State.share_buffers = share_buffers  # type: ignore[method-assign]


def checked(run_dir: Path, *overrides: str, faults: tuple[Fault, ...] = ()) -> None:
    """Kills and continues a run, and checks what holds whatever the options are."""
    killed = Run(run_dir, *overrides, ranks=2, faults=[*faults, signal_in_step(KILLED_IN)])
    assert -9 in killed.wait(), killed.text
    assert checkpoint.read(run_dir / "last.pt")["step"] == KILLED_IN
    done = finished(run_dir, *overrides, ranks=2, faults=[*faults, print_weights])
    printed = [[line for line in path.read_text().splitlines() if line.startswith("weights")] for path in done.outputs]
    assert printed[0] == printed[1] != []

    content = checkpoint.read(run_dir / "last.pt")
    cfg, row = checkpoint.load_config(content, run_dir), run.read_metrics(run_dir)[-1]
    assert checkpoint.non_finite({key: content[key] for key in ("model", "ema", "optimizer")}) is None
    plain = checkpoint.build(cfg)
    for key, prefix in (("model", "val_"), ("ema", "ema_val_")):
        assert list(content[key]) == list(plain.state_dict())
        model = attn.load(run_dir / "last.pt", ema=key == "ema")
        ranks = Ranks(0, 1, torch.device("cpu"))
        scores = evaluate(model, evaluation_data(cfg.data), ranks, 2, 0, cfg.schedule.amp, cfg.channels_last)
        assert scores.loss == pytest.approx(row[f"{prefix}loss"], rel=1e-2 if cfg.schedule.amp else 1e-5)


@pytest.mark.parametrize("slot", SLOTS)
def test_checkpointing_leaves_the_result(tmp_path: Path, slot: str) -> None:
    """Weights, averaged weights, running statistics and metrics are bit for bit those of the plain loop."""
    finished(tmp_path / "plain", *SLOTS[slot], *LOOP, ranks=2)
    checked(tmp_path / "options", *SLOTS[slot], *LOOP, "grad_checkpointing=true")
    assert fingerprint(tmp_path / "options") == fingerprint(tmp_path / "plain")
