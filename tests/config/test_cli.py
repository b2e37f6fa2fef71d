"""What a user may mistype gets one line that names it and what would be right, before any work starts."""

from __future__ import annotations

import pytest
from commands import TINY, call

from attn.config import command_line

MISTAKES = {
    "attention=baa": ["unknown attention 'baa'", "did you mean 'ba'?", "strip"],
    "backbone=resnet5": ["unknown backbone 'resnet5'", "resnet50"],
    "backbone.name=resnet5": ["unknown backbone 'resnet5'", "resnet50"],
    "backbone.name=mixer_s32_224 attention=se": ["MlpMixer", "no slots", "ResNet"],
    "schedule=cosin": ["unknown schedule 'cosin'", "default"],
    "schedule.epoch=3": ["unknown key 'schedule.epoch'", "did you mean 'schedule.epochs'?"],
    "shedule=quick": ["unknown key 'shedule'", "did you mean 'schedule'?"],
    "attention=ba attention.block.reductio=4": ["unknown key 'attention.block.reductio'", "attention.block.reduction"],
    "attention=ba +attention.block.ratio=4": ["BA", "ratio", "reduction"],
    "attention=ba attention.block.reduction=9999": ["reduction=9999", "between 1 and"],
    "attention=ba attention.position=begin": ["position='begin'", "native"],
    "attention=se attention.sites=native": ["ResNet", "sites=native"],
    "schedule.epochs=three": ["schedule.epochs=three", "an integer"],
    "schedule.epochs=0": ["schedule.epochs=0", "greater than 0"],
    "schedule.lr=-1": ["schedule.lr=-1", "greater than 0"],
    "schedule.label_smoothing=2": ["schedule.label_smoothing=2", "below 1"],
    "schedule.amp=bf8": ["schedule.amp=bf8", "bf16"],
    "schedule.warmup_epochs=200": ["warmup_epochs=200", "schedule.epochs"],
    "schedule.batch_size=100000": ["batch_size=100000", "training images"],
    "schedule.batch_size=1": ["schedule.batch_size=1", "one image", "more than 1 value per channel"],
    "schedule.accumulate=7": ["batch_size=64", "multiple of 7"],
    "schedule.sync_bn=true": ["sync_bn", "GPU"],
    "data.num_classes=7": ["num_classes=7", "10 classes"],
    "data=imagenet data.root=/no/such/folder": ["data.root=/no/such/folder", "no such folder"],
    "data=timm": ["data.dataset"],
    "device=cuda": ["device=cuda", "no CUDA device"],
    "resume=/no/such/file.pt": ["resume=/no/such/file.pt", "no such file"],
    "schedule=x=y": ["schedule=x=y", "key=value"],
    "attention=null": ["attention=null", "attention=NAME", "strip"],
    "attention=[se]": ["attention=[se]", "attention=NAME"],
    "~data": ["~data", "data=NAME", "digits"],
    "--attention se": ["--attention", "without dashes"],
    "lr=0.2": ["unknown key 'lr'", "did you mean 'schedule.lr'?"],
    "+schedule.warm=3": ["unknown key 'schedule.warm'", "schedule.warmup_lr"],
    "schedule.lr=0.1,0.2": ["schedule.lr=0.1,0.2", "-m"],
    "schedule.lr=inf": ["schedule.lr=inf", "finite"],
    "schedule.betas=0.9": ["schedule.betas=0.9", "a list of numbers"],
    "schedule.milestones=[30,x]": ["schedule.milestones[1]=x", "an integer"],
    "schedule.milestones=[-1]": ["schedule.milestones=[-1]", "1 or more"],
    "schedule.nesterov=true schedule.momentum=0": ["schedule.nesterov=true", "schedule.momentum"],
    "schedule.warmup_lr=10": ["schedule.warmup_lr=10", "schedule.lr"],
    "schedule.mixup=0.2 schedule.batch_size=63": ["schedule.batch_size=63", "even"],
    "run_dir=": ["run_dir=", "empty"],
    "data.std=[1,0,1]": ["data.std", "greater than 0"],
    "data.crop_scale=[0.5,3]": ["data.crop_scale", "at most 1"],
    "data.test_resize=16": ["data.test_resize=16", "data.image_size=32"],
    "data.auto_augment=foo": ["data.auto_augment=foo", "rand-m9"],
    "data=timm data.dataset=torch/cifar10": ["data.dataset=torch/cifar10", "needs data.root"],
    "data.image_size=32 backbone.name=swin_tiny_patch4_window7_224": ["data.image_size=32", "swin", "224"],
    "backbone.name=50": ["backbone.name=50", "backbone=resnet50"],
    "backbone.name=resnet50.nope": ["resnet50.nope", "Invalid pretrained tag"],
    "+backbone.drop_path_rate=2": ["drop_path_rate=2", "below 1"],
    "+backbone.num_classes=3": ["backbone.num_classes", "data.num_classes"],
    "attention=se attention.block.reduction=0": ["reduction=0", "between 1 and"],
    "attention=se attention.block.bias=maybe": ["bias='maybe'", "true or false"],
    "attention=se attention.block._target_=3": ["attention.block._target_=3", "attn.modules.se.SE"],
    "attention=se +attention.block.stages=2": ["stages=2", "a list"],
    "attention=dca_se attention.block.base=se": ["base='se'", "_target_"],
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
    assert result.stdout.count("\n") <= 1  # what it was about to train
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    for part in parts:
        assert part in result.stderr


def test_the_batch_must_fit_the_ranks(train) -> None:
    result = train("schedule.batch_size=63", ranks=2, ok=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: schedule.batch_size=63 cannot be shared by 2 ranks")


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


EVALUATION_MISTAKES = {
    "": ["checkpoint must be set"],
    "checkpoint=": ["checkpoint=", "empty"],
    "checkpoint=null": ["checkpoint=null", "a string"],
    "checkpoint=x.pt weights=avg": ["weights=avg", "auto, ema, raw"],
    "checkpoint=x.pt device=gpu": ["device=gpu", "cuda"],
    "checkpoint=x.pt batch_size=2.5": ["batch_size=2.5", "an integer"],
    "checkpoint=x.pt inference=on": ["inference=on", "off, softmax, sar"],
    "checkpoint=x.pt output=/tmp": ["output=/tmp", "a folder"],
    "checkpoint=x.pt +foo=1": ["unknown key 'foo'", "weights"],
    "checkpoint=x.pt attention=se": ["unknown key 'attention'", "checkpoint"],
    "checkpoint=x.pt data=null": ["data=null", "imagenet"],
}


@pytest.mark.parametrize("mistake", EVALUATION_MISTAKES)
def test_a_mistake_in_an_evaluation_is_answered_by_one_line(mistake: str, in_process) -> None:
    result = in_process(["eval.py", *mistake.split()])
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    for part in EVALUATION_MISTAKES[mistake]:
        assert part in result.stderr


def test_a_foreign_checkpoint_is_named(tmp_path, in_process) -> None:
    import torch

    for content in ({"model": {}}, {"model": 3, "config": {}}, {"model": {}, "config": None}):
        torch.save(content, tmp_path / "foreign.pt")
        result = in_process(["eval.py", f"checkpoint={tmp_path / 'foreign.pt'}"])
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "is not one of train.py" in result.stderr


def test_classes_of_train_and_val_must_agree(tmp_path, in_process) -> None:
    from PIL import Image

    for folder in ("train/cat", "train/dog", "val/cat", "val/elk"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{i}.png")
    here = [*TINY, f"run_dir={tmp_path / 'run'}", "schedule.batch_size=4", "data.workers=0", f"data.root={tmp_path}"]
    result = in_process(["train.py", *here, "data=imagenet", "data.num_classes=2"])
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "dog" in result.stderr
    assert "labels would not agree" in result.stderr
    result = in_process(
        ["train.py", *here, "data=timm", "data.dataset=folder", "data.val_split=train", "data.num_classes=3"]
    )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "set data.num_classes=2" in result.stderr


def test_help_and_config_need_no_training() -> None:
    for script in ("train.py", "eval.py"):
        shown = call([script, "--help"])
        assert shown.returncode == 0
        assert "Groups: choose one of each" in shown.stdout
    composed = call(["train.py", "attention=ba", "--cfg", "job"])
    assert composed.returncode == 0
    assert "_target_: attn.modules.ba.BA" in composed.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["attention=se", "-m", "data=digits"], ["-m", "attention=se", "data=digits"]),
        (["attention=se", "--cfg", "job", "data=digits"], ["--cfg", "job", "attention=se", "data=digits"]),
        (["seed=1", "seed=1", "--config-dir=a"], ["--config-dir=a", "seed=1", "seed=1"]),
    ],
)
def test_options_may_stand_between_keys(arguments: list[str], expected: list[str]) -> None:
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    assert command_line.options_first(arguments, overrides) == expected
