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
OPTIONAL = {"detector", "prepare", "curves", "figures", "published"}
TITLES = {"top1": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "mcc": "MCC"}


@dataclass(frozen=True)
class Figure:
    """A figure of `scripts/analyse.py` of some methods, from the checkpoints of the first seed.

    Attributes:
        kind: of `scripts/analyse.py`; a study has one of each.
        methods: one network each.
        options: further keys of the kind.
        text: what it shows, for the page.
    """

    kind: str
    methods: tuple[str, ...]
    options: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Published:
    """A score that others have published on the same images.

    Attributes:
        text: whose, and how their network differs.
        score: its name, one of the study's.
        value: in the unit of that score.
    """

    text: str
    score: str
    value: float


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
        figures: of what the networks attend to.
        published: results of others, to which the page compares.
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
    figures: tuple[Figure, ...] = ()
    published: tuple[Published, ...] = ()

    @property
    def script(self) -> str:
        """What trains a run, below the root of the repository."""
        return "train.py" if self.detector is None else "detection/train.py"

    @property
    def score(self) -> str:
        """The deciding score in words."""
        return TITLES.get(self.scores[0], self.scores[0])

    def picture(self, kind: str) -> str:
        """The file of a picture: of a figure's kind, or of `curves`."""
        return f"{self.name}_{kind}.png"

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
    figures = tuple(
        Figure(entry["kind"], tuple(entry["methods"]), tuple(entry.get("options", ())), entry["text"])
        for entry in content.get("figures", ())
    )
    kinds = [figure.kind for figure in figures]
    if len(set(kinds)) < len(kinds):
        raise UserError(f"{path}: figures: there may be one of each kind, but it has {', '.join(kinds)}")
    drawn = [method for figure in figures for method in figure.methods]
    for key, named in (("baseline", [content["baseline"]]), ("curves", content.get("curves", ())), ("figures", drawn)):
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
        figures=figures,
        published=tuple(Published(**entry) for entry in content.get("published", ())),
    )


def shell(study: Study, runs: Path, method: str, seed: int) -> str:
    """The command of one run as one would type it."""
    return shlex.join(["python", study.script, *study.command(runs, method, seed)])
