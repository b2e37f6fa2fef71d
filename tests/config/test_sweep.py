"""Sweeps and the folders of runs: different runs have different folders, and a failing cell does not stop the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import NARROW, ROOT, TINY, call
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from attn.config.parse import parse
from attn.config.run_name import LIMIT, variant

SHOW = ["--cfg", "job", "--resolve", "--package", "run_dir"]


def folder(in_process, *overrides: str) -> str:
    result = in_process(["train.py", *overrides, *SHOW])
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


NAMES = {
    "": "resnet50-none-imagenet/seed0",
    "seed=3 attention=ba data=digits": "resnet50-ba-digits/seed3",
    "schedule=quick data=digits": "resnet50-none-digits-quick/seed0",
    "attention=se attention.block.reduction=8": "resnet50-se-imagenet-block.reduction_8/seed0",
    "attention=se ++attention.block.reduction=8 schedule.lr=0.10": "resnet50-se-imagenet-block.reduction_8/seed0",
    "schedule.lr=0.2 data.mean=[0.5,0.5,0.5]": "resnet50-none-imagenet-mean_0.5_0.5_0.5-lr_0.2/seed0",
    "data.mean=[0.5,0.5,0.5] schedule.lr=0.1 schedule.lr=0.2": "resnet50-none-imagenet-mean_0.5_0.5_0.5-lr_0.2/seed0",
    "pretrained=true +backbone.drop_rate=0.5": "resnet50-none-imagenet-backbone.drop_rate_0.5-pretrained_true/seed0",
    "backbone.name=resnet26": "resnet26-none-imagenet/seed0",
    "data.workers=1 device=cpu log_every=3 data.root=/x logger=wandb compile=true": "resnet50-none-imagenet/seed0",
}


@pytest.mark.parametrize("command", NAMES)
def test_the_folder_says_what_changes_the_result(command: str, in_process) -> None:
    assert folder(in_process, *command.split()) == f"runs/{NAMES[command]}"


@pytest.mark.parametrize("command", NAMES)
def test_composing_in_python_gives_the_same_folder_and_name(command: str) -> None:
    overrides = command.split()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        composed = compose("train", overrides)
    chosen = [o for o in overrides if o.startswith("attention=")]
    assert composed.attention_name == (chosen[0].partition("=")[2] if chosen else "none")
    assert parse(composed).run_dir == f"runs/{NAMES[command]}"  # Hydra itself is not initialized any more


def test_composing_in_python_needs_no_more_than_the_package(tmp_path: Path) -> None:
    code = f"""
import attn, hydra
with hydra.initialize_config_dir({str(ROOT / "configs")!r}, version_base="1.3"):
    print(hydra.compose("train", ["attention=se", "attention_name=mine"]).run_dir)
"""
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.stdout == "runs/resnet50-mine-imagenet/seed0\n", told.stderr


def test_the_folder_has_a_bounded_name_that_tells_all_apart() -> None:
    plain = {"data": {"name": "digits"}, "backbone": {"name": "resnet18"}, "schedule": {}}
    choices = {"data": "digits", "backbone": "resnet18", "schedule": "default"}

    def name(**options: object) -> str:
        return variant({**plain, "backbone": {"name": "resnet18", **options}}, plain, choices)

    odd = [name(x=value) for value in ("a/b", "a_b", "a b", ["a", "b"], ["a_b"], [["a"], "b"], "a" * 300, "a" * 301)]
    odd += [name(x=value) for value in (True, "true", "null", [None], 0.5, "0.5", [0.5, 1], "0.5_1", [], "1-y_2")] + [
        name(x=1, y=2)
    ]
    assert len(set(odd)) == len(odd)
    assert all(len(text) <= LIMIT + 1 and "/" not in text and " " not in text for text in odd)
    own = {**choices, "data": "mine"}
    assert variant(plain, plain, own) == "-mine"  # a file of one's own that says `name: digits`


values = st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), st.lists, max_leaves=4)


@given(values, values)
def test_other_values_give_other_names(one: object, other: object) -> None:
    plain: dict = {"data": {"name": "d"}, "backbone": {"name": "b"}}
    choices = {"data": "d", "backbone": "b", "schedule": "default"}
    names = [variant({**plain, "schedule": {"x": value}}, plain, choices) for value in (one, other)]
    assert (names[0] == names[1]) == (one == other)


def test_a_sweep_over_any_key_has_a_folder_for_each_cell_and_outlives_a_failing_one(tmp_path: Path) -> None:
    settings = [*TINY, "schedule.batch_size=512", "attention=se", "attention.position=null,begin", "schedule.lr=0.1,0.05"]
    root = f"run_dir={tmp_path}/${{attention.position}}${{run_variant:}}"
    result = call(["train.py", *settings, root, f"hydra.sweep.dir={tmp_path}", "-m"])
    assert result.returncode == 2, result.stderr
    assert [line for line in result.stdout.splitlines() if " of 4: " in line] == [
        f"{i} of 4: attention.position={position} schedule.lr={lr}"
        for i, (position, lr) in enumerate([(p, lr) for p in ("null", "begin") for lr in (0.1, 0.05)], 1)
    ]
    assert len(list(tmp_path.glob("*/DONE"))) == 2
    *_, head, third, fourth = result.stderr.splitlines()
    assert head == "error: 2 of 4 cells failed, the others are finished:"
    assert third.startswith(
        "  3 of 4: attention.position=begin schedule.lr=0.1: attention=se backbone=resnet10t: position='begin'"
    )
    assert fourth.startswith("  4 of 4: attention.position=begin schedule.lr=0.05: ")


def test_a_key_that_only_some_cells_have_is_told(in_process) -> None:
    result = in_process(["train.py", "attention=se,eca", "attention.block.reduction=4", "-m"])
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert (
        "'attention.block.reduction' is a key with attention=se only, and the sweep has attention=eca too" in result.stderr
    )


def test_help_lists_the_groups_to_choose_from() -> None:
    listing = call(["train.py", "--help"]).stdout.partition("Groups: ")[2].partition("\n\n")[0].splitlines()[1:]
    groups = [line.strip() for line in listing if not line.startswith("    ")]
    assert groups == ["backbone", "attention", "data", "schedule", "logger"]
    assert (ROOT / "configs" / "papers").is_dir()  # not among them


def test_a_sweep_of_two_ranks_runs_its_cells_on_both(tmp_path: Path) -> None:
    """The options may stand between the keys, and the first rank alone says which cell it is."""
    place = f"run_dir={tmp_path}/${{attention_name}}"
    done = call(["train.py", "attention=none,se", "-m", *NARROW, place], ranks=2)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if " of 2: " in line] == [
        "1 of 2: attention=none",
        "2 of 2: attention=se",
    ]
    assert all((tmp_path / name / "DONE").exists() for name in ("none", "se"))
