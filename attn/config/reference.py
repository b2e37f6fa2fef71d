"""What the help and the docs say of the keys: all of it is read from the schema and the files of the groups."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from attn.config import groups
from attn.config.schema import MISSING, Config, Key, keys
from attn.tabulate import markdown_lines

GROUP_OF = {"train": groups.GROUPS, "eval": ("data",), "predict": (), "export": ("data",)}  # the groups of each entry point


def help_text(command: str, schema: type, composed: str = "", width: int = 110) -> str:
    """What `--help` prints.

    Args:
        command: train, eval, predict or export; its config's header says what the command does.
        schema: the dataclass of its keys.
        composed: the keys of the chosen backbone and attention, as YAML.
        width: of a line, in characters.
    """
    header = yaml.safe_load((groups.config_dir() / f"{command}.yaml").read_text())["hydra"]["help"]["header"]
    example = "attention=ba" if "attention" in GROUP_OF[command] else "data=digits"
    lines = [header.rstrip(), *(["", f"Groups: choose one of each, as in {example}"] if GROUP_OF[command] else [])]
    for group in GROUP_OF[command]:
        lines += [
            f"  {group}",
            textwrap.fill(" ".join(groups.names(group)), width, initial_indent=" " * 4, subsequent_indent=" " * 4),
        ]
    for section, entries in _sections(keys(schema)):
        lines += ["", f"Keys of {section}" if section else "Keys"]
        for key in entries:
            lines.append(
                textwrap.fill(
                    f"{key.name}={shown(key)}  {sentence(key)}", width, initial_indent="  ", subsequent_indent=" " * 6
                )
            )
    if composed:
        lines += ["", "Keys of the chosen backbone and attention", textwrap.indent(composed.rstrip(), "  ")]
    return "\n".join(lines)


def markdown() -> str:
    """The reference of all keys of `train.py`, for the docs."""
    lines = [
        "# All keys",
        "",
        "Every key of `train.py` outside the groups `backbone` and `attention`, whose files in `configs/` explain their "
        "own. Made by `python scripts/reference.py`.",
    ]
    for section, entries in _sections(keys(Config)):
        rows = [(f"`{key.name}`", f"`{shown(key)}`", sentence(key)) for key in entries]
        lines += ["", f"## {section or 'The run'}", "", *markdown_lines([("key", "default", "meaning"), *rows])]
    return "\n".join(lines) + "\n"


def _sections(entries: Iterable[Key]) -> Iterator[tuple[str, list[Key]]]:
    found: dict[str, list[Key]] = {}
    for key in entries:
        if key.name not in ("backbone", "attention"):
            found.setdefault(key.name.rpartition(".")[0], []).append(key)
    yield from found.items()


def shown(key: Key) -> str:
    return "..." if key.default is MISSING else _plain(key.default)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_plain, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def sentence(key: Key) -> str:
    """The meaning, the choices and the limits."""
    parts = [key.meaning]
    if key.choices:
        parts.append(
            f"one of {', '.join(key.choices)}" if not key.kind.startswith("list") else f"some of {', '.join(key.choices)}"
        )
    if key.limits:
        parts.append(key.limits)
    if key.read_by:
        parts.append(f"with data.source={' or '.join(key.read_by)} only")
    return "; ".join(parts)
