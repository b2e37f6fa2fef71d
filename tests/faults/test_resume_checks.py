"""What a checkpoint may hold when a run continues from it, and what a refused command leaves behind."""

from __future__ import annotations

import copy
import math
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import ROOT, Command
from fault_harness import PER_EPOCH, TINY, Run, compose_config, finished
from fault_injection import signal_in_step

import attn
from attn.config import parse
from attn.distributed import Ranks
from attn.errors import UserError
from attn.evaluation import job
from attn.runs import checkpoint, directory, load, metrics
from attn.runs.fingerprint import fingerprint
from attn.training import optim, setup, stopping
from attn.training.state import expect_same_optimizer


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    finished(folder)
    return folder


def optimizer_after_a_step(run_dir: Path, name: str) -> torch.optim.Optimizer:
    cfg = compose_config([*TINY, f"schedule.optimizer={name}"], run_dir)
    optimizer = optim.build_optimizer(cfg.schedule, load.build(cfg))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


# What is done to the state of the first parameter, and what is said of it.
DAMAGE: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "shape": ("sgd", lambda kept: kept.update(momentum_buffer=torch.zeros(3)), "momentum_buffer of another shape than"),
    "type": ("sgd", lambda kept: kept.update(momentum_buffer=kept["momentum_buffer"].long()), "type torch.int64, not"),
    "half": ("adamw", lambda kept: kept.update(exp_avg=kept["exp_avg"].half()), "type torch.float16, not torch.float32"),
    "nan": ("adamw", lambda kept: kept["exp_avg_sq"].fill_(math.nan), "exp_avg_sq that is not finite"),
    "inf": ("sgd", lambda kept: kept["momentum_buffer"].fill_(math.inf), "momentum_buffer that is not finite"),
    "number": ("sgd", lambda kept: kept.update(momentum_buffer=3), "momentum_buffer of another shape than"),
    "step": ("adamw", lambda kept: kept.update(step=torch.tensor(-1.0)), "a step that is no number, 0 or more"),
    "steps": ("adamw", lambda kept: kept.update(step=torch.zeros(2)), "a step that is no number, 0 or more"),
    "lack": ("adamw", lambda kept: kept.pop("exp_avg"), "lacks exp_avg"),
    "other": ("sgd", lambda kept: kept.update(exp_avg=3), "the state of another optimizer"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_state_of_the_optimizer_is_named(run_dir: Path, kind: str) -> None:
    name, damage, said = DAMAGE[kind]
    optimizer = optimizer_after_a_step(run_dir, name)
    content = copy.deepcopy(optimizer.state_dict())
    expect_same_optimizer(optimizer, content, "last.pt")
    damage(content["state"][0])
    with pytest.raises(checkpoint.BadCheckpoint, match=f"checkpoint last.pt .*{re.escape(said)}"):
        expect_same_optimizer(optimizer, content, "last.pt")


def test_the_state_of_a_parameter_that_is_not_there(run_dir: Path) -> None:
    optimizer = optimizer_after_a_step(run_dir, "sgd")
    content = copy.deepcopy(optimizer.state_dict())
    content["state"][9999] = content["state"][0]
    with pytest.raises(checkpoint.BadCheckpoint, match="of parameter 9999 is of no parameter"):
        expect_same_optimizer(optimizer, content, "last.pt")


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"step": 10**12, "evaluated": 10**12}, "1000000000000 evaluated epochs, and its own schedule.epochs asks for 2"),
        ({"step": 9, "evaluated": 3}, "3 evaluated epochs, and its own schedule.epochs asks for 2"),
        ({"step": 10**12, "evaluated": 2}, "step 1000000000000 after 2 evaluated epochs"),
        ({"step": 7, "evaluated": 1}, "an epoch has 3 steps here"),
    ],
)
def test_counters_that_no_training_reaches(run_dir: Path, counts: dict[str, int], said: str) -> None:
    content = checkpoint.read(run_dir / "last.pt")
    setup.expect_possible(setup.Found(run_dir / "last.pt", content), PER_EPOCH)
    with pytest.raises(checkpoint.BadCheckpoint, match=said):
        setup.expect_possible(setup.Found(run_dir / "last.pt", content | counts), PER_EPOCH)


