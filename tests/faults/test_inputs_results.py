"""Inputs that would silently lose, replace or falsify results."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault_harness import TINY, Run, compose_config, finished
from PIL import Image

import attn
from attn.config import parse
from attn.config.schema import Data
from attn.data.datasets import class_names, load_dataset
from attn.errors import UserError
from attn.evaluation import job
from attn.runs import checkpoint, directory, files, folder, load, metrics, views
from attn.runs.checkpoint import BadCheckpoint

Content = dict[str, bytes]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("original") / "run"
    finished(run_dir, "schedule.curve=constant", "schedule.ema_decay=0.5")
    return run_dir


@pytest.fixture
def done(original: Path, tmp_path: Path) -> Path:
    """A finished run of two epochs with averaged weights."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


OPTIONS = ("schedule.curve=constant", "schedule.ema_decay=0.5")


def content(folder: Path) -> Content:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != directory.LOCK}


def change(path: Path, **entries: Any) -> None:
    torch.save(checkpoint.read(path) | entries, path)


# What happens to the first of two lines, and whether the original file must be kept.
DAMAGED_LINES = {
    "cut": lambda lines: [lines[0][:20], lines[1]],
    "not text": lambda lines: [b"\xff\xfe" + lines[0][2:], lines[1]],
    "another shape": lambda lines: [b"[1, 2]", lines[1]],
    "no epoch": lambda lines: [b"{}", lines[1]],
    "a foreign line between": lambda lines: [lines[0], b"hello", lines[1]],
    "twice": lambda lines: [lines[0], lines[0], lines[1]],
}


@pytest.mark.parametrize("damage", DAMAGED_LINES)
def test_a_damaged_line_of_metrics_is_kept_aside_and_restored(done: Path, damage: str) -> None:
    path = done / metrics.METRICS
    whole = path.read_bytes()
    spoiled = b"\n".join(DAMAGED_LINES[damage](whole.splitlines())) + b"\n"
    path.write_bytes(spoiled)
    again = finished(done, *OPTIONS)
    assert path.read_bytes() == whole
    assert (done / "metrics.jsonl.damaged").read_bytes() == spoiled
    assert str(done / "metrics.jsonl.damaged") in again.text
    path.write_bytes(spoiled)
    finished(done, *OPTIONS)
    assert (done / "metrics.jsonl.damaged2").read_bytes() == spoiled


def test_deleted_metrics_are_restored_and_an_older_checkpoint_tells_the_gap(done: Path) -> None:
    path = done / metrics.METRICS
    whole = path.read_bytes()
    path.unlink()
    assert "epoch 1, 2 restored from the checkpoint" in finished(done, *OPTIONS).text
    assert path.read_bytes() == whole
    older = checkpoint.read(done / "last.pt")
    del older["history"]  # as versions before this one wrote it
    torch.save(older, done / "last.pt")
    path.write_bytes(whole.splitlines(keepends=True)[1])
    told = finished(done, *OPTIONS).text
    assert "epoch 1 is missing, and the checkpoint does not know it" in told
    assert path.read_bytes() == whole.splitlines(keepends=True)[1]


def _delete(*names: str) -> Any:
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def _only_previous(folder: Path) -> None:
    """As versions before this one left it, which kept previous.pt in a finished folder."""
    (folder / "last.pt").rename(folder / "previous.pt")
    (folder / "best.pt").unlink()


# A finished folder in which something was removed, and what the same command says.
NOT_AGAIN = {
    "all checkpoints": (_delete("last.pt", "best.pt", "previous.pt"), "is finished, but its last.pt is gone"),
    "all but the best": (_delete("last.pt", "previous.pt"), "best.pt is older"),
    "all but the previous": (_only_previous, "previous.pt is older"),
    "checkpoints and DONE": (_delete("last.pt", "best.pt", "previous.pt", "DONE"), "has no checkpoint that knows them"),
    "all but DONE": (_delete("last.pt", "best.pt", "previous.pt", "metrics.jsonl"), "remove "),
}


