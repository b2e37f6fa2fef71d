"""The papers' tables as data (`configs/papers/`), and every row of them built, counted and set beside what was printed.

A file holds `title`, `flops` (the convention of its printed FLOPs, see `attn.flops`), `recipes` (a schedule, a data set, what
else the command sets, and in `count` how detectors are counted), `remarks`, `definitions` and `rows`. The keys of a row:

    table, model, method, setting, detector, task   as printed
    printed        the numbers: params and flops in units of 1e6 and 1e9, accuracies, errors and AP in percent
    unit           Mi: params are printed in units of 2**20
    digits         decimals of the printed params, where they are not two
    counts         with_statistics: the printed params contain the running statistics of BatchNorm
    added_to       the plain network, printed and exact, where the printed params are its printed ones plus a rounded increment
    flops          the convention, where it is not the file's; of detectors MMDetection's, which is that of `papers`
    measured       what the definition gives: params (exact), flops and macs in 1e9
    reproduced     whether the definition gives the printed params, to the digit; absent where none are printed
    flops_reproduced   the same of the FLOPs, where it is known
    definition     the exact module: a key of `definitions`, or the text
    reason         why a row does not reproduce; `note`: what else is known; `source`: where the paper has it from
    elsewhere      numbers that the table lacks, and where they stand
    build          backbone, attention, recipe, in `set` what the command overrides and in `test` what testing does; absent
                   if the row is no network. In detection `detector` is the config, which says the same, and `set` makes it the
                   network of an ImageNet row of the same paper, whose weights it starts from
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import torch
import yaml
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from attn import config, flops, registry, run
from attn.build import create_model
from attn.checkpoint import BEST
from attn.errors import UserError

MILLION = {"M": 1e6, "Mi": 2.0**20}
TRAINING_ONLY = "attn.modules.ba2m.BA2M"  # it is the identity at inference; its printed FLOPs are those of training

EQUAL, EXPLAINED, WRONG, UNCOUNTED = "equal", "explained", "WRONG", "needs the detection extra"
INSTALL = "pip install 'attn[detection]'"


@dataclass(frozen=True)
class Build:
    """What makes a row's network, and trains it.

    Attributes:
        backbone, attention, data, schedule: choices of the config groups; no schedule in detection.
        detector: config of `detection/configs`, without the ending, which then says everything; None for classification.
        own: what the row overrides, as dotted keys.
        recipe: name of its paper and recipe; `shared`: what that overrides.
        test: what the row sets when the trained network is tested.
        counted: how a detector is counted where not as its config says: options of `detection.count.count`.
    """

    backbone: str
    attention: str
    data: str
    schedule: str | None
    detector: str | None
    own: tuple[tuple[str, Any], ...] = ()
    recipe: str = ""
    shared: tuple[tuple[str, Any], ...] = ()
    test: tuple[tuple[str, Any], ...] = ()
    counted: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        """All overrides."""
        return self.own + self.shared

    def command(self) -> str:
        """The command that trains it, and tests it if the row is about testing.

        Runs of one build share a directory, and those of two never do.
        """
        if self.detector is not None:
            return f"python detection/train.py detection/configs/{self.detector}.py"
        parts = ["python", "train.py", f"backbone={self.backbone}", f"attention={self.attention}"]
        parts += [f"data={self.data}", f"schedule={self.schedule}", *self.overrides(), f"run_dir={self.run_dir()}"]
        if self.test:
            tested = ["python", "eval.py", f"checkpoint={self.checkpoint()}", *(f"{k}={_hydra(v)}" for k, v in self.test)]
            return f"{shlex.join(parts)} && {shlex.join(tested)}"
        return shlex.join(parts)

    def overrides(self) -> list[str]:
        """The settings in Hydra's grammar; `++` where the choice's file does not have the key."""
        return [f"{'' if self._listed(key) else '++'}{key}={_hydra(value)}" for key, value in self.settings]

    def _listed(self, key: str) -> bool:
        group, *names = key.split(".")
        if group not in ("backbone", "attention"):
            return True
        node: Any = {**(registry.SETTINGS if group == "attention" else {}), **_content(group, getattr(self, group))}
        for name in names:
            if not isinstance(node, Mapping) or name not in node:
                return False
            node = node[name]
        return True

    def run_dir(self) -> str:
        changed = [f"{key.rpartition('.')[2]}_{_hydra(value)}" for key, value in self.own]
        name = "-".join([self.backbone, self.attention, *changed, self.recipe])
        return f"runs/{re.sub(r'[^A-Za-z0-9_.-]+', '_', name.replace('[', '').replace(']', ''))}/seed${{seed}}"

    def checkpoint(self, seed: int = 0) -> str:
        """The best weights that the command leaves."""
        return f"{self.run_dir().replace('${seed}', str(seed))}/{BEST}"

    def mapping(self, group: str) -> dict[str, Any]:
        """The content of `backbone` or `attention`, as the command composes it."""
        node = OmegaConf.create(_content(group, getattr(self, group)))
        for key, value in self.settings:
            head, _, rest = key.partition(".")
            if head == group:
                OmegaConf.update(node, rest, list(value) if isinstance(value, tuple) else value, force_add=True)
        content = OmegaConf.to_container(node)
        assert isinstance(content, dict)
        return {**(registry.SETTINGS if group == "attention" else {}), **{str(k): v for k, v in content.items()}}


@cache
def _content(group: str, name: str) -> dict[str, Any]:
    return registry.load(group, name)


def _hydra(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_hydra(v) for v in value)}]"
    text = str(value)
    return text if re.fullmatch(r"[A-Za-z0-9_.+-]+", text) else f"'{text}'"


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
    return registry.names("papers")


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
            raise ValueError(registry.unknown("table", table, tables))
        rows = [row for row in rows if row.table == table]
    return rows


def load_computed() -> list[Row]:
    """Networks whose size follows from released code but is printed nowhere (BA-Net v2)."""
    return [row for name in papers() for row in _read(name, "computed")]


def _read(paper: str, part: str) -> Iterator[Row]:
    content = _content("papers", paper)
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
    groups = ("backbone", "attention", "data")
    if names is None or any(name not in registry.names(group) for name, group in zip(names.groups(), groups, strict=True)):
        return None
    return shlex.join(["python", "train.py", *(f"{g}={n}" for g, n in zip(groups, names.groups(), strict=True))])


def _settings(raw: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Dotted keys and values, hashable."""
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in raw.items())


