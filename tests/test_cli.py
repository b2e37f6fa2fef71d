"""What a user may mistype gets one line that names it and what would be right, before any work starts."""

from __future__ import annotations

import pytest
from commands import TINY, call

MISTAKES = {
    "attention=baa": ["unknown attention 'baa'", "did you mean 'ba'?", "strip"],
    "backbone=resnet5": ["unknown backbone 'resnet5'", "resnet50"],
    "backbone.name=resnet5": ["unknown backbone 'resnet5'", "resnet50"],
    "backbone.name=vit_tiny_patch16_224 attention=se": ["VisionTransformer", "no slots", "ResNet"],
    "schedule=cosin": ["unknown schedule 'cosin'", "default"],
    "schedule.epoch=3": ["unknown key 'schedule.epoch'", "did you mean 'schedule.epochs'?"],
    "shedule=quick": ["unknown key 'shedule'", "did you mean 'schedule'?"],
    "attention=ba attention.block.reductio=4": ["unknown key 'attention.block.reductio'", "attention.block.reduction"],
    "attention=ba +attention.block.ratio=4": ["BA", "ratio", "reduction"],
    "attention=ba attention.block.reduction=9999": ["reduction=9999", "between 1 and"],
    "attention=ba attention.position=begin": ["position='begin'", "native"],
    "attention=se attention.sites=native": ["ResNet", "sites=native"],
    "schedule.epochs=three": ["schedule.epochs", "'three'", "Integer"],
    "schedule.epochs=0": ["schedule.epochs=0", "greater than 0"],
    "schedule.lr=-1": ["schedule.lr=-1", "greater than 0"],
    "schedule.label_smoothing=2": ["schedule.label_smoothing=2", "between 0 and 1"],
    "schedule.amp=bf8": ["schedule.amp=bf8", "bf16"],
    "schedule.warmup_epochs=200": ["warmup_epochs=200", "schedule.epochs"],
    "schedule.batch_size=100000": ["batch_size=100000", "training images"],
    "schedule.accumulate=7": ["batch_size=64", "multiple of 7"],
    "schedule.sync_bn=true": ["sync_bn", "GPU"],
    "data.num_classes=7": ["num_classes=7", "10 classes"],
    "data=imagenet data.root=/no/such/folder": ["data.root=/no/such/folder", "no such folder"],
    "data=timm": ["data.dataset"],
    "device=cuda": ["device=cuda", "no CUDA device"],
    "resume=/no/such/file.pt": ["resume=/no/such/file.pt", "no such file"],
    "schedule=x=y": ["schedule=x=y", "key=value"],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_by_one_line(mistake: str, in_process, tmp_path) -> None:
    import torch

    if mistake == "device=cuda" and torch.cuda.is_available():
        mistake, parts = "device=gpu", ["device=gpu", "cuda"]
    else:
        parts = MISTAKES[mistake]
    result = in_process(["train.py", *TINY, f"run_dir={tmp_path / 'run'}", *mistake.split()])
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    for part in parts:
        assert part in result.stderr


def test_the_batch_must_fit_the_ranks(train) -> None:
    result = train("schedule.batch_size=63", ranks=2, ok=False)
    assert result.returncode != 0
    assert result.stderr.count("error: schedule.batch_size=63 cannot be shared by 2 ranks") == 1


def test_evaluation_names_an_unreadable_checkpoint(tmp_path, in_process) -> None:
    garbage = tmp_path / "garbage.pt"
    garbage.write_bytes(b"no checkpoint")
    for path, part in (
        (garbage, "truncated, or no checkpoint"),
        (tmp_path / "none.pt", "no such file"),
        (tmp_path, "is a folder"),
    ):
        result = in_process(["eval.py", f"checkpoint={path}"])
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert part in result.stderr


def test_evaluation_needs_a_checkpoint() -> None:
    result = call(["eval.py"])
    assert result.returncode == 2
    assert "checkpoint must be set" in result.stderr


def test_help_and_config_need_no_training() -> None:
    for script in ("train.py", "eval.py"):
        shown = call([script, "--help"])
        assert shown.returncode == 0
        assert "== Groups" in shown.stdout
    composed = call(["train.py", "attention=ba", "--cfg", "job"])
    assert composed.returncode == 0
    assert "_target_: attn.modules.ba.BA" in composed.stdout