@pytest.mark.parametrize("case", NOT_AGAIN)
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_finished_run_is_never_trained_again(done: Path, case: str, resume: str) -> None:
    spoil, said = NOT_AGAIN[case]
    spoil(done)
    before = content(done)
    refused = Run(done, *OPTIONS, f"resume={resume}")
    assert refused.wait() == [2]
    assert (said if resume == "auto" else "resume=never") in refused.text
    assert "run_dir=" in refused.text
    assert content(done) == before


def test_a_finished_run_is_trained_again_once_its_mark_is_removed(done: Path) -> None:
    _delete("last.pt", "previous.pt", "DONE")(done)
    epoch = checkpoint.read(done / "best.pt")["evaluated"]
    again = finished(done, *OPTIONS)
    assert f"continuing from {done / 'best.pt'}" in again.text or epoch == 2
    assert [row["epoch"] for row in metrics.read_metrics(done)] == [1, 2]


def test_a_finished_checkpoint_elsewhere_is_continued_or_refused(done: Path, tmp_path: Path) -> None:
    other, source = tmp_path / "other", done / "last.pt"
    refused = Run(other, *OPTIONS, f"resume={source}")
    assert refused.wait() == [2]
    assert f"resume={source} is finished" in refused.text
    assert "raise schedule.epochs" in refused.text
    assert not other.exists()
    sound = source.read_bytes()
    change(source, model=_spoil_weights("nan", checkpoint.read(source)["model"]))
    refused = Run(other, *OPTIONS, f"resume={source}", "schedule.epochs=3")
    assert refused.wait() == [2]
    assert "conv1.0.weight is not finite" in refused.text
    source.write_bytes(sound)
    finished(other, *OPTIONS, f"resume={source}", "schedule.epochs=3")
    assert [row["epoch"] for row in metrics.read_metrics(other)] == [1, 2, 3]


def test_a_finished_run_looks_at_its_weights(done: Path) -> None:
    model = checkpoint.read(done / "last.pt")["model"]
    change(done / "last.pt", model=model | {"fc.bias": torch.full_like(model["fc.bias"], math.inf)})
    refused = Run(done, *OPTIONS)
    assert refused.wait() == [2]
    assert "fc.bias is not finite" in refused.text


def _spoil_weights(kind: str, model: dict[str, Any]) -> dict[str, Any]:
    first, count = "conv1.0.weight", "bn1.num_batches_tracked"
    return (
        model
        | {
            "nan": {first: torch.full_like(model[first], math.nan)},
            "infinity": {"bn1.running_var": torch.full_like(model["bn1.running_var"], math.inf)},
            "integers": {first: (model[first] * 10).long()},
            "booleans": {first: model[first] > 0},
            "complex": {first: model[first].to(torch.complex64)},
            "too large": {first: torch.full_like(model[first], 1e300, dtype=torch.float64)},
            "sparse": {first: model[first].flatten(1).to_sparse()},
            "no tensor": {first: [1.0]},
            "a counter that is no integer": {count: model[count].float()},
        }[kind]
    )


