"""What figures of runs need: the runs below some folders, grouped into those that differ in the seed alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from attn import console
from attn.analysis.images import bar
from attn.config import parse
from attn.config.schema import Config
from attn.errors import UserError
from attn.runs import directory, metrics

IGNORED = directory.MAY_DIFFER_ON_RESUME | {"seed", "attention_name"}


@dataclass(frozen=True)
class Finished:
    """A finished run: its config, and the validation top-1 of its last epoch in percent (of the averaged weights, if any)."""

    folder: Path
    cfg: Config
    top1: float


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        name: backbone and attention, and the settings that tell it from others of that name.
        runs: one or more.
    """

    name: str
    runs: list[Finished]

    @property
    def cfg(self) -> Config:
        return self.runs[0].cfg


def find(folders: Iterable[str]) -> list[Finished]:
    """The finished runs in or below folders; one that cannot be read, or is not finished, is named and left out.

    Raises:
        UserError: a folder is missing, or there is no finished run.
    """
    tops = [Path(folder).expanduser() for folder in folders]
    for top in tops:
        if not top.is_dir():
            raise UserError(f"runs={top}: no such folder")
    places = dict.fromkeys(path.parent for top in tops for path in sorted(top.rglob(metrics.METRICS)))
    found = []
    for folder in bar(places, "runs", len(places)):
        try:
            content = yaml.safe_load((folder / directory.CONFIG).read_text())
            if not isinstance(content, dict):
                raise UserError(f"its {directory.CONFIG} is no mapping")
            rows = metrics.read_metrics(folder)
            last = rows[-1] if rows else {}
            top1 = last.get("ema_val_top1", last.get("val_top1"))
            if top1 is None or not (folder / directory.DONE).exists():
                console.warn(f"{folder} is left out: it is not finished")
                continue
            found.append(Finished(folder, parse.from_dict(content), float(top1)))
        except (OSError, UserError, ValueError, yaml.YAMLError) as error:
            console.warn(f"{folder} is left out: {' '.join(str(error).split())}")
    if not found:
        raise UserError(f"runs={', '.join(map(str, tops))}: no finished run in or below it")
    return found


def group(runs: Sequence[Finished], varied: Sequence[str] = ()) -> list[Group]:
    """Runs of one network and setting together.

    Args:
        runs: from `find`.
        varied: keys in which the runs of a group may differ beside the seed.
    """
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_settings(run.cfg, varied), sort_keys=True), []).append(run)
    settings = [json.loads(key) for key in groups]
    named = []
    for own, members in zip(settings, groups.values(), strict=True):
        short = f"{members[0].cfg.backbone['name']} {members[0].cfg.attention_name}"
        like = [s for s, m in zip(settings, groups.values(), strict=True) if _short(m[0].cfg) == short]
        keys = sorted({key for s in like for key in s if any(other.get(key) != s[key] for other in like)})
        extra = " ".join(f"{key}={own.get(key)}" for key in keys)
        named.append(Group(f"{short} ({extra})" if extra else short, members))
    return named


def one_data(groups: Sequence[Group]) -> Sequence[Group]:
    """The groups themselves.

    Raises:
        UserError: they are of several data sets, whose accuracies cannot be compared.
    """
    data = dict.fromkeys(one.cfg.data.name for one in groups)
    if len(data) > 1:
        raise UserError(
            f"runs=: there are runs on {', '.join(data)}, whose accuracies cannot be compared; name folders with one of them"
        )
    return groups


def _short(cfg: Config) -> str:
    return f"{cfg.backbone['name']} {cfg.attention_name}"


def _settings(cfg: Config, varied: Sequence[str]) -> dict[str, Any]:
    flat = parse.flatten(parse.to_dict(replace(cfg)))
    left = IGNORED | set(varied)
    return {key: str(value) for key, value in flat.items() if key not in left and not key.startswith("logger.")}
