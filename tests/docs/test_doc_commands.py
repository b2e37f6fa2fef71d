"""Every command that README and docs print is one that its program takes. Most stop where their data is missing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, composed
from hydra import compose, initialize_config_dir

import attn.config.evaluation  # noqa: F401  # the config that eval.yaml names
from attn.config.groups import config_dir

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LAUNCHERS = {"torchrun", "sbatch", "nohup", "srun"}
ASSIGNMENT = re.compile(r"^[A-Z_]+=\S*$")


def commands(path: Path) -> Iterator[list[str]]:
    """The commands in a page's bash blocks, without comments, launchers and variables, split into words."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```\s*$", path.read_text(), re.MULTILINE | re.DOTALL):
        if language not in ("bash", "sh", ""):
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for part in re.split(r"\s+&&?\s+|\s+&&?$", re.sub(r"(^|\s)#\s.*$", "", line)):
                words = shlex.split(part)
                while words and ASSIGNMENT.match(words[0]):
                    words = words[1:]
                if words:
                    yield words


ALL = [(path.name, " ".join(map(shlex.quote, words)), words) for path in PAGES for words in commands(path)]


def after(words: list[str], program: str) -> list[str] | None:
    """The arguments of a program, also under a launcher; None if the command does not call it."""
    return words[words.index(program) + 1 :] if program in words else None


def overrides(arguments: list[str]) -> list[str]:
    """Hydra's overrides among the arguments; of a sweep the first value of each key."""
    chosen = [argument.replace("...", "") for argument in arguments if "=" in argument and not argument.startswith("--")]
    if "-m" in arguments:
        chosen = [re.sub(r"^([\w.@+]+=[^\[,]+),.*$", r"\1", argument) for argument in chosen]
    return [argument for argument in chosen if not argument.startswith("hydra.")]


@pytest.mark.parametrize(
    "command", sorted({line for _, line, words in ALL if after(words, "train.py") or "scripts/slurm.sh" in words})
)
def test_training_commands_compose(command: str) -> None:
    words = shlex.split(command)
    arguments = after(words, "train.py") or after(words, "scripts/slurm.sh") or []
    if "attention=mine" in arguments or "attention=temperature" in arguments:  # of the reader's own
        arguments = [argument for argument in arguments if not argument.startswith("attention=")]
    without_root = any(argument.startswith(("data=digits", "data=elpv", "data=fake")) for argument in arguments)
    composed(*([] if without_root else ["data.root=/data"]), *overrides(arguments))


@pytest.mark.parametrize("command", sorted({line for _, line, words in ALL if after(words, "eval.py")}))
def test_evaluation_commands_compose(command: str) -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        compose("eval", overrides(after(shlex.split(command), "eval.py") or []))


@pytest.mark.parametrize(
    "command",
    sorted({line for _, line, words in ALL if any(re.match(r"(scripts|detection)/\w+\.py", word) for word in words)}),
)
def test_scripts_and_their_options_exist(command: str) -> None:
    words = shlex.split(command)
    name = next(word for word in words if re.match(r"(scripts|detection)/\w+\.py", word))
    assert (ROOT / name).is_file(), name
    arguments = after(words, name) or []
    source = (ROOT / name).read_text() + "".join(path.read_text() for path in (ROOT / name).parent.rglob("*.py"))
    for option in (argument.partition("=")[0] for argument in arguments if argument.startswith("--")):
        known = f'"{option}"' in source or option in ("--help", "--resume", "--launcher", "--cfg-options")
        assert known, f"{name} has no option {option}"
    for config in (argument for argument in arguments if argument.startswith("detection/configs/")):
        assert (ROOT / config).is_file(), config


def test_make_targets_and_extras_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    project = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", project, re.MULTILINE)
    targets = {words[1] for _, _, words in ALL if words[0] == "make"}
    assert targets >= {"quickstart", "test"}
    for target in targets:
        assert re.search(
            rf"^{re.escape(target)}:|^\$\(BIN\)/{re.escape(target.removeprefix('.venv/bin/'))}:", makefile, re.MULTILINE
        ), target
    for path in PAGES:
        for names in re.findall(r"(?:attn|\.)\[([\w,]+)\]", path.read_text()):
            assert set(names.split(",")) <= set(extras), f"{path.name}: {names}"


def test_every_command_is_of_a_known_kind() -> None:
    """So that a new program in the docs is checked, too."""
    known = {
        "python",
        "make",
        "pip",
        "torchrun",
        "sbatch",
        "attn-train",
        "attn-eval",
        "attn-build",
        "export",
        "cd",
        "apt-get",
        "scripts/gpu_report.sh",
        "uv",
        "pre-commit",
        "mkdir",
        "ln",
    }
    assert {words[0] for _, _, words in ALL} <= known
