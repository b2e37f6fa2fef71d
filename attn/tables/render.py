"""Tables for a terminal, for the docs and for programs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from attn.models import flops
from attn.runs.files import to_json
from attn.tables.build import choice
from attn.tables.verdict import Result, decimals, summary
from attn.tabulate import markdown_row, text_lines

COLUMNS = ("row", "network", "params: printed", "here", "FLOPs: printed", "here", "equal", "printed accuracy", "verdict")


def as_text(results: list[Result]) -> str:
    """For a terminal: a table per table of a paper; below each row its reason and its command."""
    blocks = []
    for title, group in _tables(results):
        header, *rows = text_lines([COLUMNS, *(_cells(result) for result in group)])
        lines = [title, header]
        for result, row in zip(group, rows, strict=True):
            lines.append(row)
            if result.runs:
                first, *others = result.reached
                lines += [f"    reached: {first}", *(f"        {line}" for line in others)]
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
        lines = [f"## {title}", "", markdown_row(columns), markdown_row(["---"] * len(columns))]
        for result in group:
            cells = list(_cells(result))
            verdict = cells.pop() + (f": {result.reason}" if result.reason else "")
            command = "" if result.row.build is None else f"`{result.row.build.command()}`"
            lines.append(markdown_row([*cells, *(["<br>".join(result.reached)] if with_runs else []), verdict, command]))
        blocks.append("\n".join(lines))
    head = [
        "# The papers' tables",
        "Every row of the papers' tables: what it prints, and what its network has here. Made by"
        " `python scripts/tables.py --format md`; `--runs DIR` adds what runs reached.",
        f"**{summary(results)}.**",
        _legend(),
    ]
    return "\n\n".join([*head, *blocks, *_remarks(results)])


def _remarks(results: list[Result]) -> Iterator[str]:
    for paper in dict.fromkeys(result.row.paper for result in results):
        content = choice("papers", paper)
        yield "\n".join([f"## Remarks on {content['title']}", "", *(f"- {remark}" for remark in content["remarks"])])


def as_json(results: list[Result]) -> str:
    """A list with one object per row."""
    return to_json([result.record() for result in results], indent=1)


def _legend() -> str:
    lines = [f"- FLOPs, {name}: {text}." for name, text in flops.CONVENTIONS.items()]
    lines.append(
        "- Detectors: trainable parameters, and operations by MMDetection 2's analysis for one image of the size that the "
        "config tests with, 1000 proposals and 100 masks; BA-Net's remarks say how its own were counted."
    )
    lines.append(
        "- Where several forms of a row exist, the network's name ends with the form. The row's own has what is printed; "
        "the others follow it with commands of their own: `equations` of BA2M is its equations with the literal "
        "softmax, `equations` of DCANet its printed join and recipe, `every-second` of AW-convolution its text about "
        "MobileNet. The forms of one name in one table are comparable."
    )
    lines.append("- FLOPs are in 1e9 per image; params in 1e6, with Mi in 2^20. Nothing is run to count them.")
    return "\n".join(lines)


def _tables(results: list[Result]) -> Iterator[tuple[str, list[Result]]]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.row.paper, result.row.table), []).append(result)
    for (paper, table), group in groups.items():
        name = f"Table {table}" if re.fullmatch(r"[0-9]+[a-e]?|[IVX]+", table) else table
        yield f"{choice('papers', paper)['title']}: {name}", group


def _cells(result: Result) -> tuple[str, ...]:
    row = result.row
    printed, operations = row.printed.get("params"), row.printed.get("flops")
    unit = " Mi" if row.unit == "Mi" else ""
    network = f"{row.model}, {row.method}" + "".join(
        f", {part}" for part in (row.setting, row.detector, row.task, row.form) if part
    )
    scores = (f"{name} {value:.2f}" if name.startswith("top") else f"{name} {value}" for name, value in row.metrics.items())
    return (
        row.id,
        network,
        "" if printed is None else f"{printed:.{row.digits}f}{unit}",
        "" if result.params is None else f"{result.params:.3f}{unit}",
        "" if operations is None else f"{operations:.{decimals(operations)}f}",
        "" if result.flops is None else f"{result.flops:.3f} {row.flops}",
        "" if result.flops_agree is None else "yes" if result.flops_agree else "no",
        ", ".join(scores),
        result.verdict,
    )
