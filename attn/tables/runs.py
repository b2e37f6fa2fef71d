"""Runs of `train.py` on the disk that trained the network of a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import initialize_config_dir

from attn.config import groups, parse, schema
from attn.errors import UserError
from attn.models.defaults import without_defaults
from attn.runs import directory, metrics
from attn.tables.build import Build
from attn.tables.rows import Row


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


def find_runs(top: Path) -> dict[str, list[tuple[Path, dict[str, Any]]]]:
    """All runs below a folder, by what they trained on what."""
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in sorted(top.rglob(metrics.METRICS)):
        try:
            content = yaml.safe_load((path.parent / directory.CONFIG).read_text())
            found.setdefault(_network_key(content), []).append((path.parent, content))
        except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError):
            continue  # a directory of something else, or a run that was stopped while it wrote
    return found


def _network_key(content: Mapping[str, Any]) -> str:
    network = without_defaults(content["backbone"], parse.without_partial(content["attention"] or {}))
    return json.dumps([network, content["data"]["name"]], sort_keys=True)


def matching_runs(row: Row, found: Mapping[str, list[tuple[Path, dict[str, Any]]]]) -> list[Run]:
    """The runs that trained a row's network on its data, whatever their recipe."""
    build = row.build
    if build is None or build.detector is not None or not found:
        return []
    wanted = {"backbone": build.mapping("backbone"), "attention": build.mapping("attention"), "data": {"name": build.data}}
    runs = []
    for path, content in found.get(_network_key(wanted), []):
        rows = metrics.read_metrics(path)
        scores = [(r.get("ema_val_top1", r["val_top1"]), r["epoch"]) for r in rows]
        if scores:
            top1, epoch = max(scores)
            try:
                differs = directory.differences(compose(build), parse.from_dict(content))
            except UserError as error:
                differs = [f"its config is of another version: {error}"]
            differs = [d for d in differs if not d.startswith("seed:")]
            runs.append(Run(str(path), content["seed"], top1, epoch, (path / directory.DONE).exists(), differs))
    return runs


@cache
def compose(build: Build) -> schema.Config:
    """The whole config of a build's command."""
    overrides = [f"backbone={build.backbone}", f"attention={build.attention}", f"data={build.data}"]
    overrides += [f"schedule={build.schedule}", *build.overrides(), f"attention_name={build.attention}", "run_dir=runs"]
    with initialize_config_dir(str(groups.config_dir()), version_base="1.3"):
        return parse.parse(hydra.compose("train", overrides=overrides))
