"""Whole runs on real digits: train, evaluate, resume, on one rank and on two."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import NARROW, TINY, call

import attn


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(path: Path, key: str = "model") -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)[key]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with everything switched on that a CPU can do."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    extras = ["schedule.ema_decay=0.9", "schedule.mixup=0.2", "schedule.cutmix=1.0", "schedule.label_smoothing=0.1"]
    extras += ["schedule.clip_grad=1.0", "schedule.accumulate=2", "schedule.amp=bf16", "channels_last=true", "logger=csv"]
    result = call(["train.py", *NARROW, "attention=ba", "schedule.epochs=2", f"run_dir={folder}", *extras])
    assert result.returncode == 0, result.stderr
    assert str(folder / "best.pt") in result.stdout
    assert str(folder / "curves.png") in result.stdout
    return folder


def test_the_output_directory_alone_is_enough(finished: Path) -> None:
    history = rows(finished)
    assert [row["epoch"] for row in history] == [1, 2]
    for row in history:
        for key in (
            "train_loss",
            "train_top1",
            "val_loss",
            "val_top1",
            "val_top5",
            "ema_val_top1",
            "lr",
            "images_per_second",
        ):
            assert isinstance(row[key], float)
    with open(finished / "metrics.csv") as file:
        assert [float(row["val_loss"]) for row in csv.DictReader(file)] == [row["val_loss"] for row in history]
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in ("last.pt", "best.pt"):
        content = torch.load(finished / name, weights_only=True)
        assert content["config"]["attention_name"] == "ba"
        assert set(content["versions"]) == {"attn", "torch", "torchvision", "timm", "git"}
        assert not any(key.startswith(("module.", "_orig_mod.")) for key in content["model"])
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize(("choice", "prefix"), [("raw", "val_"), ("ema", "ema_val_")])
def test_evaluation_prints_what_training_printed(finished: Path, choice: str, prefix: str, in_process) -> None:
    result = in_process(["eval.py", f"checkpoint={finished / 'last.pt'}", f"weights={choice}"])
    assert result.returncode == 0, result.stderr
    name = "eval-last.json" if choice == "ema" else "eval-last-raw.json"
    saved = json.loads((finished / name).read_text())
    last = rows(finished)[-1]
    assert {k: saved[k] for k in ("top1", "top5", "loss")} == {k: last[prefix + k] for k in ("top1", "top5", "loss")}
    assert f"top-1 {saved['top1']:.3f} %" in result.stdout


def test_evaluation_on_other_data(finished: Path, in_process) -> None:
    common = ["eval.py", f"checkpoint={finished / 'best.pt'}"]
    own = finished / "eval-best.json"
    own.write_text("the scores on its own data")
    refused = in_process([*common, "data=fake"])
    assert refused.returncode == 2
    assert "data=fake has 1000 classes, the checkpoint was trained on 10 (digits)" in refused.stderr
    done = in_process(
        [*common, "data=fake", "data.num_classes=10", "data.samples=20", "data.image_size=32", "data.workers=0"]
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((finished / "eval-best-fake.json").read_text())["images"] == 20
    assert own.read_text() == "the scores on its own data"


def test_load_gives_the_model_in_eval_mode(finished: Path) -> None:
    raw, averaged = attn.load(finished / "best.pt", ema=False), attn.load(finished / "best.pt")
    assert not raw.training
    assert not averaged.training
    x = torch.randn(1, 3, 32, 32)
    assert raw(x).shape == (1, 10)
    assert not torch.equal(raw(x), averaged(x))
    assert all(torch.equal(v, raw.state_dict()[k]) for k, v in weights(finished / "best.pt").items())
    assert all(torch.equal(v, averaged.state_dict()[k]) for k, v in weights(finished / "best.pt", "ema").items())


def test_the_same_command_says_that_it_is_finished(finished: Path, in_process) -> None:
    before = (finished / "last.pt").stat().st_mtime_ns
    content = torch.load(finished / "last.pt", weights_only=True)["config"]
    overrides = [f"run_dir={finished}", "attention=ba", "schedule.epochs=2", "logger=csv", "channels_last=true"]
    overrides += [
        f"schedule.{k}={content['schedule'][k]}"
        for k in ("ema_decay", "mixup", "cutmix", "label_smoothing", "clip_grad", "accumulate", "amp")
    ]
    again = in_process(["train.py", *NARROW, *overrides])
    assert again.returncode == 0, again.stderr
    assert "finished already: 2 epochs" in again.stdout
    assert (finished / "last.pt").stat().st_mtime_ns == before
    changed = in_process(["train.py", *NARROW, *overrides, "schedule.lr=0.2", "seed=1"])
    assert changed.returncode == 2
    assert "seed: 0 -> 1" in changed.stderr
    assert "schedule.lr: 0.05 -> 0.2" in changed.stderr
    never = in_process(["train.py", *NARROW, *overrides, "resume=never"])
    assert never.returncode == 2
    assert "resume=never" in never.stderr


def test_a_longer_run_starts_from_a_checkpoint_only_when_forced(finished: Path, tmp_path: Path, in_process) -> None:
    """resume=PATH continues another run's checkpoint in a new directory."""
    copy = tmp_path / "copy.pt"
    shutil.copy(finished / "last.pt", copy)
    overrides = [f"run_dir={tmp_path / 'longer'}", "attention=ba", "schedule.epochs=3", f"resume={copy}", "force=true"]
    overrides += ["schedule.ema_decay=0.9", "schedule.accumulate=2"]
    result = in_process(["train.py", *NARROW, *overrides])
    assert result.returncode == 0, result.stderr
    assert "at step 44 of 66" in result.stdout
    assert [row["epoch"] for row in rows(tmp_path / "longer")] == [1, 2, 3]
    assert rows(tmp_path / "longer")[:2] == rows(finished)


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    """Without batch statistics the gradient of a batch does not depend on how ranks share it."""
    histories = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        extras = ["+backbone.norm_layer=groupnorm1", "attention=se", "schedule.lr=0.002"]
        result = call(["train.py", *NARROW, f"run_dir={folder}", *extras], ranks)
        assert result.returncode == 0, result.stderr
        histories.append(rows(folder))
    for one, two in zip(*histories, strict=True):
        for key in ("train_loss", "val_loss"):
            assert two[key] == pytest.approx(one[key], rel=1e-4)
        assert abs(two["val_top1"] - one["val_top1"]) < 1.0
    one, two = (weights(tmp_path / name / "last.pt") for name in ("1", "2"))
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-3


