"""The command lines around runs: comparison, kill test, scaling."""

from __future__ import annotations

import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from fault_harness import ROOT, TINY, compose_config, finished

import attn
from attn.runs import directory, metrics, views


def script(name: str, *arguments: object, timeout: float = 550) -> subprocess.CompletedProcess:
    return call([f"scripts/{name}.py", *arguments], timeout=timeout)


def recorded(folder: Path, top1: list[float], *overrides: str, done: bool = True) -> Path:
    """A run folder as training leaves it, with these scores."""
    folder.mkdir(parents=True)
    directory.write_config(folder, compose_config([*TINY, f"schedule.epochs={len(top1) + (not done)}", *overrides], folder))
    metrics.append_metrics(folder, [{"epoch": i + 1, "step": 3 * (i + 1), "val_top1": v} for i, v in enumerate(top1)])
    if done:
        (folder / directory.DONE).touch()
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """What `-m attention=none,se seed=0,1,2` leaves, and an unfinished run."""
    top = tmp_path / "runs"
    for seed, scores in enumerate(([50, 61, 60], [50, 62, 62], [50, 66, 64])):
        recorded(top / f"none/seed{seed}", scores, "attention=none", f"seed={seed}")
    for seed, scores in enumerate(([60, 70, 71], [60, 72, 70], [60, 70, 69])):
        recorded(top / f"se/seed{seed}", scores, "attention=se", "attention.block.reduction=4", f"seed={seed}")
    recorded(
        top / "se/seed3", [10.0], "attention=se", "attention.block.reduction=4", "schedule.epochs=3", "seed=3", done=False
    )
    return top


def test_compare_gives_mean_and_spread_over_seeds(runs: Path) -> None:
    result = script("compare", runs, "--format", "json")
    assert result.returncode == 0, result.stderr
    none, se = json.loads(result.stdout)
    assert (none["attention"], se["attention"]) == ("none", "se")
    assert se["last"] == {"mean": 70.0, "std": 1.0, "values": [71, 70, 69]}
    assert none["last"]["std"] == pytest.approx(statistics.stdev([60, 62, 64]))
    assert none["best"]["values"] == [61, 62, 66]
    assert none["gain"] is None
    assert se["gain"] == pytest.approx(8.0)
    assert (se["seeds"], se["unfinished"]) == ([0, 1, 2], 1)
    plain = attn.create_model("resnet10t", None, 8, channels=[8, 12, 16, 24], stem_width=8)
    assert none["parameters"] == sum(p.numel() for p in plain.parameters())
    assert se["parameters"] > none["parameters"]


def test_compare_as_text_markdown_and_picture(runs: Path, tmp_path: Path) -> None:
    text = script("compare", runs, "--picture", tmp_path / "compare.png").stdout
    line = next(line for line in text.splitlines() if " se " in line)
    assert line.split() == [
        "fake",
        "resnet10t",
        "se",
        "0.02",
        "3",
        "(+1",
        "unfinished)",
        "71.00",
        "±",
        "1.00",
        *["70.00", "±", "1.00", "+8.00"],
    ]
    assert (tmp_path / "compare.png").read_bytes()[:4] == b"\x89PNG"
    markdown = script("compare", runs, "--format", "md").stdout.splitlines()
    assert markdown[1] == "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    assert len(markdown) == 4


def test_compare_tells_apart_what_differs_in_more_than_the_seed(runs: Path) -> None:
    recorded(runs / "other", [1, 2, 80], "attention=se", "attention.block.reduction=8")
    rows = json.loads(script("compare", runs, "--format", "json").stdout)
    assert sorted(row["variant"] for row in rows) == ["", "attention.block.reduction=4", "attention.block.reduction=8"]


def test_compare_leaves_out_a_run_that_cannot_be_built(runs: Path) -> None:
    gone = recorded(runs / "gone", [90.0], "attention=se")
    config = (gone / "config.yaml").read_text()
    (gone / "config.yaml").write_text(config.replace("attn.modules.se.SE", "no.such.Module"))
    result = script("compare", runs, "--format", "json")
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)) == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"warning: {gone} is left out: ")
    assert "no.such.Module" in line