def network(build: Build) -> nn.Module:
    """The classifier of a build, on the meta device.

    Raises:
        ValueError: a name or setting is wrong; the message says which.
    """
    data = _content("data", build.data)
    backbone = build.mapping("backbone")
    with torch.device("meta"):
        return create_model(backbone.pop("name"), build.mapping("attention"), data["num_classes"], **backbone)


@dataclass(frozen=True)
class Measured:
    """A network as it is here.

    Attributes:
        params: trainable parameters; None if it could not be counted.
        papers, macs: operations per image in these conventions of `attn.flops`; by `macs_first` those of the changed network.
        statistics: running means and variances of its norms.
        problem: why it could not be counted.
    """

    params: int | None = None
    papers: int | None = None
    macs: int | None = None
    statistics: int = 0
    problem: str | None = None


def measure(build: Build, convention: str = "papers") -> Measured:
    """Builds a classifier on the meta device and counts it by a convention of `attn.flops`; each network once."""
    settings = {key: value for key, value in build.settings if key.startswith(("backbone.", "attention."))}
    return _measure(build.backbone, build.attention, build.data, json.dumps(settings), convention == "macs_first")


@cache
def _measure(backbone: str, attention: str, data: str, settings: str, stride_in_first: bool) -> Measured:
    build = Build(backbone, attention, data, None, None, own=tuple(json.loads(settings).items()))
    try:
        model = network(build)
    except ValueError as error:
        return Measured(problem=str(error))
    side = _content("data", data)["image_size"]
    training = TRAINING_ONLY in json.dumps(build.mapping("attention"))
    if stride_in_first:
        model = flops.stride_in_first(model)
    found = flops.count(model, (3, side, side), training)
    buffers = (b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var")))
    return Measured(found.params, found.papers, found.macs, sum(b.numel() for b in buffers))


def decimals(value: float) -> int:
    """Decimals of a printed number, but at least two: the data files drop trailing zeros."""
    return max(2, len(str(float(value)).partition(".")[2]))


def agree(printed: float, measured: float, digits: int) -> bool:
    """Whether a number rounds to the printed one; exactly between two, either way of rounding is right."""
    return abs(measured - printed) <= 0.5 * 10**-digits * (1 + 1e-9)


@dataclass(frozen=True)
class Run:
    """A run found on the disk that trained a row's network on its data.

    Attributes:
        path: its directory.
        score: best validation accuracy in percent, of the averaged weights where there are any; `epoch` when. Of a detector the
            AP of the last evaluation, of its masks in a row about segmentation.
        finished: whether it ran to its end.
        differs: what is not as the row's recipe has it, as `key: row's -> run's`.
    """

    path: str
    seed: int | None
    score: float
    epoch: int
    finished: bool
    differs: list[str]


@dataclass(frozen=True)
class Result:
    """A row beside what was measured.

    Attributes:
        params: in the row's printed unit; `flops`: in 1e9, in the row's convention.
        flops_agree: whether they round to the printed ones; None where either is absent.
        verdict: equal (params, to the printed digit), explained (by `reason`), WRONG (it should be equal and is not), or needs
            the detection extra.
    """

    row: Row
    measured: Measured
    params: float | None
    flops: float | None
    flops_agree: bool | None
    verdict: str
    reason: str | None
    runs: list[Run]

    @property
    def reached(self) -> str:
        """Mean of the finished runs by the row's recipe, over seeds; else what there is, and what is different about it."""
        good = [run.score for run in self.runs if run.finished and not run.differs]
        if good:
            spread = f" +- {statistics.stdev(good):.2f}" if len(good) > 1 else ""
            return f"{statistics.mean(good):.2f}{spread} ({len(good)} seed{'s' * (len(good) > 1)})"
        return ", ".join(
            f"{run.score:.2f} ({'other recipe' if run.differs else f'not finished, epoch {run.epoch}'})" for run in self.runs
        )

    def record(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        row, build = self.row, self.row.build
        content = {"id": row.id, **asdict(row)}
        content |= {
            "build": None
            if build is None
            else {**asdict(build), **{key: dict(getattr(build, key)) for key in ("own", "shared", "test", "counted")}},
            "command": None if build is None else build.command(),
            "here": {**asdict(self.measured), "params_in_unit": self.params, "flops": self.flops},
            "flops_agree": self.flops_agree,
            "verdict": self.verdict,
            "reason": self.reason,
            "top1": row.top1,
            "runs": [asdict(run) for run in self.runs],
        }
        return content


def evaluate(
    rows: Iterable[Row],
    count_detector: Callable[[Build], flops.Count] | None = None,
    runs: Mapping[str, list[tuple[Path, dict[str, Any]]]] | None = None,
    detector_runs: Callable[[Row], list[Run]] | None = None,
) -> list[Result]:
    """Builds every row and judges it.

    Args:
        rows: from `load_rows`.
        count_detector: counts a detector; None where MMDetection is not installed.
        runs: from `find_runs`.
        detector_runs: gives the runs of a detector; None where MMDetection is not installed, or none are wanted.
    """
    results = []
    for row in rows:
        detects = row.build is not None and row.build.detector is not None
        found = (detector_runs(row) if detector_runs else []) if detects else matching_runs(row, runs or {})
        results.append(judge(row, _measured(row, count_detector), found))
    return results


def _measured(row: Row, count_detector: Callable[[Build], flops.Count] | None) -> Measured:
    if row.build is None:
        return Measured()
    if row.build.detector is None:
        return measure(row.build, row.flops)
    if count_detector is None:
        return Measured(problem=UNCOUNTED)
    try:
        found = count_detector(row.build)
    except ValueError as error:
        return Measured(problem=str(error))
    return Measured(found.params, found.papers, found.macs)


def judge(row: Row, found: Measured, runs: list[Run] | None = None) -> Result:
    """The verdict on one row."""
    printed = row.printed.get("params")
    params = operations = None
    if found.params is not None:
        params = (found.params + (found.statistics if row.counts == "with_statistics" else 0)) / MILLION[row.unit]
        counted = found.papers if row.flops == "papers" else found.macs
        operations = None if counted is None else counted / 1e9
    printed_flops, flops_agree = row.printed.get("flops"), None
    if printed_flops is not None and operations is not None:
        flops_agree = agree(printed_flops, operations, decimals(printed_flops))
    verdict, reason = EXPLAINED, row.reason or row.note
    if row.build is None:
        reason = reason or "no network"
    elif found.problem == UNCOUNTED:
        verdict = UNCOUNTED if row.reproduced else EXPLAINED
        reason = "; ".join([*([reason] if reason else []), f"counted after {INSTALL}"])
    elif found.problem is not None or params is None:
        verdict = WRONG
        reason = f"cannot be built: {found.problem}"
    elif printed is None:
        reason = f"the table prints no parameters{f'; {reason}' if reason else ''}"
    elif row.reproduced:
        verdict = EQUAL
        wrong = []
        as_printed = params
        if row.added_to:
            as_printed = row.added_to["printed"] + round(params - row.added_to["params"] / MILLION[row.unit], row.digits)
        if not agree(printed, as_printed, row.digits):
            wrong.append(f"params: printed {printed:.{row.digits}f}, here {params:.4f}")
        if row.flops_reproduced and flops_agree is False:
            wrong.append(f"FLOPs: printed {printed_flops}, here {operations:.4f}")
        if wrong:
            verdict, reason = WRONG, "; ".join(wrong)
    return Result(row, found, params, operations, flops_agree, verdict, reason, runs or [])


def find_runs(directory: Path) -> dict[str, list[tuple[Path, dict[str, Any]]]]:
    """All runs below a directory, by what they trained on what."""
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in sorted(directory.rglob(run.METRICS)):
        try:
            content = yaml.safe_load((path.parent / run.CONFIG).read_text())
            found.setdefault(_network_key(content), []).append((path.parent, content))
        except (OSError, yaml.YAMLError, TypeError, KeyError):
            continue  # a directory of something else, or a run that was stopped while it wrote
    return found


def _network_key(content: Mapping[str, Any]) -> str:
    return json.dumps([content["backbone"], content["attention"], content["data"]["name"]], sort_keys=True)


def matching_runs(row: Row, found: Mapping[str, list[tuple[Path, dict[str, Any]]]]) -> list[Run]:
    """The runs that trained a row's network on its data, whatever their recipe."""
    build = row.build
    if build is None or build.detector is not None or not found:
        return []
    wanted = {"backbone": build.mapping("backbone"), "attention": build.mapping("attention"), "data": {"name": build.data}}
    runs = []
    for path, content in found.get(_network_key(wanted), []):
        rows = run.read_metrics(path)
        scores = [(r.get("ema_val_top1", r["val_top1"]), r["epoch"]) for r in rows]
        if scores:
            top1, epoch = max(scores)
            try:
                differs = run.differences(compose(build), config.from_dict(content))
            except UserError as error:
                differs = [f"its config is of another version: {error}"]
            differs = [d for d in differs if not d.startswith("seed:")]
            runs.append(Run(str(path), content["seed"], top1, epoch, (path / run.DONE).exists(), differs))
    return runs


@cache
def compose(build: Build) -> config.Config:
    """The whole config of a build's command."""
    overrides = [f"backbone={build.backbone}", f"attention={build.attention}", f"data={build.data}"]
    overrides += [f"schedule={build.schedule}", *build.overrides(), f"attention_name={build.attention}", "run_dir=runs"]
    with initialize_config_dir(str(registry.config_dir()), version_base="1.3"):
        return config.parse(hydra.compose("train", overrides=overrides))


def summary(results: Sequence[Result]) -> str:
    """One line: how many rows, how many of each verdict, and how many of the printed FLOPs are met."""
    verdicts = [result.verdict for result in results]
    parts = [f"{verdicts.count(EQUAL)} equal to the printed digit", f"{verdicts.count(EXPLAINED)} explained"]
    for verdict, text in ((UNCOUNTED, f"that need the detection extra to be counted ({INSTALL})"), (WRONG, "WRONG")):
        if verdict in verdicts:
            parts.append(f"{verdicts.count(verdict)} {text}")
    agreeing = [result.flops_agree for result in results if result.flops_agree is not None]
    return f"{len(verdicts)} rows: {', '.join(parts)}; FLOPs to the printed digit in {sum(agreeing)} of {len(agreeing)}"


COLUMNS = ("row", "network", "params: printed", "here", "FLOPs: printed", "here", "equal", "printed accuracy", "verdict")


def as_text(results: list[Result]) -> str:
    """For a terminal: a table per table of a paper; below each row its reason and its command."""
    blocks = []
    for title, group in _tables(results):
        cells = [COLUMNS, *(_cells(result) for result in group)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
        lines = [title, "  ".join(c.ljust(w) for c, w in zip(COLUMNS, widths, strict=True)).rstrip()]
        for result, row in zip(group, cells[1:], strict=True):
            lines.append("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
            if result.runs:
                lines.append(f"    reached: {result.reached}")
            if result.reason:
                lines.append(f"    {result.reason}")
            if result.row.build is not None:
                lines.append(f"    {result.row.build.command()}")
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, _legend(), summary(results)])


def as_markdown(results: list[Result]) -> str:
    """For the docs: the same as `as_text`."""
    with_runs = any(result.runs for result in results)
    columns = [*COLUMNS[:-1], *(["reached"] if with_runs else []), "verdict", "command"]
    blocks = []
    for title, group in _tables(results):
        lines = [f"## {title}", "", _markdown_row(columns), _markdown_row(["---"] * len(columns))]
        for result in group:
            cells = list(_cells(result))
            verdict = cells.pop() + (f": {result.reason}" if result.reason else "")
            command = "" if result.row.build is None else f"`{result.row.build.command()}`"
            lines.append(_markdown_row([*cells, *([result.reached] if with_runs else []), verdict, command]))
        blocks.append("\n".join(lines))
    head = [
        "# The papers' tables",
        "Every row of the papers' tables: what it prints, and what its network has here. Made by"
        " `python scripts/tables.py --format md`; `--runs DIR` adds the accuracy that runs reached.",
        f"**{summary(results)}.**",
        _legend(),
    ]
    return "\n\n".join([*head, *blocks, *_remarks(results)])


def _remarks(results: list[Result]) -> Iterator[str]:
    for paper in dict.fromkeys(result.row.paper for result in results):
        content = _content("papers", paper)
        yield "\n".join([f"## Remarks on {content['title']}", "", *(f"- {remark}" for remark in content["remarks"])])


def as_json(results: list[Result]) -> str:
    """A list with one object per row."""
    return json.dumps([result.record() for result in results], indent=1)


def _legend() -> str:
    lines = [f"- FLOPs, {name}: {text}." for name, text in flops.CONVENTIONS.items()]
    lines.append(
        "- Detectors: trainable parameters, and operations by MMDetection 2's analysis for one image of the size that the config"
        " tests with, 1000 proposals and 100 masks; how BA-Net's were counted stands in its remarks."
    )
    lines.append("- FLOPs are in 1e9 per image; params in 1e6, with Mi in 2^20. Nothing is run to count them.")
    return "\n".join(lines)


def _tables(results: list[Result]) -> Iterator[tuple[str, list[Result]]]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.row.paper, result.row.table), []).append(result)
    for (paper, table), group in groups.items():
        name = f"Table {table}" if re.fullmatch(r"[0-9]+[a-e]?|[IVX]+", table) else table
        yield f"{_content('papers', paper)['title']}: {name}", group


def _cells(result: Result) -> tuple[str, ...]:
    row = result.row
    printed, operations = row.printed.get("params"), row.printed.get("flops")
    unit = " Mi" if row.unit == "Mi" else ""
    network = f"{row.model}, {row.method}" + "".join(f", {part}" for part in (row.setting, row.detector, row.task) if part)
    score = f"top-1 {row.top1:.2f}" if row.top1 is not None else ""
    if "mAP" in row.printed:
        score = f"AP {row.printed['mAP']}"
    return (
        row.id,
        network,
        "" if printed is None else f"{printed:.{row.digits}f}{unit}",
        "" if result.params is None else f"{result.params:.3f}{unit}",
        "" if operations is None else f"{operations:.{decimals(operations)}f}",
        "" if result.flops is None else f"{result.flops:.3f} {row.flops}",
        "" if result.flops_agree is None else "yes" if result.flops_agree else "no",
        score,
        result.verdict,
    )


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
