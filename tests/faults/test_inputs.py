"""What users type, and what their machines and folders hold: each answered by one line that names it, before any work.

To add an input, add a line to the table: environment variables, the command, and what the line must say.
"""

from __future__ import annotations

import os
import pickle
import re
import shlex
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import ROOT, TINY, Command, call_fresh
from fault_harness import TINY as LOOP
from fault_harness import Run
from fault_injection import slow_steps
from PIL import Image

import attn
from attn.config.command_line import quoted
from attn.config.parse import parse
from attn.config.schema import Data
from attn.console import told_if_slow
from attn.data.imagefolder import Folder, NotAFile, UnreadableImage, read_bytes, read_rgb
from attn.data.loader import Seeded
from attn.data.transforms import eval_transform
from attn.errors import UserError
from attn.runs import checkpoint, directory
from attn.runs.steps import read_steps, rewind_steps
from attn.tables.runs import find_runs

# Options of train.py: what the one line must contain. {tmp} is a fresh folder. The exit code is 2.
TRAIN: dict[str, list[str]] = {
    # timm parses these late, each in another way
    "+backbone.act_layer=silly": ["act_layer='silly'", "KeyError"],
    "+backbone.norm_layer=silly": ["norm_layer='silly'"],
    "+backbone.layers=[1,1,1]": ["resnet10t", "layer4"],
    "+backbone.layers=3": ["layers=3", "a list of integers"],
    "+backbone.layers=[100000,1,1,1]": ["layers=[100000", "at most 2000"],
    "data.samples=1000000000000": ["data.samples=1000000000000", "at most"],
    "+backbone.output_stride=7": ["output_stride=7", "it expects output_stride in (8, 16, 32)"],
    "+backbone.block=foo": ["block='foo'"],
    "+backbone.stem_width=0": ["resnet10t"],
    "+backbone.stem_width=-1": ["stem_width=-1", "greater than 0"],
    "+backbone.channels=abc": ["channels='abc'"],
    "+backbone.checkpoint_path=/nope": ["backbone.checkpoint_path", "cannot be set"],
    "+backbone.global_pool=silly": ["global_pool='silly'"],
    "+backbone.block_args=3": ["block_args=3"],
    "backbone.name=convnext_atto +backbone.depths=[1,1]": ["depths=[1, 1]", "IndexError"],
    "backbone.name=efficientnet_b0 +backbone.act_layer=silly": ["act_layer='silly'"],
    "backbone.name=regnety_002 +backbone.output_stride=7": ["output_stride=7", "it expects"],
    "backbone.name=swin_tiny_patch4_window7_224 +backbone.depths=3": ["depths=3"],
    "+backbone.channels=[100000,100000,100000,100000]": ["channels=[100000", "memory"],
    "+backbone.foo=3": ["unknown option 'foo'", "stem_width"],
    "+backbone.device=cpu": ["backbone.device", "cannot be set"],
    # the launcher's environment
    "RANK=abc": ["RANK=abc", "an integer"],
    "RANK=3": ["RANK=3", "between 0 and 0"],
    "RANK=-1": ["RANK=-1"],
    "WORLD_SIZE=two": ["WORLD_SIZE=two", "1 or more"],
    "WORLD_SIZE=0": ["WORLD_SIZE=0", "1 or more"],
    "LOCAL_RANK=x": ["LOCAL_RANK=x", "0 or more"],
    "WORLD_SIZE=2": ["WORLD_SIZE=2", "MASTER_ADDR is not set", "torchrun"],
    "WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=abc": ["MASTER_PORT=abc", "65535"],
    "WORLD_SIZE=2 RANK=5 MASTER_ADDR=localhost MASTER_PORT=29999": ["RANK=5", "between 0 and 1"],
    "WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=29987 dist_timeout=1": ["rank 0 of 2", "localhost:29987", "1/2"],
    # the command line itself
    "HYDRA_FULL_ERROR=0 foo=3": ["unknown key 'foo'"],
    "HYDRA_FULL_ERROR=false foo=3": ["unknown key 'foo'"],
    "-m --cfg job": ["-m", "--cfg"],
    "--cfg silly": ["--cfg", "'silly'", "job"],
    "--cfg": ["--cfg", "expected one argument"],
    "--resolve": ["--resolve", "--cfg job"],
    "--config-name nope": ["unknown config 'nope'"],
    "--config-dir /nope": ["--config-dir /nope", "no such folder"],
    "--config-path /nope": ["--config-path /nope", "no such folder"],
    "--shell-completion": ["--shell-completion", "install=SHELL"],
    "hydra.run.dir=/proc/x": ["/proc/x"],
    "hydra/launcher=foo": ["hydra/launcher", "foo"],
    "hydra.mode=foo": ["hydra.mode=foo", "MULTIRUN"],
    "hydra.searchpath=[file:///nope]": ["/nope", "no such folder"],
    "--package x --cfg job": ["--package x", "no such part"],
    "--cfg hydra --package launcher.x": ["--package launcher.x", "no such part"],
    "=3": ["=3", "has no key"],
    "schedule=3": ["schedule=3", "default"],
    "+attention=se": ["+attention=se", "name one attention"],
    "attention=/etc/passwd": ["attention=/etc/passwd", "not a path"],
    "attention=../data/digits": ["attention=../data/digits", "not a path"],
    "attention=se attention.block._target_=os.system": ["attention.block: os.system is not a subclass"],
    "+attention.sites=native": ["attention.sites", "without the +"],
    "~data.mean": ["~data.mean", "data.mean=VALUE"],
    "~seed": ["~seed", "seed=VALUE"],
    "data.root=${nope}": ["data.root", "nope", "plain value"],
    "data.root=${oc.env:NOPE_NOT_SET}": ["data.root", "NOPE_NOT_SET"],
    "logger.csv=3": ["logger.csv=3", "true or false"],
    "force=2.0": ["force=2.0", "true or false"],
    "logger.wandb_project=a/b": ["logger.wandb_project=a/b", "128 characters"],
    "logger.wandb_project=": ["logger.wandb_project="],
    "schedule.curve=step schedule.milestones=[30,10]": ["schedule.milestones=[30, 10]", "increasing"],
    "schedule.curve=step schedule.milestones=[]": ["schedule.milestones=[]", "constant"],
    "schedule.gamma=1e300": ["schedule.gamma=1e+300", "at most 10"],
    "data.samples=100": ["data.samples=100", "only fake does"],
    # numbers that are none
    "data.mean=[nan,0,0]": ["data.mean=[nan, 0.0, 0.0]", "finite"],
    "data.std=[inf,1,1]": ["data.std=[inf, 1.0, 1.0]", "finite"],
    "data.std=[1e-40,1,1]": ["data.std=[1e-40, 1.0, 1.0]", "at least 0.0001"],
    "data.crop_scale=[nan,1]": ["data.crop_scale", "finite"],
    "schedule.betas=[nan,0.9]": ["schedule.betas", "finite"],
    "data.workers=500": ["data.workers=500", "cores"],
    # paths
    "data=imagenet data.root=~/no/such": ["data.root=~/no/such", "no such folder"],
    "data=imagenet data.root=~nobody-of-this-name/x": ["data.root=~nobody-of-this-name/x", "no user"],
    "run_dir=~nobody-of-this-name/x": ["run_dir=~nobody-of-this-name/x", "no user"],
    "init=~nobody-of-this-name/x": ["init=~nobody-of-this-name/x", "no user"],
    "run_dir=/etc/passwd": ["run_dir=/etc/passwd", "a file is there"],
    "data=imagenet data.root={tmp}": ["{tmp}/train: no such folder", "one folder per class"],
    "data=imagenet data.root=/tmp/a=b": ["data.root=/tmp/a=b", "no such folder"],
    "data=imagenet 'data.root=/tmp/(a b)'": ["data.root=/tmp/(a b)", "no such folder"],
    "data=imagenet 'data.root=/tmp/a:{b}'": ["data.root=/tmp/a:{b}", "no such folder"],
    "data=cifar100 data.root={tmp}/cifar": ["{tmp}/cifar", "cannot be read", "unpack"],
    "data=timm data.dataset=torch/flowers102 data.root={tmp}": ["torch/flowers102", "Unknown torchvision dataset"],
    "data=timm data.dataset=3": ["data.dataset=3", "folder, tar, or"],
    "data=timm data.dataset=tar/foo data.root={tmp}": ["data.dataset=tar/foo", "folder, tar, or"],
    "data=timm data.dataset=/etc/passwd data.root={tmp}": ["data.dataset=/etc/passwd", "folder, tar, or"],
    "data=timm data.dataset=torch/ data.root={tmp}": ["data.dataset=torch/", "timm cannot open"],
}

