"""`scripts/analyse.py`: from checkpoints and runs to files, and its answers to mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Command, composed
from networks import SMALL

import attn
from attn.analysis import batch, command, cost, memory, runs
from attn.analysis.files import Table, output_paths, save
from attn.analysis.style import panels
from attn.config import analysis, parse
from attn.errors import UserError
from attn.runs import directory, metrics
from attn.runs.load import build

DIGITS = ["data=digits", "data.image_size=32", "data.test_resize=32", "schedule=quick"]
NARROW = [
    "backbone=resnet50",
    *(f"+backbone.{key}={list(value)}".replace(" ", "") for key, value in SMALL.items() if key != "stem_width"),
]


def checkpoint(folder: Path, attention: str, *overrides: str) -> Path:
    """What a run leaves of an untrained network."""
    cfg = composed(f"attention={attention}", f"attention_name={attention}", *NARROW, *DIGITS, *overrides)
    torch.manual_seed(cfg.seed)
    model = build(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    folder.mkdir(parents=True)
    path = folder / "best.pt"
    torch.save({"model": model.state_dict(), "config": parse.to_dict(cfg), "format": 1}, path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("checkpoints")
    return {name: checkpoint(top / name, name) for name in ("ba", "dca_se", "none")}


CALLS: dict[str, list[str]] = {
    "weights": ["checkpoint={dca_se}", "checkpoint={ba}", "classes=[3,8]", "each=2"],
    "histograms": ["checkpoint={dca_se}", "checkpoint={ba}", "images=4"],
    "importance": ["checkpoint={ba}", "images=8", "trees=2"],
    "gradcam": ["checkpoint={ba}", "checkpoint={none}", "images=[0,5]", "at=[2,3.1]"],
    "connections": ["checkpoint={dca_se}"],
    "embedding": ["checkpoint={ba}", "checkpoint={none}", "classes=[1,7]", "each=4"],
    "maps": ["checkpoint={ba}", "images=1", "at=2", "channels=[0,3]"],
    "confusion": ["checkpoint={none}", "images=30", "mistakes=2"],
    "cost": ["checkpoint={none}", "checkpoint={ba}", "batch_size=2", "steps=1"],
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_command_writes_picture_and_numbers(kind: str, trained: dict[str, Path], tmp_path: Path) -> None:
    arguments = [argument.format(**trained) for argument in CALLS[kind]]
    paths = command.run(*analysis.read([kind, *arguments, f"out={tmp_path / 'figure'}", "device=cpu"]))
    assert [path.name for path in paths] == ["figure.png", "figure.svg", "figure.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert paths[0].read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in paths[1].read_text()[:2000]
    header, *rows = csv.reader(paths[2].open())
    assert rows
    assert {len(row) for row in rows} == {len(header)}
    names = {row[0] for row in rows}
    assert names == {f"resnet50 {name}" for name in trained if f"{{{name}}}" in " ".join(CALLS[kind])}


def test_the_script_itself(in_process: Command, trained: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["maps", f"checkpoint={trained['none']}", f"out={tmp_path / 'a.png'}", "images=0", "data.test_resize=40"]
    done = in_process(["scripts/analyse.py", *arguments])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"saved {tmp_path / 'a.png'}, ")
    again = in_process(["scripts/analyse.py", *arguments])
    assert again.stdout.startswith(f"replaced {tmp_path / 'a.png'}, ")
    overview = in_process(["scripts/analyse.py", "--help"])
    assert overview.returncode == 0
    assert all(kind in overview.stdout for kind in analysis.KINDS)
    own = in_process(["scripts/analyse.py", "importance", "--help"])
    assert "trees=50" in own.stdout


def refusals(trained: dict[str, Path], tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    ba, dca = f"checkpoint={trained['ba']}", f"checkpoint={trained['dca_se']}"
    return {
        "no kind": ([], "name a figure first, one of weights, "),
        "a mistyped kind": (["weightz", ba], "unknown figure 'weightz': did you mean 'weights'?"),
        "a mistyped key": (["weights", ba, "classez=[1]"], "unknown key 'classez': did you mean 'classes'?"),
        "a dash": (["weights", "--checkpoint"], "cannot read the argument '--checkpoint': write key=value"),
        "a word": (["histograms", ba, "bins=many"], "bins=many: must be an integer"),
        "a number": (["histograms", ba, "bins=0"], "bins=0: must be greater than 0"),
        "no checkpoint": (["weights"], "checkpoint must be set, as in weights checkpoint="),
        "a missing file": (["weights", "checkpoint=gone.pt"], "checkpoint gone.pt: no such file"),
        "a missing folder": (["weights", ba, "out=gone/a"], "out=gone/a: there is no folder gone"),
        "a folder": (["weights", ba, f"out={tmp_path}"], f"out={tmp_path} is a folder; name a file in it"),
        "no connection": (["connections", ba], "resnet50 ba has no connection between attentions: BA in ResNet"),
        "no bridge": (["importance", dca, "images=2"], "resnet50 dca_se has no bridge: DCA"),
        "no weights": (["histograms", f"checkpoint={trained['none']}"], "resnet50 none has no attention weights: no attention"),
        "other data": (["weights", ba, "data=elpv"], "data=elpv has 4 classes, the checkpoint was trained on 10 (digits)"),
        "an unknown data set": (["weights", ba, "data=digit"], "unknown data 'digit': did you mean 'digits'?"),
        "an unknown data key": (["weights", ba, "data.rot=1"], "unknown key 'data.rot'"),
        "a missing image": (["gradcam", ba, "images=9999"], "images=9999: there are 355 validation images"),
        "a missing image file": (["gradcam", ba, "images=gone.png"], "images: gone.png: No such file or directory"),
        "a file without a label": (["gradcam", ba, "images=tests/../docs/images/digits_mask_rcnn_ba.jpg", "target=label"], "has no label"),
        "no runs": (["batch"], "runs must be set, as in batch runs=runs"),
        "a missing folder of runs": (["batch", "runs=gone"], "runs=gone: no such folder"),
        "an empty folder of runs": (["cost", f"runs={tmp_path}"], "no finished run in or below it"),
        "data of runs": (["batch", "runs=gone", "data=digits"], "batch reads no images"),
        "two sources": (["cost", ba, "paper=ba_net"], "cost takes one of checkpoint=, runs= and paper="),
        "an unknown paper": (["cost", "paper=ba"], "paper=ba: choose from aw_conv"),
        "an unknown table": (["cost", "paper=ba_net", "table=99"], "unknown table '99'"),
        "a table without a paper": (["cost", ba, "table=2"], "table=2 needs paper="),
        "one class": (["embedding", ba, "classes=[1]"], "at least two are needed"),
    }  # fmt: skip


def test_mistakes_are_answered_by_one_line(trained: dict[str, Path], tmp_path: Path) -> None:
    for what, (arguments, line) in refusals(trained, tmp_path).items():
        with pytest.raises(UserError) as caught:
            command.run(*analysis.read(arguments))
        assert line in str(caught.value), what
        assert "\n" not in str(caught.value), what
    assert list(tmp_path.iterdir()) == []


def test_the_script_ends_with_one_line_and_code_2(in_process: Command, trained: dict[str, Path]) -> None:
    done = in_process(["scripts/analyse.py", "connections", f"checkpoint={trained['ba']}"])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: resnet50 ba has no connection")


def test_checkpoints_of_other_classes_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    other = checkpoint(tmp_path / "fake", "se", "data=fake", "data.num_classes=7")
    with pytest.raises(UserError, match=r"have other images: data.source is digits in one and fake in the other"):
        command.run(*analysis.read(["weights", f"checkpoint={trained['ba']}", f"checkpoint={other}"]))


def recorded(folder: Path, top1: float, *overrides: str) -> None:
    """A finished run with this score."""
    cfg = composed(*NARROW, *DIGITS, *overrides)
    folder.mkdir(parents=True)
    directory.write_config(folder, cfg)
    metrics.append_metrics(folder, [{"epoch": 1, "step": 1, "val_top1": 1.0}, {"epoch": 2, "step": 2, "val_top1": top1}])
    (folder / directory.DONE).touch()


def test_error_by_batch_size(tmp_path: Path) -> None:
    for size, scores in {32: (90, 92), 64: (88,), 256: (80, 70)}.items():
        for seed, score in enumerate(scores):
            own = (f"schedule.batch_size={size}", f"schedule.lr={size / 1000}", f"seed={seed}")
            recorded(tmp_path / f"{size}-{seed}", score, "attention=ba2m", "attention_name=ba2m", *own)
    found = batch.measure(runs.find([str(tmp_path)]))
    assert [one.name for one in found] == ["resnet50 ba2m"]
    assert found[0].size.tolist() == [32, 64, 256]
    assert found[0].mean.tolist() == [9, 12, 25]
    assert found[0].std[[0, 2]] == pytest.approx(np.std([8, 10], ddof=1) * np.array([1, 5]))
    assert np.isnan(found[0].std[1])
    figure, numbers = batch.run(analysis.Batch(runs=[str(tmp_path)]))
    assert figure.axes[0].get_xscale() == "log"
    assert [row[1:4] for row in numbers.rows] == [(32, 2, 9.0), (64, 1, 12.0), (256, 2, 25.0)]
    with pytest.raises(UserError, match=r"runs=.*: 2 finished runs, of no batch size but 256; train"):
        batch.measure([run for run in runs.find([str(tmp_path)]) if run.cfg.schedule.batch_size == 256])
    recorded(tmp_path / "other", 50, "attention=ba2m", "attention_name=ba2m", "data=fake", "data.num_classes=10")
    with pytest.raises(UserError, match="runs on digits, fake, whose accuracies cannot be compared"):
        batch.measure(runs.find([str(tmp_path)]))


def test_runs_that_differ_in_more_than_the_seed_are_told_apart(tmp_path: Path) -> None:
    for number, own in enumerate(("schedule.epochs=2", "schedule.epochs=3", "seed=1")):
        recorded(tmp_path / str(number), 50 + number, "attention=se", "attention_name=se", own)
    groups = runs.group(runs.find([str(tmp_path)]))
    assert sorted(one.name for one in groups) == [f"resnet50 se (schedule.epochs={n})" for n in (2, 3, 5)]


def test_accuracy_against_size_of_runs_and_of_a_paper(tmp_path: Path) -> None:
    for seed, score in enumerate((90, 94)):
        recorded(tmp_path / f"se{seed}", score, "attention=se", "attention_name=se", f"seed={seed}")
    recorded(tmp_path / "none", 80, "attention=none", "attention_name=none")
    points = {point.family: point for point in cost.of_runs(runs.find([str(tmp_path)]))}
    plain = attn.create_model("resnet50", None, 10, layers=SMALL["layers"], channels=SMALL["channels"])
    assert points["none"].params == pytest.approx(sum(p.numel() for p in plain.parameters()) / 1e6)
    assert points["se"].params > points["none"].params
    assert (points["se"].top1, points["none"].std) == (92, None)
    printed = cost.of_rows("ba_net", "2")
    assert any(point.family == "BA" or "BA" in point.family for point in printed)
    assert all(point.params > 1 and point.flops > 0.1 and 50 < point.top1 < 100 for point in printed)
    assert cost.draw_points(printed, "printed").axes
    assert len(cost.table_of_points(printed).rows) == len(printed)


def test_cost_leaves_the_network_as_it_was() -> None:
    model = attn.create_model("resnet18", "se", 8, **SMALL).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small, large = (cost.measure("se", model, 32, 8, batch=size, steps=1) for size in (2, 16))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert small.params == sum(p.numel() for p in model.parameters())
    for mode in ("training", "inference"):
        assert small.memory[mode] < large.memory[mode]
        assert small.speed[mode] > 0
    assert large.memory["inference"] < large.memory["training"]
    weights = 4 * small.params
    assert small.memory["training"] > 3 * weights  # with the gradient and the momentum


def test_peak_memory_counts_what_lives_at_once() -> None:
    held = torch.zeros(1000)

    def work() -> None:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b * 2
        assert c.view(10, 100).sum() == 2000

    assert memory.peak(work, torch.device("cpu"), [held]) in range(12_000, 12_100)


def test_files_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, _ = panels(1, 1)
    paths = save(figure, Table(("a",), [(1.0,)]), tmp_path / "f.v1")
    assert [path.name for path in paths] == ["f.v1.png", "f.v1.svg", "f.v1.csv"]
    before = paths[0].read_bytes()

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(figure), "savefig", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        save(figure, Table(("a",), [(2.0,)]), tmp_path / "f.v1")
    assert paths[0].read_bytes() == before
    assert paths[2].read_text() == "a\n1\n"
    assert len(list(tmp_path.iterdir())) == 3
    assert output_paths(tmp_path / "f.v1.png") == paths


@pytest.mark.parametrize("name", ["metrics", "curves.png"])
def test_a_figure_replaces_no_file_of_a_run(tmp_path: Path, name: str) -> None:
    assert output_paths(tmp_path / name)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"would replace the (metrics|curves) of the run in .*; choose another name"):
        output_paths(tmp_path / name)


def test_a_kind_has_its_keys_in_one_place() -> None:
    kind, options = analysis.read(["weights", "checkpoint=a", "checkpoint=b", "classes=[1, cat]", "each=3", "weights=raw"])
    assert kind == "weights"
    assert (options.checkpoint, options.classes, options.each, options.weights) == (["a", "b"], ["1", "cat"], 3, "raw")
    assert analysis.read(["histograms", "checkpoint=a", "images=null"])[1].images is None
    data = analysis.read(["maps", "checkpoint=a", "data=elpv", "data.root=/some where"])[1].data
    assert (data["name"], data["root"]) == ("elpv", "/some where")
    assert json.dumps({name: cls.__doc__ for name, cls in analysis.KINDS.items()}).count("null") == 0
