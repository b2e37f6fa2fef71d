"""Predictions on images of the user's own, and what eval.py says of each class and image."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, call, composed
from PIL import Image
from torch import nn

import attn
from attn.config.schema import Data
from attn.data.datasets import Arrays, class_names, load_dataset
from attn.data.loader import evaluation_data
from attn.data.transforms import eval_transform
from attn.distributed import Ranks
from attn.errors import UserError
from attn.evaluation.evaluate import Settings, evaluate
from attn.evaluation.predict import find_images
from attn.runs import checkpoint, load
from attn.training.setup import build_state

SMALL = [*TINY, "data.image_size=16", "data.test_resize=16", "data.workers=0"]


def make_checkpoint(folder: Path, classes: list[str] | None, *overrides: str) -> Path:
    """A checkpoint as training writes it, of a network with random weights."""
    cfg = composed("attention=se", *SMALL, *overrides, f"run_dir={folder}")
    torch.manual_seed(0)
    state = build_state(cfg, Ranks(0, 1, torch.device("cpu")), load.build(cfg), classes)
    path = folder / "best.pt"
    checkpoint.write(state.state_dict(cfg), path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("run"), [f"digit, {i}" for i in range(10)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images of digits in two folders, one damaged file, and a file that is no image."""
    dataset = load_dataset(Data(name="digits", source="digits", num_classes=10), train=False)
    folder = tmp_path / "photos"
    for index in range(7):
        place = folder / ("a" if index < 3 else "b")
        place.mkdir(parents=True, exist_ok=True)
        dataset[index][0].save(place / f"{index}.png")
    (folder / "a" / "1.png").write_bytes((folder / "a" / "1.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predictions_are_those_of_the_model_and_its_test_transform(trained: Path, photos: Path) -> None:
    found = list(attn.predict(trained, photos, topk=3, batch_size=2))
    assert [Path(p.image).name for p in found] == [f"{i}.png" for i in range(7)]
    assert found[1].problem is not None
    assert "a/1.png" in found[1].problem
    assert found[1].labels == ()
    model, transform = attn.load(trained), eval_transform(composed("attention=se", *SMALL).data).normalised
    for prediction in found[:1] + found[2:]:
        with torch.no_grad():
            logits = model(transform(Image.open(prediction.image).convert("RGB"))[None])[0].double()
        best = logits.softmax(0).topk(3)
        assert list(prediction.labels) == best.indices.tolist()
        assert prediction.names == tuple(f"digit, {label}" for label in prediction.labels)
        assert prediction.probabilities == pytest.approx(best.values.tolist(), rel=1e-4)
    passed = attn.predict(model, [Image.open(found[0].image)], topk=3, transform=transform, classes=["x"] * 10)
    (again,) = passed
    assert (again.image, again.labels, again.names) == ("0", found[0].labels, ("x", "x", "x"))
    assert not model.training


def test_a_model_needs_a_transform(photos: Path) -> None:
    with pytest.raises(ValueError, match="needs transform="):
        attn.predict(nn.Flatten(), photos)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"images": None}, "images has a NoneType in it"),
        ({"images": [np.zeros((4, 4, 3))]}, "images has a ndarray in it"),
        ({"images": 3}, "images has a int in it"),
        ({"model": 3}, "model=3 must be"),
        ({"transform": 3}, "transform=3 must be a function"),
        ({"classes": ["a"]}, "classes= has 1 names; expected 10"),
        ({"workers": -1}, "workers=-1 must be"),
        ({"device": "nope"}, "device='nope' cannot be used here"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_image(
    trained: Path, photos: Path, arguments: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        attn.predict(**{"model": trained, "images": photos, **arguments})  # not iterated over


def test_a_transform_that_makes_no_image_is_named(trained: Path, photos: Path) -> None:
    for made, named in ((lambda image: image, "a Image"), (lambda image: torch.zeros(1, 3, 16, 16), "a tensor")):
        with pytest.raises(ValueError, match=f"transform= made {named}"):
            list(attn.predict(trained, photos / "b", transform=made))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_found_in_folders_patterns_and_lists(trained: Path, photos: Path, workers: int) -> None:
    assert [Path(str(p)).name for p in find_images(photos)] == [f"{i}.png" for i in range(7)]
    assert [Path(str(p)).name for p in find_images(f"{photos}/**/[3-5].png")] == ["3.png", "4.png", "5.png"]
    assert find_images(str(photos / "notes.txt")) == [str(photos / "notes.txt")]
    files = [photos / "b" / f"{i}.png" for i in (6, 3)]
    found = list(attn.predict(trained, files, batch_size=1, workers=workers))
    assert [p.image for p in found] == [str(f) for f in files]
    for nothing in (photos / "*.gif", [], photos / "empty"):
        with pytest.raises(UserError, match="images"):
            find_images(nothing)  # type: ignore[arg-type]


def test_the_script_names_what_it_cannot_read(trained: Path, photos: Path, tmp_path: Path, in_process) -> None:
    out = tmp_path / "some [0].csv"
    command = ["scripts/predict.py", f"checkpoint={trained}", f"images={photos}", "topk=2", f"out={out}", "workers=0"]
    done = in_process(command)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.open()))
    assert [Path(row["image"]).name for row in rows] == [f"{i}.png" for i in (0, 2, 3, 4, 5, 6)]
    assert set(rows[0]) == {"image", *(f"{k}{n}" for n in (1, 2) for k in ("label", "class", "probability"))}
    assert rows[0]["class1"] == f"digit, {rows[0]['label1']}"
    assert done.stderr.count("warning:") == 1
    assert "a/1.png" in done.stderr
    assert "1 of 7 files could not be read" in done.stdout
    nothing = in_process(
        ["scripts/predict.py", f"checkpoint={trained}", f"images={photos / 'notes.txt'}", f"out={tmp_path}/no.csv"]
    )
    assert nothing.returncode == 1
    assert not (tmp_path / "no.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "checkpoint must be set"),
        (["checkpoint=x.pt"], "images must be set"),
        (["checkpoint=x.pt", "images=."], "images=.: no image in this folder"),
        (["checkpoint=x.pt", "images=x.png", "out=."], "out=. is a folder"),
        (["checkpoint=x.pt", "images=x.png", "topk=0"], "topk=0: must be greater than 0"),
        (["checkpoint=x.pt", "images=x.png", "top=0"], "unknown key 'top'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], told: str, tmp_path: Path, in_process) -> None:
    arguments = [a.replace("images=.", f"images={tmp_path}") for a in arguments]
    done = in_process(["scripts/predict.py", *arguments])
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {told.replace('images=.', f'images={tmp_path}')}")
    assert done.stderr.count("\n") == 1


def test_help(in_process) -> None:
    shown = in_process(["scripts/predict.py", "--help"])
    assert shown.returncode == 0
    assert "topk=5" in shown.stdout
    assert "Groups" not in shown.stdout


def test_data_sets_name_their_classes() -> None:
    digits = load_dataset(Data(name="digits", source="digits", num_classes=10), train=True)
    assert class_names(digits) == [str(i) for i in range(10)]
    assert class_names(Arrays(np.zeros((1, 2, 2), np.uint8), np.zeros(1, int), ["a"])) == ["a"]


def test_a_checkpoint_without_names_gives_numbers(tmp_path: Path, photos: Path, in_process) -> None:
    old = make_checkpoint(tmp_path, None)
    done = in_process(["scripts/predict.py", f"checkpoint={old}", f"images={photos}/b/3.png", f"out={tmp_path}/p.csv"])
    assert "does not know the names of its classes" in done.stdout
    (row,) = csv.DictReader((tmp_path / "p.csv").open())
    assert row["class1"] == row["label1"]


def test_evaluation_by_class_and_image_on_two_ranks(tmp_path: Path) -> None:
    checked, out = make_checkpoint(tmp_path, None), tmp_path / "each.csv"
    done = call(
        [
            "eval.py",
            f"checkpoint={checked}",
            "per_class=true",
            f"predictions={out}",
            f"output={tmp_path}/s.json",
            "device=cpu",
        ],
        ranks=2,
    )
    assert done.returncode == 0, done.stderr
    data = evaluation_data(composed("attention=se", *SMALL).data)
    settings = Settings(8, by_class=True, outcomes=True)
    alone = evaluate(attn.load(checked), data, Ranks(0, 1, torch.device("cpu")), settings)
    rows = list(csv.DictReader(out.open()))
    assert [int(row["index"]) for row in rows] == list(range(len(data)))
    assert [int(row["label"]) for row in rows] == [data.dataset[i][1] for i in range(len(data))]
    assert alone.outcomes is not None
    assert alone.classes is not None
    assert [int(row["label1"]) for row in rows] == alone.outcomes.guesses[:, 0].tolist()
    assert sum(int(row["correct"]) for row in rows) == alone.correct1
    saved = json.loads((tmp_path / "s.json").read_text())
    assert [row["images"] for row in saved["classes"]] == alone.classes.labelled.tolist()
    assert sum(row["correct1"] for row in saved["classes"]) == saved["correct1"] == alone.correct1
    hits = [sum(int(r["correct"]) for r in rows if int(r["label"]) == k) for k in range(10)]
    assert [row["correct1"] for row in saved["classes"]] == hits
    table = [line.split() for line in done.stdout.splitlines()]
    assert ["0", str(saved["classes"][0]["images"]), f"{saved['classes'][0]['top1']:.2f}"] in table
