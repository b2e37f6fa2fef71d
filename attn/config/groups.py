"""The config groups: which names each has, and the line for a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

GROUPS = ("backbone", "attention", "data", "schedule", "logger")


def config_dir() -> Path:
    """The directory of the configs: in the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def names(group: str) -> list[str]:
    """Sorted names of the choices of a config group."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def load(group: str, name: str) -> dict[str, Any]:
    """The content of one choice.

    Raises:
        ValueError: there is no such name; the message proposes the nearest ones.
    """
    if name not in names(group):
        raise ValueError(unknown(group, name, names(group)))
    return yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text()) or {}


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """The line for a name that does not exist: what was meant, and what there is."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}: {hint}choose from {', '.join(choices)}"


def listing(*chosen: str) -> str:
    """The groups and their choices, for `--help`; all of them by default."""
    return "\n".join(f"{group}: {', '.join(names(group))}" for group in chosen or GROUPS)


OmegaConf.register_new_resolver("config_groups", listing, replace=True)