def test_they_are_not_taken_for_a_finished_run(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    counts = {"step": 10**12, "evaluated": 10**12}
    torch.save(checkpoint.read(run_dir / "last.pt") | counts, tmp_path / "run" / "last.pt")
    before = (tmp_path / "run" / "last.pt").read_bytes()
    refused = Run(tmp_path / "run")
    assert refused.wait() == [2]
    assert "finished already" not in refused.text
    assert "last.pt is damaged" in refused.text
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


def test_the_config_decides_the_settings_of_the_optimizer(run_dir: Path, tmp_path: Path) -> None:
    """With force=true they may differ from the checkpoint's, which torch would take."""
    content = checkpoint.read(run_dir / "last.pt")
    cfg = compose_config([*TINY, "schedule.weight_decay=0.5", "schedule.momentum=0.1"], tmp_path / "run")
    state = setup.build_state(cfg, Ranks(0, 1, torch.device("cpu")), load.build(cfg), None)
    state.load_state_dict(content, "last.pt")
    group = state.optimizer.param_groups[0]
    assert (group["weight_decay"], group["momentum"]) == (0.5, 0.1)
    with pytest.raises(checkpoint.BadCheckpoint, match="its optimizer kept nothing of 6 steps"):
        state.load_state_dict(content | {"optimizer": content["optimizer"] | {"state": {}}}, "last.pt")


def test_values_that_older_versions_took_do_not_keep_a_checkpoint_from_use(run_dir: Path, tmp_path: Path) -> None:
    content = checkpoint.read(run_dir / "last.pt")
    config = copy.deepcopy(content["config"])
    config["data"] |= {"color_jitter": 5.0, "auto_augment": "rand-m99", "std": [1e-9, 1.0, 1.0], "hflip": 3.0}
    config["schedule"] |= {"lr": 5000.0, "name": "an old one", "milestones": [3, 1]}
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "last.pt"
    torch.save(content | {"config": config}, path)
    attn.load(path)
    with pytest.raises(UserError, match=r"data\.std"):  # which test images see
        job.run(job.Request(str(path), device="cpu"))
    scores = job.run(job.Request(str(path), device="cpu", data={"std": [0.229, 0.224, 0.225]}))
    assert scores.count == 24
    cfg = compose_config(TINY, tmp_path / "run")
    with pytest.raises(UserError, match=r"last\.pt was made with another config \(.*data\.color_jitter: 5\.0 -> 0\.0"):
        setup.find_checkpoint(cfg, tmp_path / "run")
    config["data"]["num_classes"] = -3  # which the network needs
    torch.save(content | {"config": config}, path)
    with pytest.raises(checkpoint.BadCheckpoint, match=r"does not fit this version: data\.num_classes=-3"):
        attn.load(path)


def test_a_refused_command_leaves_no_lock(tmp_path: Path) -> None:
    for there, left in ((False, False), (True, True)):  # the user's own folder stays
        folder = tmp_path / f"run{there}"
        if there:
            folder.mkdir()
        with pytest.raises(UserError), directory.claim(folder):
            raise UserError("no")
        assert folder.exists() is left
        assert not (folder / directory.LOCK).exists()
    stale = tmp_path / "stale"
    stale.mkdir()
    (stale / directory.LOCK).write_text("process 1 on here")
    with pytest.raises(UserError), directory.claim(stale):
        raise UserError("no")
    assert not stale.exists()
    stale.mkdir()
    (stale / "notes.txt").touch()
    with pytest.raises(UserError), directory.claim(stale):
        raise UserError("no")
    assert (stale / "notes.txt").exists()


def test_a_refused_sweep_leaves_no_file(in_process: Command) -> None:
    before = set(ROOT.glob("runs*")) | set(ROOT.glob("runs/*"))
    for command in (["attention=se,nope", "-m"], ["-m", "seed=abc,def"], ["-m", "attention=se,eca", "foo=3"]):
        result = in_process(["train.py", "data=digits", *command])
        assert result.returncode == 2, result.stderr
        assert "error: " in result.stderr
    assert set(ROOT.glob("runs*")) | set(ROOT.glob("runs/*")) == before


def test_a_nan_of_the_images_is_not_answered_by_skipping(tmp_path: Path) -> None:
    class Images:
        dataset = SimpleNamespace(samples=[("a.png", 0), ("b.png", 1), ("c.png", 0)])

        def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor]:
            return (torch.full((3, 2, 2), math.nan if key == (1, 2) else 0.5),)

    run = SimpleNamespace(state=SimpleNamespace(step=4), data=SimpleNamespace(steps_per_epoch=3, dataset=Images()))
    assert stopping.non_finite_image(run, [0, 1, 2]) == "c.png (image 2)"  # type: ignore[arg-type]
    assert stopping.non_finite_image(run, [0, 1]) is None  # type: ignore[arg-type]


def test_early_stopping_resumes_with_its_patience(tmp_path: Path) -> None:
    """A rate that moves nothing: the first epoch stays the best, and the third is the last of six."""
    options = ["schedule.epochs=6", "schedule.lr=1e-12", "early_stop=2", "save_every_steps=1"]
    whole = finished(tmp_path / "whole", *options)
    assert len(metrics.read_metrics(tmp_path / "whole")) == 3
    assert "stopped early" in whole.text
    for step in (2 * PER_EPOCH - 1, 2 * PER_EPOCH + 1):  # in the second and in the third epoch
        killed = Run(tmp_path / "killed", *options, faults=[signal_in_step(step)])
        assert killed.wait() == [-signal.SIGKILL]
    again = finished(tmp_path / "killed", *options)
    assert "stopped early" in again.text
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")
    assert "finished already: 3 epochs" in finished(tmp_path / "killed", *options).text


def test_used_configs_are_still_checked_for_types(run_dir: Path) -> None:
    config = parse.to_dict(replace(compose_config(TINY, run_dir), seed=3))
    config["schedule"]["lr"] = "high"
    with pytest.raises(UserError, match=r"schedule\.lr=high: must be a number"):
        parse.from_dict(config)
