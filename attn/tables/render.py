"""Tables for a terminal, for the docs and for programs."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator

from attn.models import flops
from attn.runs.files import to_json
from attn.tables.build import choice
from attn.tables.verdict import EQUAL, Result, decimals, summary
from attn.tabulate import markdown_lines, text_lines

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
    """For the docs: the start page and a page per paper, one after the other."""
    return "\n".join(pages(results).values())


def pages(results: list[Result]) -> dict[str, str]:
    """The pages of the docs by their path: `tables.md`, and `tables/PAPER.md` for each paper among the results."""
    papers = {paper: [r for r in results if r.row.paper == paper] for paper in dict.fromkeys(r.row.paper for r in results)}
    index = [(f"[{choice('papers', paper)['title']}](tables/{paper}.md)", summary(group)) for paper, group in papers.items()]
    lines = [
        "# The papers' tables",
        "Every row of the papers' tables: the printed numbers, and those of its network here. Made by"
        " `python scripts/tables.py --write docs`; `--runs DIR` adds the scores of runs.",
        f"**{summary(results)}.**",
        "\n".join(markdown_lines([("paper", "rows"), *index])),
        "## How to read them",
        _legend(),
    ]
    found = {"tables.md": "\n\n".join(lines) + "\n"}
    for paper, group in papers.items():
        found[f"tables/{paper}.md"] = "\n\n".join(_page(paper, group)) + "\n"
    return found


def _page(paper: str, results: list[Result]) -> Iterator[str]:
    content = choice("papers", paper)
    yield f"# {content['title']}"
    yield f"{summary(results)}. The verdicts and units are explained on [the first page](../tables.md)."
    for title, group in _tables(results):
        conventions = Counter(result.row.flops for result in group if result.flops is not None)
        usual = conventions.most_common(1)[0][0] if conventions else ""
        yield f"## {title.removeprefix(content['title'] + ': ')}"
        if usual:
            yield f"FLOPs are counted as `{usual}`{'' if len(conventions) == 1 else ', where the row does not name another'}."
        yield "\n".join(markdown_lines(list(_rows(group, usual))))
    yield "## Remarks on this paper"
    yield "\n".join(f"- {remark}" for remark in content["remarks"])


def _rows(group: list[Result], convention: str) -> Iterator[tuple[str, ...]]:
    """The header and the rows of a table; what would make it wide is folded into the last cell."""
    with_runs = any(result.runs for result in group)
    reached = ("reached",) if with_runs else ()
    yield ("row", "network", "params", "here", "FLOPs", "here", "accuracy", *reached, "verdict", "how")
    for result in group:
        number, network, params, own_params, operations, own_operations, _, scores, _ = _cells(result)
        yield (
            number.removeprefix(f"{result.row.paper}/"),
            network,
            params,
            own_params,
            operations,
            own_operations.removesuffix(f" {convention}"),
            scores,
            *(["<br>".join(result.reached)] if with_runs else []),
            _verdict(result),
            _folded(result),
        )


def _verdict(result: Result) -> str:
    """The verdict in the docs: `equal` once, for params and FLOPs together."""
    if result.verdict != EQUAL or result.flops_agree is not False:
        return result.verdict
    return "params equal, FLOPs not"


def _folded(result: Result) -> str:
    """The reason and the command of a row, to be opened."""
    reason, build = result.reason, result.row.build
    parts = [] if reason is None else [html.escape(reason, quote=False)]
    if build is not None:
        parts.append(f"<code>{html.escape(build.command(), quote=False)}</code>")
    name = " and ".join([*(["why"] if reason else []), *(["command"] if build is not None else [])])
    return f"<details><summary>{name}</summary>{'<br>'.join(parts)}</details>" if parts else ""


def as_json(results: list[Result]) -> str:
    """A list with one object per row."""
    return to_json([result.record() for result in results], indent=1)


def _legend() -> str:
    lines = [f"- FLOPs, {name}: {text}." for name, text in flops.CONVENTIONS.items()]
    lines.append(
        "- Detectors: trainable parameters, and operations by MMDetection 2's analysis for one image of the size that the "
        "config tests with, 1000 proposals and 100 masks; BA-Net's remarks say how its detectors were counted."
    )
    lines.append(
        "- Where a row has several forms, the network's name ends with the form. The first is the form that the paper "
        "prints; the others follow it with commands of their own: `equations` in BA2M is its equations with the literal"
        " softmax, `equations` in DCANet its printed join and recipe, `every-second` in AW-convolution what its text "
        "says of MobileNet. Forms of one name in one table are comparable."
    )
    lines.append("- FLOPs are in 1e9 per image; params in 1e6, with Mi in 2^20. Nothing is run to count them.")
    lines.append(
        "- The verdict `equal` means equal to the printed digit, in params and, where the table prints them, in FLOPs. "
        "`explained`: the printed number does not follow from the paper's definition, and the row says why."
    )
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