def test_labels_in_the_picture_do_not_overlap() -> None:
    """Thirty rows of nearly one score, all of one size."""
    from matplotlib.text import Text

    spec = importlib.util.spec_from_file_location("scripts_compare", ROOT / "scripts" / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    compare = sys.modules["scripts_compare"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    cfg = compose_config(TINY, Path("run"))
    rows = []
    for i in range(30):
        result = compare.Result(Path("run"), cfg, 70 + i / 100, 70 + i / 100, 1, 11_000_000)
        rows.append(compare.Row("resnet10t", f"attention{i}", "fake", "", 11_000_000, [result], 0))
    figure = compare.picture(rows)
    figure.draw_without_rendering()
    (panel,) = figure.axes
    # Not the annotation's own extent, which has the line to the point in it.
    texts = sorted((Text.get_window_extent(text) for text in panel.texts), key=lambda box: box.y0)
    assert len(texts) == 30
    assert all(lower.y1 <= upper.y0 for lower, upper in itertools.pairwise(texts))
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.height and box.x1 <= figure.bbox.width for box in texts)


def test_curves_have_epochs_as_integers_and_the_run_in_the_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    run = recorded(tmp_path / "se/seed0", [50.0, 60.0], "attention=se")
    rows = [{**row, "train_loss": 1.0, "val_loss": 1.0, "lr": 0.1} for row in metrics.read_metrics(run)]
    monkeypatch.setattr(views.metrics, "read_metrics", lambda _: rows)
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    views.write_curves(run)
    assert figures[0].get_suptitle() == "se/seed0"
    for panel in figures[0].axes:
        assert all(float(tick).is_integer() for tick in panel.get_xticks())


def test_compare_without_runs(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "no run with an evaluated epoch"), (tmp_path / "nowhere", "no such folder")):
        result = script("compare", folder)
        assert result.returncode == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_compare_reads_what_training_writes(tmp_path: Path) -> None:
    finished(tmp_path / "runs/seed0")
    finished(tmp_path / "runs/seed1", "seed=1")
    (row,) = json.loads(script("compare", tmp_path / "runs", "--format", "json").stdout)
    last = [metrics.read_metrics(tmp_path / f"runs/seed{seed}")[-1]["val_top1"] for seed in (0, 1)]
    assert row["last"]["values"] == last
    assert row["seeds"] == [0, 1]


def test_scaling_measures_every_number_of_ranks() -> None:
    options = [
        "--ranks",
        "1",
        "--batch",
        "4",
        "--steps",
        "2",
        "--",
        *(o for o in TINY if not o.startswith(("data=", "schedule.b"))),
    ]
    options = [o for o in options if not o.startswith(("data.samples", "schedule.epochs"))]
    result = script("scaling", *options)
    assert result.returncode == 0, result.stderr
    header, line = result.stdout.splitlines()
    assert header.split() == ["ranks", "images/s", "per", "rank", "efficiency"]
    ranks, speed, per_rank, efficiency = line.split()
    assert (ranks, per_rank, efficiency) == ("1", speed, "100.0%")
    assert float(speed) > 0


@pytest.mark.parametrize(
    ("name", "mistake", "said"),
    [
        ("scaling", ["--ranks", "1,0"], "--ranks: '0' must be an integer greater than 0"),
        ("killtest", ["attention=baa"], "error: unknown attention 'baa': did you mean 'ba'?"),
        ("killtest", ["schedule.lr=-1"], "error: schedule.lr=-1.0: must be greater than 0"),
    ],
)
def test_a_mistake_is_answered_before_any_work(name: str, mistake: list[str], said: str) -> None:
    result = script(name, *mistake)
    assert result.returncode != 0
    assert said in result.stderr.splitlines()[-1]
    assert result.stdout == ""


@pytest.mark.slow
def test_the_kill_test_kills_and_compares() -> None:
    result = script("killtest", "--times", 1, "--", "schedule.epochs=1", "schedule.batch_size=256")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("1 of 1 equal to the uninterrupted run\n")
