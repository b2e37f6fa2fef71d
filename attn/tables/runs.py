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
from attn.console import warn
from attn.errors import UserError, reason
from attn.models.defaults import without_defaults
from attn.runs import directory, metrics
from attn.runs.checkpoint import BEST
from attn.tables.build import Build
from attn.tables.rows import Row

SAVED = {"top-1": "top1", "top-5": "top5"}  # keys of metrics.jsonl and of eval.py's files


@dataclass(frozen=True)
class Run:
    """A run found on the disk that trained a row's network on its data.

    Attributes:
        path: its directory.
        scores: what it reached, in percent, by the names of `Row.metrics`. Of a classifier top-1 and top-5 of the epoch with
            the best top-1 in validation, of the averaged weights where there are any; in a row about testing what eval.py
            saved of the best weights. Of a detector those of the last evaluation, of its masks in a row about segmentation.
        epoch: the epoch of these scores.
        finished: whether it ran to its end.
        differs: what differs from the row's recipe, as `key: row's -> run's`.
    """

    path: str
    seed: int | None
    scores: dict[str, float]
    epoch: int
    finished: bool
    differs: list[str]


def find_runs(top: Path) -> dict[str, list[tuple[Path, dict[str, Any]]]]:
    """All runs below a folder, by what they trained on what; one whose config cannot be read is named and left out."""
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in sorted(top.rglob(metrics.METRICS)):
        try:
            content = yaml.safe_load((path.parent / directory.CONFIG).read_text())
            found.setdefault(network_key(content), []).append((path.parent, content))
        except FileNotFoundError:
            continue  # a folder of something else
        except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError, RecursionError) as error:
            warn(f"{path.parent} is left out: its {directory.CONFIG} is none of train.py ({reason(error)})")
    return found


def network_key(content: Mapping[str, Any]) -> str:
    """What a config trains on what: equal for runs of one network and data set."""
    network = without_defaults(content["backbone"], parse.without_partial(content["attention"] or {}))
    return json.dumps([network, content["data"]["name"]], sort_keys=True)


def matching_runs(row: Row, found: Mapping[str, list[tuple[Path, dict[str, Any]]]]) -> list[Run]:
    """The runs that trained a row's network on its data, whatever their recipe."""
    build = row.build
    if build is None or build.detector is not None or not found:
        return []
    wanted = {"backbone": build.mapping("backbone"), "attention": build.mapping("attention"), "data": {"name": build.data}}
    runs = []
    for path, content in found.get(network_key(wanted), []):
        reached = _best(metrics.read_metrics(path)) if not build.test else _tested(path, dict(build.test))
        if reached is not None:
            scores, epoch = reached
            seed = content.get("seed")
            try:
                differs = directory.differences(compose(build), parse.from_dict(content))
            except UserError as error:
                differs = [f"its config is of another version: {error}"]
            differs = [d for d in differs if not d.startswith("seed:")]
            runs.append(
                Run(
                    str(path),
                    seed if isinstance(seed, int) else None,
                    scores,
                    epoch,
                    (path / directory.DONE).exists(),
                    differs,
                )
            )
    return runs


def _best(rows: list[dict[str, Any]]) -> tuple[dict[str, float], int] | None:
    """The scores of the epoch with the best top-1, the later of equal ones, and the epoch."""

    def scores(row: Mapping[str, Any]) -> dict[str, float]:
        prefix = "ema_val_" if "ema_val_top1" in row else "val_"
        return {name: row[prefix + key] for name, key in SAVED.items() if row.get(prefix + key) is not None}

    found = [(scores(row), row["epoch"]) for row in rows]
    return max((f for f in found if "top-1" in f[0]), key=lambda f: (f[0]["top-1"], f[1]), default=None)


def _tested(path: Path, test: Mapping[str, Any]) -> tuple[dict[str, float], int] | None:
    """The scores that eval.py saved of a run's best weights under a row's settings, and the epoch of these weights."""
    epochs = {row.get("step"): row["epoch"] for row in metrics.read_metrics(path)}
    for file in sorted(path.glob(f"eval-{Path(BEST).stem}*.json")):
        try:
            saved = json.loads(file.read_text())
            if all(saved.get(key) == value for key, value in test.items()):
                return {name: saved[key] for name, key in SAVED.items()}, epochs.get(saved.get("step"), 0)
        except (OSError, ValueError, KeyError, AttributeError):
            continue  # it is being written, or is something else
    return None


@cache
def compose(build: Build) -> schema.Config:
    """The whole config of a build's command."""
    overrides = [f"backbone={build.backbone}", f"attention={build.attention}", f"data={build.data}"]
    overrides += [f"schedule={build.schedule}", *build.overrides(), f"attention_name={build.attention}", "run_dir=runs"]
    with initialize_config_dir(str(groups.config_dir()), version_base="1.3"):
        return parse.parse(hydra.compose("train", overrides=overrides))
