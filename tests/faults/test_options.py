"""Options of the computation, together, in the training loop on two ranks, with an attention in every slot."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from fault_harness import TINY, Run, finished
from fault_injection import signal_in_step

import attn
from attn.data.loader import evaluation_data
from attn.distributed import Ranks
from attn.evaluation.evaluate import Settings, evaluate
from attn.runs import checkpoint, load, metrics
from attn.runs.fingerprint import fingerprint

# A norm over vectors, a state from block to block, a convolution, one with its own norm, a softmax over the batch.
SLOTS = {
    "ba": ["attention=ba", "attention.block.reduction=4"],
    "dca_se": ["attention=dca_se", "attention.block.base.reduction=4", "attention.block.reduction=4"],
    "aw": ["attention=aw", "attention.conv.reduction=4"],
    "sk": ["attention=sk", "attention.conv.reduction=4"],
    "ba2m local": ["attention=ba2m", "attention.stage.reduction=4", "attention.stage.batch=local"],
    "ba2m global": ["attention=ba2m", "attention.stage.reduction=4", "attention.stage.batch=global"],
}
# Eight images of 2 x 2 pixels reach the last norm: two of one pixel would make any rounding a different sign.
LOOP = ["schedule.ema_decay=0.5", "schedule.accumulate=2", "data.image_size=64", "data.test_resize=64"]
LOOP += ["data.samples=96", "schedule.batch_size=32"]
# Half as many operators as in TINY's network: what is compiled takes as long as it has operators.
COMPILED = [option for option in TINY if "backbone" not in option]
COMPILED += ["backbone=cifar_preresnet110", "+backbone.depths=[1,1,1]", "+backbone.widths=[8,12,16]"]


@pytest.mark.parametrize("slot", SLOTS)
def test_the_result_is_that_of_the_plain_loop(tmp_path: Path, slot: str) -> None:
    """Checkpointing changes no bit of weights, averages, statistics and metrics; another layout only the rounding."""
    options = [*SLOTS[slot], *LOOP, "schedule.epochs=1"]
    finished(tmp_path / "plain", *options, ranks=2)
    finished(tmp_path / "recomputed", *options, "grad_checkpointing=true", ranks=2)
    finished(tmp_path / "layout", *options, "grad_checkpointing=true", "channels_last=true", ranks=2)
    assert fingerprint(tmp_path / "recomputed") == fingerprint(tmp_path / "plain")
    plain, layout = (checkpoint.read(tmp_path / name / "last.pt") for name in ("plain", "layout"))
    for kind in ("model", "ema"):
        for name, expected in plain[kind].items():
            torch.testing.assert_close(
                layout[kind][name], expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("slot", ["ba", "ba2m global"])
def test_a_killed_run_continues_with_all_of_them(tmp_path: Path, slot: str) -> None:
    """The scale of fp16 comes down by steps without an update first; it is kept too."""
    options = [
        *SLOTS[slot],
        *LOOP,
        "schedule.amp=fp16",
        "grad_checkpointing=true",
        "channels_last=true",
        "save_every_steps=1",
    ]
    finished(tmp_path / "whole", *options, ranks=2)
    killed = Run(tmp_path / "killed", *options, ranks=2, faults=[signal_in_step(4)])
    assert -9 in killed.wait(), killed.text
    assert checkpoint.read(tmp_path / "killed" / "last.pt")["step"] == 4
    finished(tmp_path / "killed", *options, ranks=2)
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")


@pytest.mark.slow
def test_compiled_training_on_two_ranks(tmp_path: Path) -> None:
    """DDP, compilation, EMA, the fp16 scaler, recomputed activations, accumulation and channels_last at once.

    The checkpoint's keys are the plain ones, and the losses are those of eager training up to the rounding of fp16.
    """
    options = [*SLOTS["ba"], *LOOP, "schedule.amp=fp16", "schedule.epochs=4"]
    finished(tmp_path / "plain", *options, base=COMPILED, ranks=2)
    together = ["compile=true", "grad_checkpointing=true", "channels_last=true"]
    done = Run(tmp_path / "run", *options, *together, base=COMPILED, ranks=2)
    assert done.wait(timeout=900) == [0, 0], done.text

    content = checkpoint.read(tmp_path / "run" / "last.pt")
    assert checkpoint.non_finite({key: content[key] for key in ("model", "ema", "optimizer")}) is None
    plain, row = (metrics.read_metrics(tmp_path / name)[-1] for name in ("plain", "run"))
    assert plain["skipped"] == row["skipped"] == 0
    for key in ("train_loss", "val_loss", "ema_val_loss"):
        assert row[key] == pytest.approx(plain[key], rel=0.02)
    cfg = load.load_config(content, tmp_path)
    for kind, prefix in (("model", "val_"), ("ema", "ema_val_")):
        assert list(content[kind]) == list(load.build(cfg).state_dict())
        model = attn.load(tmp_path / "run" / "last.pt", ema=kind == "ema")
        scores = evaluate(
            model, evaluation_data(cfg.data), Ranks(0, 1, torch.device("cpu")), Settings(16, amp="fp16", channels_last=True)
        )
        assert scores.loss == pytest.approx(row[f"{prefix}loss"], rel=1e-2)


def test_keys_are_those_of_timm(tmp_path: Path) -> None:
    base = [option for option in TINY if not option.startswith("attention=")] + ["attention=none"]
    options = ["schedule.ema_decay=0.5", "schedule.amp=bf16", "grad_checkpointing=true", "channels_last=true"]
    finished(tmp_path / "run", *options, "compile=true", base=base, ranks=2, env={"TORCHDYNAMO_DISABLE": "1"})
    content = checkpoint.read(tmp_path / "run" / "last.pt")
    plain = timm.create_model("resnet10t", num_classes=8, channels=[8, 12, 16, 24], stem_width=8)
    for kind in ("model", "ema"):
        assert list(content[kind]) == list(plain.state_dict())
        plain.load_state_dict(content[kind], strict=True)
