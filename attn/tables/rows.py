"""The rows of the papers' tables, as `configs/papers/` holds them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from attn.config import groups
from attn.runs.checkpoint import BEST
from attn.tables.build import Build, choice

# How the data files name what is printed, by metric; the first of several that a row has counts. A name that ends with _err
# is an error rate: the metric is 100 minus it.
METRICS = {
    "top-1": ("top1", "top1_self", "top1_org", "top1_err"),
    "top-5": ("top5", "top5_self", "top5_org", "top5_err"),
    "AP": ("mAP",),
    "AP50": ("mAP50",),
    "AP75": ("mAP75",),
    "AP_S": ("mAP_S",),
    "AP_M": ("mAP_M",),
    "AP_L": ("mAP_L",),
    "Recall": ("recall",),
}
VOC_AP = "VOC mAP"  # the name of AP on Pascal VOC: at an IoU of 0.5, over 11 points


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
    form: str | None = None
    alternative: bool = False
    alternatives: tuple[Row, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.paper}/{self.table}/{self.number}" + (f"/{self.form}" if self.alternative else "")

    @property
    def metrics(self) -> dict[str, float]:
        """All printed scores by the name of their metric (`METRICS`, `VOC_AP`), in percent, the higher the better.

        Where BA-Net prints its authors' own run and the original paper's number, the latter is "top-1 (original)"; what the
        table lacks and another place of the paper has is "top-1 (elsewhere)".
        """
        found = {}
        for metric, keys in METRICS.items():
            name = VOC_AP if metric == "AP" and self.build is not None and self.build.data == "voc" else metric
            own = [key for key in keys if key in self.printed]
            for key in own[:1]:
                value = float(self.printed[key])
                found[name] = round(100 - value, 2) if key.endswith("_err") else value
            if len(own) > 1:
                found[f"{name} (original)"] = float(self.printed[own[1]])
            for key in keys[:1]:
                if not own and key in self.elsewhere:
                    found[f"{name} (elsewhere)"] = float(self.elsewhere[key])
        return found

    @property
    def top1(self) -> float | None:
        """Printed top-1 accuracy in percent; for BA-Net that of the authors' own run, if there is one."""
        return self.metrics.get("top-1")


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


def with_alternatives(rows: Iterable[Row]) -> Iterator[Row]:
    """Every row, and after it the other forms of it that the file names."""
    for row in rows:
        yield row
        yield from row.alternatives


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
        others = {**_alternatives(content, build), **raw.pop("alternatives", {})}
        form = raw.pop("form", content.get("form")) if others else None
        row = Row(
            paper=paper,
            number=number,
            flops=raw.pop("flops", "ptflops" if raw.get("detector") else content["flops"]),
            definition=content["definitions"].get(definition, definition),
            not_printed=tuple(raw.pop("not_printed", ())),
            build=None if build is None else _build(paper, build, content["recipes"]),
            form=form,
            **raw,
        )
        yield replace(row, alternatives=tuple(_other(row, name, build, content, other) for name, other in others.items()))


def _alternatives(content: Mapping[str, Any], build: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the file's `alternatives` change in a row: those that name its attention."""
    if build is None:
        return {}
    return {
        name: {"set": settings, "note": other["note"], "recipes": other.get("recipes", {})}
        for name, other in content.get("alternatives", {}).items()
        if (settings := other["set"].get(build["attention"])) is not None
    }


def _other(row: Row, name: str, build: Mapping[str, Any], content: Mapping[str, Any], changes: Mapping[str, Any]) -> Row:
    """The row in another form. Its printed parameters and FLOPs are those of the row's own form."""
    settings = changes.get("set", {})

    def changed(raw: Mapping[str, Any]) -> Build:
        recipe = changes.get("recipes", {}).get(raw["recipe"], raw["recipe"])
        return _build(row.paper, {**raw, "set": {**raw.get("set", {}), **settings}, "recipe": recipe}, content["recipes"])

    made = changed(build)
    if made.detector is not None:
        options = {f"model.backbone.{key}": value for key, value in settings.items()}
        raws = (raw["build"] for raw in content["rows"] if "build" in raw)
        same = ("backbone", "attention", "set")
        for other in (changed(raw) for raw in raws if all(raw.get(key) == build.get(key) for key in same)):
            if _pretrains(other):
                options["model.backbone.init_cfg.checkpoint"] = other.checkpoint()
        made = replace(made, form=name, options=_settings(options))
    printed = {key: value for key, value in row.printed.items() if key not in ("params", "flops")}
    return replace(
        row,
        form=name,
        alternative=True,
        printed=printed,
        build=made,
        note=changes["note"],
        reason=None,
        measured={},
        reproduced=None,
        flops_reproduced=None,
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
    for other in (other.build for other in with_alternatives(_read(row.paper, "rows"))):
        if other is not None and _pretrains(other) and _same_network(other, build):
            return other
    return None


def _pretrains(build: Build) -> bool:
    return build.data == "imagenet" and build.detector is None and not build.test


def _same_network(a: Build, b: Build) -> bool:
    return (a.backbone, a.attention, dict(a.own)) == (b.backbone, b.attention, dict(b.own))


def training_command(checkpoint: str) -> str | None:
    """The command that writes a checkpoint of a row or of the default `run_dir` of train.py; None for other paths."""
    for row in with_alternatives((*load_rows(), *load_computed())):
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