# Options of a backbone, by their network: what timm would take silently, and what the line must say.
BACKBONE: dict[tuple[str, str], str] = {
    ("resnet18", "{stem_type: foo}"): "stem_type='foo' must be one of '', 'deep', 'deep_tiered'",
    ("resnet18", "{avg_down: 3}"): "avg_down=3 must be true or false",
    ("resnet18", "{avg_down: 'yes'}"): "avg_down='yes' must be true or false",
    ("resnet18", "{zero_init_last: foo}"): "zero_init_last='foo' must be true or false",
    ("resnet18", "{replace_stem_pool: 0}"): "replace_stem_pool=0 must be true or false",
    ("resnet18", "{down_kernel_size: -3}"): "down_kernel_size=-3 must be greater than 0",
    ("resnet18", "{scriptable: foo}"): "scriptable='foo' must be true or false",
    ("resnet18", "{exportable: foo}"): "exportable='foo' must be true or false",
    ("resnet18", "{no_jit: 3}"): "no_jit=3 must be true or false",
    ("resnet18", "{pretrained_strict: foo}"): "pretrained_strict='foo' must be true or false",
    ("resnet18", "{layers: [1, 1, 1, 1, 1]}"): "at most 4 stages",
    ("resnet18", "{layers: [0, 1, 1, 1]}"): "layers=[0, 1, 1, 1] must be greater than 0",
    ("resnet18", "{layers: [true, 1, 1, 1]}"): "must be a list of integers",
    ("resnet18", "{stem_width: 3.5}"): "stem_width=3.5 must be an integer",
    ("resnet18", "{drop_path_rate: 1}"): "drop_path_rate=1 must be a number, 0 or more and below 1",
    ("resnet18", "{drop_block_rate: .nan}"): "drop_block_rate=nan must be finite",
    ("convnext_atto", "{depths: [1, 1, 1, 1, 1]}"): "at most 4 stages",
    ("convnext_atto", "{ls_init_value: -1}"): "ls_init_value=-1 must be 0 or more",
    ("convnext_atto", "{use_grn: foo}"): "use_grn='foo' must be true or false",
    ("efficientnet_b0", "{pad_type: foo}"): "pad_type='foo' must be one of",
    ("efficientnet_b0", "{bn_momentum: 2}"): "bn_momentum=2 must be greater than 0, and at most 1",
    ("efficientnet_b0", "{bn_eps: 0}"): "bn_eps=0 must be greater than 0",
    ("mobilenetv3_small_100", "{head_bias: foo}"): "head_bias='foo' must be true or false",
    ("regnety_002", "{se_ratio: -1}"): "se_ratio=-1 must be 0 or more",
    ("regnety_002", "{preact: 3}"): "preact=3 must be true or false",
    ("swin_tiny_patch4_window7_224", "{mlp_ratio: 0}"): "mlp_ratio=0 must be greater than 0",
    ("vit_tiny_patch16_224", "{attn_drop_rate: 2}"): "attn_drop_rate=2 must be a number",
    ("vit_tiny_patch16_224", "{weight_init: foo}"): "weight_init='foo' must be one of",
    ("densenet121", "{stem_type: foo}"): "stem_type='foo' must be one of",
    ("pvt_v2_b0", "{sr_ratios: [0, 0, 0, 0]}"): "must be greater than 0",
    ("cifar_resnet18", "{conv_bias: foo}"): "conv_bias='foo' must be true or false",
    ("cifar_shufflenetv2", "{repeats: [0, 1, 1]}"): "must be greater than 0",
}

