"""The rows of the papers' tables, as `configs/papers/` holds them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from attn.config import groups
from attn.runs.checkpoint import BEST
from attn.tables.build import Build, choice


@dataclass(frozen=True)
class Row:
    """A row of a table; the attributes are those of the data files."""

    paper: str
    table: str
    number: int  # in its table, from 1
    model: str
    method: str
    printed: dict[str, Any]
    flops: str
    setting: str | None = None
    detector: str | None = None
    task: str | None = None
    unit: str = "M"
    digits: int = 2
    counts: str | None = None
    added_to: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    reproduced: bool | None = None
    flops_reproduced: bool | None = None
    definition: str | None = None
    reason: str | None = None
    note: str | None = None
    source: str | None = None
    elsewhere: dict[str, Any] = field(default_factory=dict)
    not_printed: tuple[str, ...] = ()
    build: Build | None = None

    @property
    def id(self) -> str:
        return f"{self.paper}/{self.table}/{self.number}"

    @property
    def top1(self) -> float | None:
        """Printed top-1 accuracy in percent; for BA-Net that of the authors' own run, if there is one."""
        for key in ("top1", "top1_self", "top1_org"):
            if key in self.printed:
                return self.printed[key]
        return round(100 - self.printed["top1_err"], 2) if "top1_err" in self.printed else None


def papers() -> list[str]:
    """Names of the data files."""
    return groups.names("papers")


def load_rows(paper: str | None = None, table: str | None = None) -> list[Row]:
    """The rows of all papers' tables, in their order, or of one paper or table.

    Raises:
        ValueError: there is no such paper or table.
    """
    chosen = papers() if paper is None else [paper]
    rows = [row for name in chosen for row in _read(name, "rows")]
    if table is not None:
        tables = list(dict.fromkeys(row.table for row in rows))
        if table not in tables:
            raise ValueError(groups.unknown("table", table, tables))
        rows = [row for row in rows if row.table == table]
    return rows


def load_computed() -> list[Row]:
    """Networks whose size follows from released code but is printed nowhere (BA-Net v2)."""
    return [row for name in papers() for row in _read(name, "computed")]


def _read(paper: str, part: str) -> Iterator[Row]:
    content = choice("papers", paper)
    numbers: dict[str, int] = {}
    for raw in content.get(part) or []:
        raw = dict(raw)
        number = numbers[raw["table"]] = numbers.get(raw["table"], 0) + 1
        build = raw.pop("build", None)
        definition = raw.pop("definition", None)
        yield Row(
            paper=paper,
            number=number,
            flops=raw.pop("flops", "papers" if raw.get("detector") else content["flops"]),
            definition=content["definitions"].get(definition, definition),
            not_printed=tuple(raw.pop("not_printed", ())),
            build=None if build is None else _build(paper, build, content["recipes"]),
            **raw,
        )


def _build(paper: str, raw: Mapping[str, Any], recipes: Mapping[str, Any]) -> Build:
    recipe = recipes[raw["recipe"]]
    return Build(
        backbone=raw["backbone"],
        attention=raw["attention"],
        data=recipe["data"],
        schedule=recipe.get("schedule"),
        detector=raw.get("detector"),
        own=_settings(raw.get("set", {})),
        recipe=f"{paper}_{raw['recipe']}",
        shared=_settings(recipe.get("set", {})),
        test=_settings(raw.get("test", {})),
        counted=_settings(recipe.get("count", {})),
    )


def pretraining(row: Row) -> Build | None:
    """The classifier of the same paper whose weights a detector with an attention starts from; None for others."""
    build = row.build
    if build is None or build.detector is None or build.attention == "none":
        return None
    for other in (other.build for other in _read(row.paper, "rows")):
        if other is not None and other.data == "imagenet" and not other.test and _same_network(other, build):
            return other
    return None


def _same_network(a: Build, b: Build) -> bool:
    return (a.backbone, a.attention, dict(a.own)) == (b.backbone, b.attention, dict(b.own))


def training_command(checkpoint: str) -> str | None:
    """The command that leaves a checkpoint where a row, or the default `run_dir` of train.py, has it; None for other paths."""
    for row in (*load_rows(), *load_computed()):
        build = row.build
        if build is not None and build.detector is None and build.checkpoint() == checkpoint:
            return replace(build, test=()).command()
    names = re.fullmatch(rf"runs/(\w+)-(\w+)-(\w+)/seed0/{BEST}", checkpoint)
    chosen = ("backbone", "attention", "data")
    if names is None or any(name not in groups.names(group) for name, group in zip(names.groups(), chosen, strict=True)):
        return None
    return shlex.join(["python", "train.py", *(f"{g}={n}" for g, n in zip(chosen, names.groups(), strict=True))])


def _settings(raw: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Dotted keys and values, hashable."""
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in raw.items())