def test_evaluation_counts_every_image_once_on_two_ranks(finished: Path, tmp_path: Path) -> None:
    scores = []
    for ranks, batch_size in ((1, 64), (2, 7)):
        output = tmp_path / f"{ranks}.json"
        result = call(
            ["eval.py", f"checkpoint={finished / 'best.pt'}", f"output={output}", f"batch_size={batch_size}"], ranks
        )
        assert result.returncode == 0, result.stderr
        scores.append(json.loads(output.read_text()))
    one, two = scores
    assert one["images"] == two["images"] == 355
    assert (one["correct1"], one["correct5"]) == (two["correct1"], two["correct5"])
    assert two["loss"] == pytest.approx(one["loss"], rel=2e-3)  # bf16: other batches, other rounding


def test_ba2m_is_tested_by_the_softmax_over_the_test_batch(tmp_path: Path, in_process) -> None:
    """Each batch size and each way has its own scores and its own file; off is the identity for all of them."""
    folder = tmp_path / "run"
    settings = ["attention=ba2m", "attention.stage.zero_init=false", "data.samples=128", f"run_dir={folder}"]
    result = in_process(["train.py", *NARROW, *settings])
    assert result.returncode == 0, result.stderr
    losses = {}
    for inference, batch_size in (("off", 7), ("off", 100), ("softmax", 1), ("softmax", 7), ("softmax", 100), ("sar", 7)):
        chosen = [f"inference={inference}", f"batch_size={batch_size}"]
        result = in_process(["eval.py", f"checkpoint={folder / 'last.pt'}", *chosen])
        assert result.returncode == 0, result.stderr
        scores = json.loads((folder / f"eval-last-{inference}-{batch_size}.json").read_text())
        assert (scores["inference"], scores["batch_size"], scores["images"]) == (inference, batch_size, 355)
        losses[inference, batch_size] = scores["loss"]
    off = losses.pop(("off", 7))
    assert losses.pop(("off", 100)) == pytest.approx(off, rel=2e-3)
    assert losses.pop(("softmax", 1)) == pytest.approx(off, rel=2e-3)  # a softmax of one is 1
    assert len({round(loss, 3) for loss in (off, *losses.values())}) == 4, losses


def test_an_attention_without_it_has_no_inference_to_set(finished: Path, in_process) -> None:
    result = in_process(["eval.py", f"checkpoint={finished / 'best.pt'}", "inference=softmax"])
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "inference=softmax: attention=" in result.stderr
    assert "ba2m" in result.stderr


def test_an_attention_from_outside_the_package(tmp_path: Path) -> None:
    """One file and one yaml of the user's own: it is chosen, trained for an epoch, saved and loaded."""
    (tmp_path / "mine.py").write_text(
        "from attn.attention import Gate\n"
        "from torch import nn\n\n"
        "class Mine(Gate):\n"
        "    def __init__(self, site, bias: bool = True):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(site.width, site.width, bias=bias)\n\n"
        "    def excite(self, z):\n"
        "        return self.fc(z).sigmoid()\n"
    )
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "mine.yaml").write_text("block: {_target_: mine.Mine, bias: true}\n")
    extras = [f"hydra.searchpath=[file://{tmp_path}]", "attention=mine", "attention.block.bias=false"]
    folder = tmp_path / "run"
    result = call(["train.py", *NARROW, *extras, f"run_dir={folder}"], env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    saved = weights(folder / "last.pt")
    assert "layer1.0.se.fc.weight" in saved
    assert "layer1.0.se.fc.bias" not in saved
    shown = call(["eval.py", f"checkpoint={folder / 'last.pt'}", "trust=[mine]"], env={"PYTHONPATH": str(tmp_path)})
    assert shown.returncode == 0, shown.stderr


def test_a_sweep_keeps_its_cells_apart(tmp_path: Path) -> None:
    pattern = f"run_dir={tmp_path}/${{attention_name}}/seed${{seed}}"
    elsewhere = [f"hydra.sweep.dir={tmp_path}"]
    result = call(
        ["train.py", *NARROW, pattern, "attention=none,se", "seed=0,1", "schedule.batch_size=256", *elsewhere, "-m"]
    )
    assert result.returncode == 0, result.stderr
    assert sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("DONE")) == [
        "none/seed0", "none/seed1", "se/seed0", "se/seed1",
    ]  # fmt: skip


def test_dreal_trains_its_critic(tmp_path: Path) -> None:
    """An attention's own objective is part of the loss, also under DDP, which needs a gradient for every parameter."""
    folder = tmp_path / "run"
    result = call(["train.py", *TINY, "attention=dreal", "schedule.batch_size=512", f"run_dir={folder}"], ranks=2)
    assert result.returncode == 0, result.stderr
    momenta = torch.load(folder / "last.pt", weights_only=True)["optimizer"]["state"]
    assert all(state["momentum_buffer"].abs().max() > 0 for state in momenta.values())
