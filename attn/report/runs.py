"""Runs with at least one evaluated epoch, and rows of those that differ in the seed alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from attn import console
from attn.config import groups, parse
from attn.config.schema import Config
from attn.errors import UserError
from attn.runs import directory, metrics
from attn.runs.lines import listed
from attn.training.optim import total_epochs

IGNORED = directory.MAY_DIFFER_ON_RESUME | {"seed"}


@dataclass(frozen=True)
class Result:
    """A run: its config, and validation top-1 in percent."""

    folder: Path
    cfg: Config
    best: float
    last: float
    epochs: int
    parameters: int
    history: list[dict[str, Any]] = field(default_factory=list)  # the lines of metrics.jsonl

    @property
    def finished(self) -> bool:
        return (self.folder / directory.DONE).exists() or self.epochs >= total_epochs(self.cfg.schedule)

    @property
    def name(self) -> tuple[str, str, str]:
        return self.cfg.backbone["name"], self.cfg.attention_name, self.cfg.data.name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the result depends on, without the seed, as dotted keys."""
        flat = parse.flatten(parse.to_dict(self.cfg))
        if follows_seed(self.cfg):
            flat["data.split"] = "the seed"
        return {key: str(value) for key, value in flat.items() if key not in IGNORED and not key.startswith("logger.")}


@dataclass(frozen=True)
class Row:
    """Runs that differ in the seed alone."""

    backbone: str
    attention: str
    data: str
    variant: str  # settings by which it differs from others of its name
    parameters: int
    runs: list[Result]
    unfinished: int

    def best(self) -> list[float]:
        return [result.best for result in self.runs]

    def last(self) -> list[float]:
        return [result.last for result in self.runs]

    @property
    def label(self) -> str:
        return f"{self.attention} ({self.variant})" if self.variant else self.attention


def follows_seed(cfg: Config) -> bool:
    """Whether the data set is split anew for each seed, and this run took the split of its seed."""
    return cfg.data.split == cfg.seed and "seed" in str(_choice(cfg.data.name).get("split"))


@cache
def _choice(data: str) -> dict[str, Any]:
    return groups.load("data", data) if data in groups.names("data") else {}


class LeftOut(NamedTuple):
    """A folder that is no run which can be compared, and why."""

    folder: Path
    reason: str


def find(folders: Iterable[Path], trust: Collection[str] = ()) -> tuple[list[Result], list[LeftOut]]:
    """All runs at any depth below some folders, and what looks like one and cannot be read or built.

    Raises:
        UserError: a folder is missing.
    """
    folders = list(folders)
    for top in folders:
        if not top.is_dir():
            raise UserError(f"{top}: no such folder")
    found: dict[Path, Result] = {}
    left_out: dict[Path, LeftOut] = {}
    parameters: dict[str, int] = {}
    paths = {path.resolve(): path for top in folders for path in sorted(top.rglob(metrics.METRICS))}
    for path in console.bar(paths.values(), "reading runs"):
        folder = path.parent
        try:
            result = _read(folder, trust, parameters)
        except Exception as error:  # files of another version, or an attention whose module is not here
            left_out[folder.resolve()] = LeftOut(folder, " ".join(str(error).split()) or type(error).__name__)
            continue
        found[folder.resolve()] = result
    return list(found.values()), list(left_out.values())


def _read(folder: Path, trust: Collection[str], parameters: dict[str, int]) -> Result:
    """A run.

    Args:
        parameters: numbers of parameters of the networks so far, by their settings; a new one is added.

    Raises:
        UserError, ValueError, OSError: it is of something else, of another version, or without an epoch.
    """
    rows, damaged = metrics.parse_metrics(folder)
    config = folder / directory.CONFIG
    if not config.exists():
        raise UserError(f"it has no {directory.CONFIG}")
    unread = f"line {listed(damaged)} of its {metrics.METRICS} cannot be read" if damaged else None
    if not rows:
        raise UserError(unread or "no epoch was evaluated")
    content = yaml.safe_load(config.read_text())
    if not isinstance(content, dict):
        raise UserError(f"its {directory.CONFIG} is no mapping")
    cfg = parse.from_dict(content)
    network = json.dumps([cfg.backbone, cfg.attention, cfg.data.num_classes, cfg.data.image_size], sort_keys=True)
    if network not in parameters:
        from attn.runs import load  # imports torch, for which a wrong folder need not wait

        parameters[network] = count_parameters(load.trusted(cfg, trust, str(config)))
    scores: list[float] = []
    for row in rows:
        score = row.get("ema_val_top1", row.get("val_top1"))
        if score is None:
            raise UserError(f"epoch {row['epoch']} of its {metrics.METRICS} has no val_top1")
        scores.append(score)
    if unread:
        console.warn(f"{folder}: {unread}, and is left out")
    return Result(folder, cfg, max(scores), scores[-1], rows[-1]["epoch"], parameters[network], rows)


def table(results: list[Result]) -> list[Row]:
    """Rows by data set, backbone and attention; `none` first, because the others are compared with it."""
    named: dict[tuple[str, str, str], dict[str, list[Result]]] = {}
    for result in results:
        named.setdefault(result.name, {}).setdefault(json.dumps(result.settings, sort_keys=True), []).append(result)
    rows = []
    for (backbone, attention, data), alike in named.items():
        settings = [json.loads(key) for key in alike]
        differing = [key for key in settings[0] if any(s.get(key) != settings[0][key] for s in settings)]
        differing += sorted({key for s in settings for key in s} - set(settings[0]))
        for setting, runs in zip(settings, alike.values(), strict=True):
            variant = " ".join(f"{key}={setting.get(key)}" for key in differing)
            done = [result for result in runs if result.finished]
            rows.append(Row(backbone, attention, data, variant, runs[0].parameters, done or runs, len(runs) - len(done)))
    return sorted(rows, key=lambda r: (r.data, r.backbone, r.attention != "none", r.attention, r.variant))


def count_parameters(cfg: Config) -> int:
    import torch

    from attn.runs import load

    with torch.device("meta"):
        return sum(p.numel() for p in load.build(load.with_kernels_here(cfg)).parameters())


def spread(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def gain(row: Row, rows: list[Row]) -> float | None:
    """Mean of the last top-1, less that of `none` on the same backbone and data; None where that is not unique."""
    plain = [r for r in rows if (r.backbone, r.data, r.attention) == (row.backbone, row.data, "none")]
    if row.attention == "none" or len(plain) != 1:
        return None
    return statistics.mean(row.last()) - statistics.mean(plain[0].last())
