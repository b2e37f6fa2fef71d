"""A study: a recipe, methods and seeds from `configs/studies`, and the command of each of its runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from attn.config.groups import config_dir, unknown
from attn.errors import UserError

REQUIRED = {"title", "text", "base", "baseline", "methods", "seeds", "scores"}
OPTIONAL = {"detector", "prepare", "curves"}


@dataclass(frozen=True)
class Study:
    """What `configs/studies/NAME.yaml` says.

    Attributes:
        name: of the file.
        title, text: for the page of its results.
        base: overrides of every run: the recipe.
        baseline: the method to which the others are compared.
        methods: overrides of each method, by name, in the order of the table; the baseline is one of them.
        seeds: which are run; all methods get the same.
        scores: what the table gives, as `metrics.jsonl` names it without `val_`; the first decides.
        detector: a config of `detection/configs`, whose overrides `base` and `methods` are; None: they are those of `train.py`.
        prepare: commands that come before all runs, such as one that makes the images.
        curves: methods whose learning curves are drawn.
    """

    name: str
    title: str
    text: str
    base: tuple[str, ...]
    baseline: str
    methods: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    scores: tuple[str, ...]
    detector: str | None = None
    prepare: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()

    @property
    def script(self) -> str:
        """What trains a run, below the root of the repository."""
        return "train.py" if self.detector is None else "detection/train.py"

    def folder(self, runs: Path, method: str, seed: int) -> Path:
        """Where a run is written."""
        return runs / self.name / method / f"seed{seed}"

    def command(self, runs: Path, method: str, seed: int) -> list[str]:
        """The arguments of `script` for one run; the same command continues it."""
        chosen, folder = [*self.base, *self.methods[method]], str(self.folder(runs, method, seed))
        if self.detector is None:
            return [*chosen, f"seed={seed}", f"run_dir={folder}"]
        options = ["--cfg-options", *chosen, f"randomness.seed={seed}"]
        return [self.detector, "--work-dir", folder, "--resume", *options]

    def cells(self, methods: list[str] | None = None, seeds: list[int] | None = None) -> Iterator[tuple[str, int]]:
        """The runs in the order in which they are made: all methods of a seed before the next, so that an interrupted study
        is paired.

        Raises:
            UserError: there is no such method or seed.
        """
        for method in methods or ():
            if method not in self.methods:
                raise UserError(unknown(f"method of {self.name}", method, self.methods))
        for seed in seeds or ():
            if seed not in self.seeds:
                raise UserError(f"seed {seed} is none of {self.name}: choose from {', '.join(map(str, self.seeds))}")
        for seed in seeds or self.seeds:
            for method in methods or self.methods:
                yield method, seed


def names() -> list[str]:
    """The studies that there are."""
    return sorted(path.stem for path in (config_dir() / "studies").glob("*.yaml"))


def load(name: str) -> Study:
    """Reads a study.

    Raises:
        UserError: there is none of that name, or its file has another form.
    """
    if name not in names():
        raise UserError(unknown("study", name, names()))
    path = config_dir() / "studies" / f"{name}.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    for key in content:
        if key not in REQUIRED | OPTIONAL:
            raise UserError(f"{path}: {unknown('key', key, sorted(REQUIRED | OPTIONAL))}")
    missing = sorted(REQUIRED - set(content))
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} is missing; docs/studies.md says what a study holds")
    methods = {method: tuple(overrides or ()) for method, overrides in content["methods"].items()}
    for key, named in (("baseline", [content["baseline"]]), ("curves", content.get("curves", ()))):
        for method in named:
            if method not in methods:
                raise UserError(f"{path}: {key}: {unknown('method', method, methods)}")
    return Study(
        name=name,
        title=content["title"],
        text=content["text"],
        base=tuple(content["base"]),
        baseline=content["baseline"],
        methods=methods,
        seeds=tuple(range(content["seeds"])),
        scores=tuple(content["scores"]),
        detector=content.get("detector"),
        prepare=tuple(content.get("prepare", ())),
        curves=tuple(content.get("curves", ())),
    )


def shell(study: Study, runs: Path, method: str, seed: int) -> str:
    """The command of one run as one would type it."""
    return shlex.join(["python", study.script, *study.command(runs, method, seed)])