WEIGHTS = {
    "nan": "not finite",
    "infinity": "not finite",
    "integers": "of another type",
    "booleans": "of another type",
    "complex": "of another type",
    "too large": "of another type",
    "sparse": "no dense tensor",
    "no tensor": "no dense tensor",
    "a counter that is no integer": "of another type",
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_are_checked_wherever_they_are_loaded(done: Path, kind: str) -> None:
    path = done / "last.pt"
    spoiled = checkpoint.read(path)
    change(path, model=_spoil_weights(kind, spoiled["model"]), ema=_spoil_weights(kind, spoiled["ema"]))
    for weights in (True, False):
        with pytest.raises(BadCheckpoint, match=WEIGHTS[kind]):
            attn.load(path, ema=weights)
    with pytest.raises(BadCheckpoint, match=WEIGHTS[kind]):
        job.run(job.Request(str(path), device="cpu"))
    assert list(done.glob("eval-*")) == []
    longer = Run(done, *OPTIONS, "schedule.epochs=3")
    assert longer.wait() == [2]
    assert WEIGHTS[kind] in longer.text


def test_weights_of_another_precision_are_weights(done: Path) -> None:
    model = checkpoint.read(done / "last.pt")["model"]
    half = {name: value.half() if value.is_floating_point() else value for name, value in model.items()}
    change(done / "last.pt", model=half, ema=None)
    loaded = attn.load(done / "last.pt").state_dict()
    assert all(torch.equal(loaded[name], value.to(loaded[name].dtype)) for name, value in half.items())


# Targets that a checkpoint may not import, whatever is on the path.
STRANGERS = [
    "this.x",
    "stranger.Mine",
    "os.system",
    "attn.distributed.launch",
    "attn.modules",
    "attn.modulesque.Mine",
    "stranger",
]


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module whose import leaves a mark."""
    (tmp_path / "stranger.py").write_text(
        "from pathlib import Path\n"
        "Path(__file__).with_name('executed').touch()\n"
        "from attn.modules.eca import ECA\n"
        "class Mine(ECA):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    return tmp_path / "executed"


def rename_target(path: Path, target: str, nested: bool) -> None:
    config = checkpoint.read(path)["config"]
    if nested:
        config["attention"] = {
            "stage": {"_target_": "attn.modules.chain.Chain", "_partial_": True, "parts": [{"_target_": target}]}
        }
    else:
        config["attention"]["block"]["_target_"] = target
    change(path, config=config)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("target", STRANGERS)
def test_a_checkpoint_imports_no_strange_module(
    done: Path, stranger: Path, target: str, nested: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = done / "last.pt"
    rename_target(path, target, nested)
    sys.modules.pop("this", None)
    for read in (lambda: attn.load(path), lambda: job.run(job.Request(str(path), device="cpu"))):
        with pytest.raises(BadCheckpoint, match=r"not of the package attn.*trust=\["):
            read()
    assert "this" not in sys.modules
    assert not stranger.exists()
    assert capsys.readouterr().out == ""


def test_a_module_that_is_trusted_is_imported(done: Path, stranger: Path) -> None:
    path = done / "last.pt"
    rename_target(path, "stranger.Mine", nested=False)
    with pytest.raises(BadCheckpoint, match="trust"):
        attn.load(path, trust=["strange"])
    assert not stranger.exists()
    assert isinstance(attn.load(path, trust=["stranger"]), torch.nn.Module)
    assert isinstance(attn.load(path, trust="stranger"), torch.nn.Module)
    assert stranger.exists()
    assert job.run(job.Request(str(path), device="cpu", trust=["stranger"])).count == 24


def test_resuming_takes_the_target_of_the_command(done: Path, stranger: Path) -> None:
    rename_target(done / "last.pt", "stranger.Mine", nested=False)
    continued = Run(done, *OPTIONS, "schedule.epochs=3", "force=true")
    assert continued.wait() == [0], continued.text
    assert not stranger.exists()


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "x${seed}", "${hydra:runtime.cwd}"])
@pytest.mark.parametrize("key", ["data.root", "attention_name", "backbone.name", "attention.block._target_"])
def test_a_checkpoint_interpolates_nothing(done: Path, key: str, value: str) -> None:
    config = checkpoint.read(done / "last.pt")["config"]
    node = config
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    change(done / "last.pt", config=config)
    for read in (attn.load, lambda path: job.run(job.Request(str(path), device="cpu"))):
        with pytest.raises(BadCheckpoint, match=r"is an interpolation, which is not resolved"):
            read(done / "last.pt")


def test_a_checkpoint_names_no_other_file(done: Path, tmp_path: Path) -> None:
    config = checkpoint.read(done / "last.pt")["config"]
    config["backbone"]["checkpoint_path"] = str(tmp_path / "nowhere.pth")
    change(done / "last.pt", config=config)
    assert isinstance(attn.load(done / "last.pt"), torch.nn.Module)


# Requests that differ in what is evaluated: each keeps a file of its own.
EVALUATIONS: list[dict[str, Any]] = [
    {},
    {"weights": "raw"},
    {"data": {"samples": 16}},
    {"data": {"test_resize": 40}},
    {"data": {"name": "mine"}},
    {"data": {"samples": 16}, "weights": "raw"},
]


def test_every_evaluation_keeps_its_own_scores(done: Path) -> None:
    path, seen = done / "last.pt", {}
    for request in EVALUATIONS:
        before = set(done.glob("eval-*.json"))
        job.run(job.Request(str(path), device="cpu", **request))
        (new,) = set(done.glob("eval-*.json")) - before
        seen[new] = new.read_bytes()
    assert all(file.read_bytes() == kept for file, kept in seen.items())
    assert {"eval-last.json", "eval-last-raw.json", "eval-last-mine.json"} <= {f.name for f in seen}
    for request in EVALUATIONS:
        job.run(job.Request(str(path), device="cpu", **request))
    assert set(done.glob("eval-*.json")) == set(seen)


def test_scores_of_another_split_are_named_after_it() -> None:
    path = Path("run/best.pt")
    trained, asked = (job.what(Data(val_split=split), path, "ema") for split in ("val", "test"))
    assert job.default_output(folder.beside(path), asked, trained, usual=True) == Path("run/eval-best-test.json")
    assert job.default_output(folder.beside(path), trained, trained, usual=False) == Path("run/eval-best-ema.json")


def test_scores_record_what_they_are_of(done: Path) -> None:
    job.run(job.Request(str(done / "best.pt"), device="cpu"))
    saved = json.loads((done / "eval-best.json").read_text())
    wanted = {
        "weights": "ema",
        "data": "fake",
        "source": "fake",
        "root": None,
        "split": "val",
        "image_size": 32,
        "samples": 24,
    }
    assert {key: saved[key] for key in wanted} == wanted


def test_a_file_of_something_else_is_not_replaced(done: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    job.run(job.Request(str(done / "last.pt"), device="cpu", output=str(output)))
    before = output.read_bytes()
    for other in ({"checkpoint": str(done / "best.pt")}, {"weights": "raw"}, {"data": {"samples": 16}}):
        with pytest.raises(UserError, match="holds another evaluation"):
            job.run(job.Request(**{"checkpoint": str(done / "last.pt"), "device": "cpu", "output": str(output), **other}))
        assert output.read_bytes() == before
    output.write_text("precious")
    with pytest.raises(UserError, match="is no evaluation"):
        job.run(job.Request(str(done / "last.pt"), device="cpu", output=str(output)))
    assert output.read_text() == "precious"


def test_a_loss_that_is_not_finite_is_no_score(done: Path) -> None:
    spoiled = checkpoint.read(done / "last.pt")
    large = spoiled["model"] | {"fc.bias": torch.tensor([1e38, -1e38] * 4), "fc.weight": spoiled["model"]["fc.weight"] * 0}
    large["bn1.running_var"] = -torch.ones_like(large["bn1.running_var"])
    change(done / "last.pt", model=large, ema=None)
    with pytest.raises(UserError, match="the loss is nan"):
        job.run(job.Request(str(done / "last.pt"), device="cpu"))
    assert list(done.glob("eval-*")) == []


def test_json_is_strict(tmp_path: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    values = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1.5, "x", True, None, 3)}
    assert json.loads(files.to_json(values), parse_constant=refuse) == {
        "a": None,
        "b": [None, {"c": None}],
        "d": [1.5, "x", True, None, 3],
    }
    row = {"epoch": 1, "step": 3, "lr": 0.1, "train_loss": math.nan, "val_loss": math.inf, "val_top1": 10.0}
    metrics.append_metrics(tmp_path, [row, row | {"epoch": 2, "val_loss": 1.0}])
    (tmp_path / metrics.METRICS).read_text()
    for line in (tmp_path / metrics.METRICS).read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert views.write_csv(tmp_path).exists()
    assert views.write_curves(tmp_path).exists()


# Sources of timm that read files: an image that cannot be read is treated as an image folder's.
TIMM = ["folder/", "torch/image_folder"]


def image_folder(root: Path, classes: dict[str, list[str]], images: int = 8) -> Path:
    for split, names in classes.items():
        for label, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = np.random.default_rng([label, i]).integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def timm_options(root: Path, dataset: str) -> list[str]:
    options = [option for option in TINY if not option.startswith(("data=", "data.num_classes", "data.samples"))]
    return [*options, "data=timm", f"data.dataset={dataset}", f"data.root={root}", "data.num_classes=2", "data.hflip=0"]


@pytest.mark.parametrize(
    ("dataset", "damage"), [("folder/", None), ("torch/image_folder", b"text")], ids=["folder-truncated", "torch-text"]
)
def test_timm_replaces_no_image_by_itself(tmp_path: Path, dataset: str, damage: bytes | None) -> None:
    root = image_folder(tmp_path / "data", {"train": ["a", "b"], "validation": ["a", "b"]})
    for split, epoch in (("validation", "evaluation"), ("train", "training")):
        bad = root / split / "b" / "3.png"
        good = bad.read_bytes()
        bad.write_bytes(good[: len(good) // 2] if damage is None else damage)
        stopped = Run(tmp_path / epoch, base=timm_options(root, dataset))
        assert stopped.wait() == [3], stopped.text
        assert str(bad) in stopped.text.splitlines()[-1]
        if split == "validation":  # it counts: another image must not replace it
            refused = Run(tmp_path / epoch, "data.on_error=replace", base=timm_options(root, dataset))
            assert refused.wait() == [3]
        else:
            finished(tmp_path / epoch, "data.on_error=replace", base=timm_options(root, dataset))
            assert [row["replaced"] for row in metrics.read_metrics(tmp_path / epoch)] == [1, 1]
        bad.write_bytes(good)


@pytest.mark.parametrize("dataset", TIMM)
def test_classes_are_compared_for_every_source(tmp_path: Path, dataset: str) -> None:
    root = image_folder(tmp_path / "data", {"train": ["cat", "dog"], "validation": ["cat", "elk"]})
    refused = Run(tmp_path / "run", base=timm_options(root, dataset))
    assert refused.wait() == [2]
    assert "label 1 is 'dog' in one and 'elk' in the other: the labels would not agree" in refused.text


def test_classes_are_compared_with_those_of_a_checkpoint(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", {"train": ["cat", "dog"], "validation": ["cat", "dog"]})
    finished(tmp_path / "run", base=timm_options(root, "folder/"))
    other = image_folder(tmp_path / "other", {"val": ["cat", "elk"]})
    request = job.Request(str(tmp_path / "run" / "last.pt"), device="cpu", data={"root": str(other), "val_split": "val"})
    with pytest.raises(UserError, match="label 1 is 'dog' in one and 'elk' in the other"):
        job.run(request)


@pytest.mark.parametrize("dataset", ["folder/", "folder", "torch/image_folder"])
def test_timm_does_not_take_the_root_for_a_split(tmp_path: Path, dataset: str) -> None:
    image_folder(tmp_path, {".": ["a", "b"]})
    cfg = compose_config(timm_options(tmp_path, dataset), tmp_path / "run")
    for train in (True, False):
        with pytest.raises(ValueError, match="timm would take the whole of"):
            load_dataset(cfg.data, train)
    same = dataclasses.replace(cfg.data, val_split="train")  # set by the user
    assert class_names(load_dataset(same, True)) == ["a", "b"]


# Accepted once, though meaningless: the overrides, and what the answer names.
MEANINGLESS = {
    "data.name=../../escape": "data.name=../../escape: must be a plain name",
    "data.name=/tmp/escape": "data.name",
    "data.name=a/../../b": "data.name",
    "data.name=.hidden": "data.name",
    "attention_name=../x": "attention_name=../x",
    "backbone.name=../x": "backbone.name=../x",
    "schedule.name=..": "schedule.name",
    "data.dataset=hfds/cifar10": "data.dataset=hfds/cifar10: data.source=fake takes none",
    "data.root=/data": "data.root=/data: data.source=fake takes none",
    "data.val_split=test": "data.val_split=test",
    "data.auto_augment=rand-foo": "data.auto_augment=rand-foo: must be a policy of timm",
    "data.auto_augment=rand-m99": "data.auto_augment",
    "data.auto_augment=rand-m9-n999": "data.auto_augment",
    "data.auto_augment=rand-m9-tsilly": "data.auto_augment",
    "data.auto_augment=random": "data.auto_augment",
    "data.auto_augment=v1": "data.auto_augment",
    "data.auto_augment=original-silly": "data.auto_augment",
    "data.color_jitter=1000": "data.color_jitter=1000.0: must be at most 1",
    "data.rotate=100000": "data.rotate",
    "data.pad=5000 data.crop=pad": "data.pad=5000: must be at most data.image_size=32",
    "data.pad=100000": "data.pad",
    "data.image_size=100000 data.test_resize=100000": "data.image_size",
    "data.test_resize=100000000": "data.test_resize",
    "data.crop_ratio=[0.0001,10000]": "data.crop_ratio",
    "data.mean=[123.675,116.28,103.53]": "data.mean",
    "data.mean=[.nan,0,0]": "data.mean",
    "data.std=[58.4,57.1,57.4]": "data.std",
    "data.num_classes=1": "data.num_classes=1: must be 2 or more",
    "data.num_classes=100000000": "data.num_classes",
    "schedule.mixup=1e9": "schedule.mixup",
    "schedule.cutmix=1e9": "schedule.cutmix",
    "schedule.lr=1e9": "schedule.lr",
    "schedule.weight_decay=1e6": "schedule.weight_decay",
    "schedule.epochs=100000000000": "schedule.epochs",
    "dist_timeout=1e300": "dist_timeout",
    "seed=100000000000000000000000": "seed",
}


@pytest.mark.parametrize("overrides", MEANINGLESS)
def test_a_value_without_a_meaning_is_refused(tmp_path: Path, overrides: str) -> None:
    with pytest.raises(UserError) as refused:
        parse.parse(composed([*TINY, *overrides.split()]))
    assert MEANINGLESS[overrides] in str(refused.value)


MEANT = [
    "data.auto_augment=rand-m9-mstd0.5-inc1",
    "data.auto_augment=rand-m15-n2-mmax20-p0.7-tweights",
    "data.auto_augment=original-mstd0.5",
    "data.auto_augment=v0r",
    "data.auto_augment=3a",
    "data.name=cifar10.1_v6",
    "attention_name=se+eca",
    "attention_name=mine/se",
    "data.pad=32",
    "data.color_jitter=1",
    "data.rotate=180",
    "data.mean=[0.5,0.5,0.5] data.std=[1,1,1]",
    "schedule.epochs=2000",
]


@pytest.mark.parametrize("overrides", MEANT)
def test_a_value_with_a_meaning_is_taken(overrides: str) -> None:
    parse.parse(composed([*TINY, *overrides.split()]))


def composed(overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_dir

    from attn.config.groups import config_dir

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", ["attention_name=eca", *overrides, "run_dir=run"])


SCRIPTS = {
    "check_data . --workers -1": "--workers: '-1' must be an integer, 0 or more",
    "check_data . --limit -5": "--limit: '-5' must be an integer greater than 0",
    "check_data . --limit x": "--limit: 'x' must be an integer greater than 0",
    "killtest --seed -1": "--seed: '-1' must be an integer, 0 or more",
    "make_digits_coco --seed -1": "--seed: '-1' must be an integer, 0 or more",
    "compare {tmp} --picture {tmp}": "is a folder; name a file in it",
    "compare {tmp} --picture {tmp}/nowhere/x.png": "there is no folder",
    "compare {tmp} --picture {tmp}/x": "the name must end in .png",
    "compare {tmp} --picture {tmp}/x.txt": "the name must end in .png",
}


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_script_refuses_what_it_cannot_do(tmp_path: Path, command: str, in_process: Any) -> None:
    name, *arguments = command.format(tmp=tmp_path).split()
    result = in_process([f"scripts/{name}.py", *arguments])
    assert result.returncode == 2
    assert SCRIPTS[command] in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_compare_imports_only_what_is_trusted(tmp_path: Path, stranger: Path, in_process: Any) -> None:
    run_dir = tmp_path / "runs" / "mine"
    run_dir.mkdir(parents=True)
    cfg = compose_config([*TINY, "attention.block._target_=stranger.Mine"], run_dir)
    directory.write_config(run_dir, cfg)
    metrics.append_metrics(run_dir, [{"epoch": 1, "step": 3, "val_top1": 50.0}])
    in_process(["scripts/compare.py", str(tmp_path / "runs")])
    assert not stranger.exists()
    trusted = in_process(["scripts/compare.py", str(tmp_path / "runs"), "--trust", "stranger"])
    assert trusted.returncode == 0, trusted.stderr
    assert "50.00" in trusted.stdout
    with pytest.raises(BadCheckpoint, match="--trust stranger"):
        load.trusted(cfg, (), run_dir)
