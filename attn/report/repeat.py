"""What is needed to repeat runs: their commands, and the software and hardware that they ran on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from attn.config import groups, parse
from attn.config.schema import Config
from attn.report.runs import Result, Row, follows_seed
from attn.runs import directory
from attn.runs.checkpoint import BEST, LAST
from attn.runs.starts import read_starts
from attn.tables import Build, compose

UNNAMED = {"run_dir", "resume", "force", "seed", "attention_name", "data.name", "schedule.name", "save_error", "kernels"}


def command(row: Row) -> str | None:
    """The command that trains all runs of a row, checked to give their config; None where no choice of the groups leads to it."""
    cfg = row.runs[0].cfg
    if follows_seed(cfg):  # the split of seed 0, with which the choices are composed
        cfg = replace(cfg, seed=0, data=replace(cfg.data, split=0))
    names = {"attention": cfg.attention_name, "data": cfg.data.name, "schedule": cfg.schedule.name}
    chosen = (cfg.attention_name, cfg.data.name, cfg.schedule.name)
    if any(name not in groups.names(group) for group, name in names.items()):
        return None
    seeds = ",".join(str(seed) for seed in sorted({result.cfg.seed for result in row.runs}))
    for backbone in _backbones(cfg):
        build = Build(backbone, *chosen, None)
        try:
            own = _overrides(compose(build), cfg)
            if own is None:
                continue
            build = replace(build, own=own)
            differing = directory.differences(compose(build), cfg)
        except Exception:  # of Hydra or the schema: a value that the command line cannot say
            continue
        if all(line.startswith("seed:") for line in differing):
            choices = [f"backbone={backbone}", *(f"{group}={name}" for group, name in names.items())]
            # -m comes first: at the end of a long line it would be overlooked.
            parts = [
                "python",
                "train.py",
                *(["-m"] if "," in seeds else []),
                *(c for c in choices if c != "schedule=default"),
                *build.overrides(),
            ]
            return shlex.join([*parts, f"seed={seeds}"])
    return None


def _backbones(cfg: Config) -> list[str]:
    """Choices of the group that may be the backbone, the likeliest first."""
    name = cfg.backbone["name"]
    found = [choice for choice in groups.names("backbone") if groups.load("backbone", choice).get("name") == name]
    return sorted(found, key=lambda choice: choice != name) or ["resnet50"]  # which `backbone.name=` makes any other


def _overrides(base: Config, cfg: Config) -> tuple[tuple[str, Any], ...] | None:
    """What has to be set beside the choices; None if the choices set what the config lacks."""
    before, after = (parse.flatten(parse.to_dict(c)) for c in (base, cfg))
    own = []
    for key in {**before, **after}:
        if key in UNNAMED or key.startswith("logger.") or before.get(key) == after.get(key):
            continue
        if key not in after:
            return None
        value = after[key]
        own.append((key, tuple(value) if isinstance(value, list) else value))
    return tuple(own)


@dataclass(frozen=True)
class Environment:
    """Software and hardware of some runs; `values` in the order of their names."""

    values: dict[str, str]
    runs: list[Result]


def environments(results: Sequence[Result]) -> list[Environment]:
    """The runs by what they ran on, as the last process of each recorded it."""
    found: dict[str, Environment] = {}
    for result in results:
        values = environment(result)
        key = json.dumps(values, sort_keys=True)
        found.setdefault(key, Environment(values, [])).runs.append(result)
    return list(found.values())


def environment(result: Result) -> dict[str, str]:
    """Versions and hardware of a run by name; of a run without `starts.jsonl`, the versions in its checkpoint."""
    starts = read_starts(result.folder)
    if starts:
        last = starts[-1]
        versions = last.get("versions")
        values = {key: last[key] for key in ("device", "ranks", "cores", "system") if last.get(key) is not None}
        values |= versions if isinstance(versions, dict) else {}
    else:
        values = {"device": "not recorded", **_versions(result)}
    return {str(key): str(value) for key, value in values.items()}


def _versions(result: Result) -> dict[str, Any]:
    for name in (LAST, BEST):
        path = result.folder / name
        try:
            # Mapped, not read: the weights may be large, and only a few words are needed.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return dict(content["versions"])
        except Exception:  # missing, damaged or of another version: the page says that nothing is recorded
            continue
    return {}