# Options of scripts: what the last line must say. {tmp} is a fresh folder.
SCRIPTS: dict[str, list[str]] = {
    "check_data {tmp}/none": ["{tmp}/none", "no such folder"],
    "check_data {tmp} --workers -1": ["--workers", "-1"],
    "check_data {tmp} --workers 500": ["--workers 500"],
    "check_data {tmp} --limit x": ["--limit", "'x'"],
    "check_data": ["root", "required"],
    "compare {tmp}": ["no run with an evaluated epoch in {tmp}"],
    "compare {tmp}/none": ["{tmp}/none: no such folder"],
    "compare {tmp} --format foo": ["--format", "'foo'", "text"],
    "compare {tmp} --picture {tmp}": ["--picture {tmp} is a folder"],
    "compare": ["runs", "required"],
    "convert --source foo": ["--source", "'foo'", "timm"],
    "convert --source timm": ["--arch is needed"],
    "convert --source timm --arch foo {tmp}/a {tmp}/b": ["unknown arch 'foo'"],
    "convert --source timm --arch resnet10t {tmp}/a {tmp}/b": ["{tmp}/a: no such file"],
    "convert --source timm --arch resnet10t /etc/passwd {tmp}/b": ["/etc/passwd cannot be read"],
    "convert --source timm --arch resnet10t {tmp} {tmp}/b": ["{tmp} is a folder"],
    "convert --source timm --arch resnet10t /etc/passwd {tmp}": ["{tmp} exists"],
    "tables --paper foo": ["--paper", "'foo'", "ba_net"],
    "tables --paper ba_net --table 99": ["unknown table '99'"],
    "tables --runs {tmp}/none": ["--runs {tmp}/none", "no such directory"],
    "benchmark": ["step|module|loop", "required"],
    "benchmark step --batch 0": ["--batch", "'0'", "greater than 0"],
    "benchmark step --attentions foo": ["unknown attention 'foo'"],
    "killtest --times 0": ["--times", "greater than 0"],
    "killtest foo=3": ["unknown key 'foo'"],
    "killtest schedule.lr=-1": ["schedule.lr=-1.0", "greater than 0"],
    "make_digits_coco --out {tmp}/coco --size 3": ["--size 3", "at least"],
    "make_digits_coco --out {tmp}/coco --train x": ["--train", "'x'"],
    "make_digits_coco --out /etc/passwd --train 2 --val 1": ["--out /etc/passwd cannot be written"],
    "scaling --ranks 0": ["--ranks"],
    "reference --foo": ["--foo", "reference.py --help"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a damaged CIFAR-100 in it."""
    cifar = tmp_path / "cifar/cifar-100-python"
    cifar.mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (cifar / name).write_bytes(pickle.dumps({b"data": None})[:9])
    return tmp_path


def environment_and_arguments(line: str, tmp: Path) -> tuple[dict[str, str], list[str]]:
    words = shlex.split(line.replace("{tmp}", str(tmp)))
    given = {word.partition("=")[0]: word.partition("=")[2] for word in words if word.partition("=")[0].isupper()}
    return given, [word for word in words if word.partition("=")[0] not in given]


@pytest.mark.parametrize("line", TRAIN)
def test_training(line: str, folder: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given, arguments = environment_and_arguments(line, folder)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    result = in_process(["train.py", *TINY, f"run_dir={folder / 'run'}", *arguments])
    assert result.returncode == 2, result.stderr
    where = "/etc/passwd" if "run_dir=/etc" in line else folder / "run"
    assert all(said.endswith(f": {where}") for said in result.stdout.splitlines()[:1])  # what it is about
    assert result.stdout.count("\n") <= 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in TRAIN[line]:
        assert part.replace("{tmp}", str(folder)) in result.stderr
    assert not list(folder.glob("run/*.pt"))


@pytest.mark.parametrize(("backbone", "options"), BACKBONE)
def test_options_of_a_backbone(backbone: str, options: str) -> None:
    with pytest.raises(ValueError, match=re.escape(BACKBONE[backbone, options])) as refused:
        attn.create_model(backbone, **yaml.safe_load(options))
    assert "\n" not in str(refused.value)


def test_options_that_a_backbone_has() -> None:
    with torch.device("meta"):
        for backbone, options in {
            "resnet10t": {"stem_type": "deep", "avg_down": True, "act_layer": "silu", "block_args": {"attn_layer": "se"}},
            "efficientnet_b0": {"pad_type": "same", "bn_eps": 1e-3, "bn_momentum": np.float64(0.1), "drop_rate": 0},
            "convnext_atto": {"ls_init_value": None, "kernel_sizes": (3, 3, 3, 3), "head_hidden_size": np.int64(8)},
            "regnety_002": {"se_ratio": 0, "downsample": "avg", "output_stride": None},
            "vit_tiny_patch16_224": {"img_size": 32, "reg_tokens": 4, "norm_layer": torch.nn.LayerNorm},
            "cifar_resnet18": {"conv_bias": True},
        }.items():
            attn.create_model(backbone, **options)


@pytest.mark.parametrize("line", SCRIPTS)
def test_scripts(line: str, folder: Path, in_process: Command) -> None:
    _, (name, *arguments) = environment_and_arguments(line, folder)
    result = in_process([f"scripts/{name}.py", *arguments])
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in SCRIPTS[line]:
        assert part.replace("{tmp}", str(folder)) in result.stderr


def test_a_pipe_or_a_socket_among_the_images_is_named(tmp_path: Path, in_process: Command) -> None:
    """A plain open of a pipe would wait forever."""
    (tmp_path / "class").mkdir()
    os.mkfifo(tmp_path / "class/pipe.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "class/socket.png"))
        for name, what in (("pipe", "a pipe"), ("socket", "a socket")):
            with pytest.raises(NotAFile, match=what):
                read_bytes(str(tmp_path / f"class/{name}.png"))
            with pytest.raises(UnreadableImage, match=f"{name}.png: it is {what}"):
                read_rgb(str(tmp_path / f"class/{name}.png"))
    result = in_process(["scripts/check_data.py", str(tmp_path), "--workers", "0"])
    assert result.returncode == 1
    assert "pipe.png: it is a pipe" in result.stdout


def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints", "cat"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    (tmp_path / "cat/._a.png").write_bytes(b"macOS")
    folder = Folder(tmp_path, num_classes=1)
    assert folder.classes == ["cat"]
    assert folder.samples == [(str(tmp_path / "cat/a.png"), 0)]


def test_ctrl_c_saves_once_and_says_so(tmp_path: Path) -> None:
    stopped = Run(tmp_path / "run", faults=[slow_steps(0.3)])
    stopped.wait_for("step 2/6")
    for _ in range(3):
        stopped.signal(signal.SIGINT)
    assert stopped.wait() == [130], stopped.text
    step = checkpoint.read(tmp_path / "run/last.pt")["step"]
    assert f"error: SIGINT: saved {tmp_path / 'run/last.pt'} at step {step}; the same command continues" in stopped.text
    assert stopped.text.count("SIGINT: saving after this step") == 1
    assert "Traceback" not in stopped.text
    assert not (tmp_path / "run" / directory.DONE).exists()


def test_force_cannot_continue_another_optimizer(tmp_path: Path) -> None:
    first = Run(tmp_path / "run")
    assert first.wait() == [0]
    for change in ("schedule.optimizer=adamw", "schedule.no_decay=[bias]"):
        forced = Run(tmp_path / "run", change, "force=true", "schedule.epochs=3")
        assert forced.wait() == [2], forced.text
        assert "holds the state of another optimizer" in forced.text
        assert "Traceback" not in forced.text


def test_torchrun_ends_with_the_error(tmp_path: Path) -> None:
    result = call_fresh(
        ["train.py", *LOOP, f"run_dir={tmp_path / 'run'}", "data=imagenet", "data.root=/no/such", "data.samples=1024"],
        ranks=2,
    )
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.strip(" =")]
    for line in (lines[0], lines[-1]):  # the launcher's own report comes between
        assert "error: data.root=/no/such: no such folder" in line


@pytest.mark.parametrize(
    ("argument", "passed"),
    [
        ("data.root=/a=b", 'data.root="/a=b"'),
        ("run_dir=~/x", 'run_dir="~/x"'),
        ("run_dir=/a b", 'run_dir="/a b"'),
        ("run_dir='/a b'", "run_dir='/a b'"),
        ("run_dir=runs/${seed}", "run_dir=runs/${seed}"),
        ("data.root=/a,/b", "data.root=/a,/b"),
        ("schedule.betas=[0.9,0.99]", "schedule.betas=[0.9,0.99]"),
        ("data.root=/plain", "data.root=/plain"),
    ],
)
def test_paths_need_no_quotes(argument: str, passed: str) -> None:
    assert quoted(argument) == passed


def test_a_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra import compose, initialize_config_dir

    monkeypatch.setenv("HOME", "/somebody")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        composed = compose("train", [*TINY, 'run_dir="~/run"', "attention_name=none"])
    assert parse(composed).run_dir == "/somebody/run"


def test_a_config_of_ones_own_by_its_folder_and_name(tmp_path: Path, in_process: Command) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nschedule: {lr: 0.2}\n")
    own = ["--config-dir", str(tmp_path), "--config-name", "mine", "attention=se"]
    result = in_process(["train.py", *own, "--cfg", "job", "--resolve", "--package", "run_dir"])
    assert (result.returncode, result.stdout.strip()) == (0, "runs/resnet50-se-imagenet-lr_0.2/seed0"), result.stderr
    assert in_process(["train.py", *own, "foo=1"]).stderr.startswith("error: unknown key 'foo'")


def test_an_unreadable_test_image_is_not_answered_by_replacing_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    broken = Folder.__new__(Folder)
    broken.samples = [(str(tmp_path / "a.png"), 0)]
    with pytest.raises(UserError, match=r"a\.png.* never replaced"):
        Seeded(broken, eval_transform(Data()), 0, training=False)[0, 0]
    with pytest.raises(UserError, match=r"a\.png.* set data\.on_error=replace"):
        Seeded(broken, eval_transform(Data()), 0)[0, 0]


def test_waiting_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    import time

    with told_if_slow("a friend", seconds=0.05):
        time.sleep(0.3)
    with told_if_slow("nobody", seconds=5):
        pass
    assert capsys.readouterr().out == "still waiting for a friend\n"


# Entries of a checkpoint, and values that none may have.
ENTRIES: dict[str, list[Any]] = {
    "format": ["x", None, [1], -3],
    "step": ["abc", -5, None, 1.5, True],
    "evaluated": ["x", -1, 99, None],
    "skipped_in_row": ["x", -1],
    "ema": [3, [], "x"],
    "optimizer": [{}, 3, None, {"param_groups": 3, "state": {}}, {"param_groups": [{}], "state": {}}],
    "scaler": [3, None, {"scale": 1}],
    "best": [3, {}, None, {"top1": "x", "epoch": 1}, {"top1": 1.0, "epoch": -7}, {"top1": 1.0, "epoch": 1, "more": 2}],
    "meter": [[], None, {"images": "x"}, {"images": -3}, {"more": 1}],
    "rows": [{}, 3, None, ["x"], [{}], [{"epoch": "x"}]],
    "history": [3, ["x"], [{}], [{"epoch": 0}]],
    "classes": [3, "abc", [1, 2]],
    "versions": [3, []],
}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert Run(folder).wait() == [0]
    return folder


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_of_a_checkpoint_that_cannot_be(entry: str, finished_run: Path, tmp_path: Path) -> None:
    sound = checkpoint.read(finished_run / "last.pt")
    for value in ENTRIES[entry]:
        torch.save(sound, tmp_path / "previous.pt")
        torch.save(sound | {entry: value}, tmp_path / "last.pt")
        with pytest.raises(checkpoint.BadCheckpoint, match=f"last.pt is damaged, .*its entry '{entry}' ") as refused:
            attn.load(tmp_path / "last.pt")
        assert "\n" not in str(refused.value)
        found = checkpoint.newest(tmp_path)
        assert found is not None
        assert found[0] == tmp_path / "previous.pt"
        assert (tmp_path / "last.pt.damaged").exists()


CONFIGS = ["[1, 2]", "3", "", "abc: [", "data: 3", "backbone: []", "{[1]: 2}", "\x00"]
LINES = [
    "[]",
    "3",
    "{}",
    "abc",
    '{"epoch": "x"}',
    '{"epoch": true}',
    '{"epoch": -1}',
    '{"epoch": 3, "val_top1": "x"}',
    "\x00",
]


def test_files_of_another_shape_in_a_run_cost_the_others_nothing(
    finished_run: Path, tmp_path: Path, in_process: Command
) -> None:
    shutil.copytree(finished_run, tmp_path / "good")
    spoilt = {f"config{i}": ("config.yaml", text) for i, text in enumerate(CONFIGS)}
    spoilt |= {f"line{i}": ("metrics.jsonl", f"{text}\n") for i, text in enumerate(LINES)}
    for name, (file, text) in spoilt.items():
        shutil.copytree(finished_run, tmp_path / name)
        (tmp_path / name / file).write_text(text)
    result = in_process(["scripts/compare.py", str(tmp_path)])
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 2
    for name in spoilt:
        assert sum(f"{tmp_path / name}" in line for line in result.stderr.splitlines()) == 1, name
    table = find_runs(tmp_path)
    assert tmp_path / "good" in [folder for runs in table.values() for folder, _ in runs]


def test_unreadable_lines_of_steps_are_kept_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "steps.jsonl"
    before = '{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n{"step": 3, "loss": 1.0}\n{"step": 4, "loss": 1.0}\n'
    log.write_text(before)
    rewind_steps(tmp_path, 3)
    assert [row["step"] for row in read_steps(tmp_path)] == [1, 3]
    assert (tmp_path / "steps.jsonl.damaged").read_text() == before
    assert "steps.jsonl: line 2 cannot be read" in capsys.readouterr().err
    log.write_text('{"step": 1}\n{"step": 2, "lo')  # what a crash leaves is after every checkpoint
    rewind_steps(tmp_path, 1)
    assert log.read_text() == '{"step": 1}\n'
    assert capsys.readouterr().err == ""


def test_options_of_an_attention_by_name() -> None:
    short = attn.create_model("resnet18", "se", np.int64(10), reduction=np.int64(8))
    whole = attn.create_model("resnet18", {"block": {"_target_": "attn.modules.se.SE", "reduction": 8}}, 10)
    other = attn.create_model("resnet18", "se", 10)
    count = [sum(p.numel() for p in model.parameters()) for model in (short, whole, other)]
    assert count[0] == count[1] != count[2]
    with pytest.raises(ValueError, match=r"reduction=8 is an option of block and block\.base: give a mapping"):
        attn.create_model("resnet18", "dca_se", reduction=8)
    with pytest.raises(ValueError, match="reductoin"):
        attn.create_model("resnet18", "se", reductoin=8)


def test_names_by_pattern() -> None:
    assert attn.list_attentions("dca_*") == [name for name in attn.list_attentions() if name.startswith("dca_")] != []
    assert "resnet50" in attn.list_backbones("resnet*")
    assert "densenet121" not in attn.list_backbones("resnet*")
    assert attn.list_backbones("none*") == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: attn.create_model(3), "backbone=3"),  # type: ignore[arg-type]
        (lambda: attn.create_model("resnet18", 3), "attention=3"),  # type: ignore[arg-type]
        (lambda: attn.create_model("resnet18", num_classes="10"), "num_classes='10'"),  # type: ignore[arg-type]
        (lambda: attn.create_model("resnet18", pretrained="foo"), "pretrained='foo' must be true or false"),
        (lambda: attn.create_model("resnet18", cache_dir=3), "cache_dir=3 must be a string or a path"),
        (lambda: attn.create_model("resnet18", features_only="yes"), "features_only='yes'"),  # type: ignore[arg-type]
        (lambda: attn.create_model("resnet18", out_indices=(1,)), r"out_indices=\(1,\) belongs to features_only"),
        (lambda: attn.create_model("resnet18", "se", reduction=float("nan")), "reduction=nan"),
        (lambda: attn.load(3), "path=3"),  # type: ignore[arg-type]
        (lambda: attn.load("x", ema="yes"), "ema='yes'"),  # type: ignore[arg-type]
        (lambda: attn.load("x", trust=[3]), r"trust=\[3\]"),  # type: ignore[list-item]
        (lambda: attn.list_backbones(3), "pattern=3"),  # type: ignore[arg-type]
        (lambda: attn.list_attentions(None), "pattern=None"),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_the_python_api(wrong: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()


def test_a_device_that_is_absent_is_not_blamed_on_the_file() -> None:
    for device in ("silly", "cpu:x", 3.5):
        with pytest.raises(ValueError, match="device="):
            attn.load("absent.pt", device=device)  # type: ignore[arg-type]
    with pytest.raises(checkpoint.BadCheckpoint, match="no such file"):
        attn.load("absent.pt", device=torch.device("cpu"))
