"""A page per attention: equation, slot, options, size and rows, from `docs/attentions.yaml`, yaml, docstring and tables."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from attn import tables
from attn.attention import Attention
from attn.config.groups import config_dir
from attn.models import flops
from attn.models.create import create_model, list_attentions
from attn.models.spec import AttentionSpec, resolve_attention
from attn.tabulate import markdown_lines
from pages import figure, markup

BACKBONES = ("resnet18", "resnet50")  # whose sizes each page gives


@dataclass(frozen=True)
class Option:
    """One key of an attention's yaml: its path below `attention`, its default, and the comment beside it."""

    path: str
    default: str
    comment: str


def write(docs: Path) -> dict[str, str]:
    """The pages by their path on the site: an index, and one per attention.

    Args:
        docs: the directory with attentions.yaml.

    Raises:
        ValueError: an attention is missing in the file, or the file names one that does not exist.
    """
    told = yaml.safe_load((docs / "attentions.yaml").read_text())
    differing = sorted(set(told) ^ set(list_attentions()))
    if differing:
        raise ValueError(f"docs/attentions.yaml and configs/attention differ in {', '.join(differing)}")
    rows = _rows_by_attention()
    sizes = {name: _sizes(name) for name in ("strip", *told)}
    measured = [json.loads(path.read_text()) for path in sorted((docs / "benchmarks").glob("step_*.json"))]
    found = {
        f"attentions/{name}.md": _page(
            name, told[name], rows.get(name, []), sizes[name], sizes["strip"], list(_costs(name, measured))
        )
        for name in told
    }
    lines = [("name", "attention", "slots", "ResNet-50, M", "added, M")]
    for name, entry in told.items():
        size = sizes[name].get("resnet50")
        lines.append(
            (
                f"[`{name}`]({name}.md)",
                entry["title"],
                ", ".join(resolve_attention(name).filled) or "none",
                "" if size is None else f"{size.params / 1e6:.2f}",
                "" if size is None else f"{(size.params - sizes['strip']['resnet50'].params) / 1e6:+.2f}",
            )
        )
    found["attentions/index.md"] = "\n".join(["# Attentions", "", *markdown_lines(lines, right=(3, 4))]) + "\n"
    return found


def options(name: str) -> list[Option]:
    """The options of a named attention, in the order of its yaml."""
    text = (config_dir() / "attention" / f"{name}.yaml").read_text()
    return list(_options(yaml.compose(text), "", text, text.splitlines()))


def _options(node: yaml.Node, path: str, text: str, lines: list[str]) -> Iterator[Option]:
    below = f"{path}." if path else ""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value != "_target_":
                yield from _options(value, f"{below}{key.value}", text, lines)
    elif isinstance(node, yaml.SequenceNode) and any(isinstance(item, yaml.MappingNode) for item in node.value):
        for index, item in enumerate(node.value):
            yield from _options(item, f"{below}{index}", text, lines)
    else:
        comment = lines[node.end_mark.line][node.end_mark.column :].partition("# ")[2]
        yield Option(path, text[node.start_mark.index : node.end_mark.index], comment)


def arguments(cls: type) -> dict[str, str]:
    """The section `Args:` of a class's docstring: what each argument means."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(cls) or "", re.MULTILINE | re.DOTALL)
    entries = re.findall(
        r"^    ([\w, ]+): (.*?)(?=^    \w[\w, ]*: |\Z)", section[1] if section else "", re.MULTILINE | re.DOTALL
    )
    return {name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")}


def _page(
    name: str,
    entry: Mapping[str, Any],
    rows: list[tables.Row],
    sizes: dict[str, flops.Count],
    plain: dict[str, flops.Count],
    costs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> str:
    spec = resolve_attention(name)
    parts = [f"# {entry['title']}", *_sources(spec), markup.formula(entry["equation"])]
    parts += [figure.picture(slot, entry["reads"], entry.get("state"), name) for slot in spec.filled]
    parts += [
        f"```bash\npython train.py attention={name} backbone=resnet50\n```",
        f'```python\nmodel = attn.create_model("resnet50", "{name}")\n```',
        "## The default form",
        entry["default"],
    ]
    for part in _classes(spec):
        parts += [f"## `{part.__name__}`", _explanation(part)]
    found = options(name)
    if found:
        meanings = {key: text for part in _classes(spec) for key, text in arguments(part).items()}
        lines = [("key", "default", "meaning")]
        for option in found:
            meaning = meanings.get(option.path.rsplit(".", 1)[-1], "")
            lines.append((f"`attention.{option.path}`", f"`{option.default}`", meaning or option.comment))
        parts += ["## Options", "\n".join(markdown_lines(lines))]
    parts += ["## Size", _size_table(sizes, plain)]
    if costs:
        parts += ["## Time and memory of a training step", _cost_table(costs)]
    if rows:
        parts += ["## In the papers' tables", _row_table(rows)]
    return "\n\n".join(parts) + "\n"


def _classes(spec: AttentionSpec) -> Iterator[type[Attention]]:
    """The classes in the slots, and those in their options (`base`, `parts`), each once."""
    seen: dict[type[Attention], None] = {}

    def visit(part: Any) -> None:
        if isinstance(part, partial):
            seen.setdefault(part.func)  # type: ignore[arg-type]
            for value in part.keywords.values():
                visit(value)
        elif isinstance(part, (list, tuple)):
            for value in part:
                visit(value)

    for part in spec.filled.values():
        visit(part)
    yield from seen


def _sources(spec: AttentionSpec) -> Iterator[str]:
    """The paper of each class: the first sentence of its file."""
    for cls in _classes(spec):
        module = inspect.getdoc(inspect.getmodule(cls)) or ""
        yield " ".join(module.split("\n\n")[0].split())


def _explanation(cls: type) -> str:
    """The docstring before its sections, as a page shows it."""
    text = re.split(r"^(?:Args|Raises|Returns):$", inspect.getdoc(cls) or "", maxsplit=1, flags=re.MULTILINE)[0]
    return re.sub(r"(?<![\w`])([*_])(?=\w)", r"\\\1", text.strip())


def _sizes(name: str) -> dict[str, flops.Count]:
    """Parameters and operations on the meta device; without the backbones that cannot take the attention."""
    found = {}
    for backbone in BACKBONES:
        try:
            with torch.device("meta"):
                model = create_model(backbone, name)
            found[backbone] = flops.count(model)
        except ValueError:
            continue
    return found


def _size_table(sizes: dict[str, flops.Count], plain: dict[str, flops.Count]) -> str:
    lines = [("backbone", "params", "added", "GFLOPs (ptflops)", "GMACs", "added MACs")]
    for backbone, size in sizes.items():
        lines.append(
            (
                f"`{backbone}`",
                f"{size.params:,}",
                f"{size.params - plain[backbone].params:+,}",
                f"{size.ptflops / 1e9:.3f}",
                f"{size.macs / 1e9:.3f}",
                f"{(size.macs - plain[backbone].macs) / 1e6:+,.1f} M",
            )
        )
    table = "\n".join(markdown_lines(lines, right=range(1, 6)))
    return f"{table}\n\nWith 1000 classes at 224 pixels. The conventions of FLOPs: [the papers' tables](../tables.md)."


def _costs(name: str, measured: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The results of `scripts/benchmark.py step` in which an attention took part, each with its contender."""
    for result in measured:
        for contender in result["contenders"]:
            if contender["name"] in (f"{name} reference", f"{name} fused") and contender["wall"] is not None:
                yield result, contender


def _cost_table(costs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    lines = [("backbone", "precision", "kernels", "time over plain", "memory kept over plain", "measured by")]
    for result, contender in costs:
        low, middle, high = contender["wall"]
        settings = result["settings"]
        lines.append(
            (
                f"`{settings['backbone']}`, {settings['size']} px, batch {settings['batch']}",
                settings["dtype"],
                contender["name"].rpartition(" ")[2],
                f"{middle:.3f} [{low:.3f}, {high:.3f}]",
                f"{contender['kept']:.3f}",
                f"`{result['command']}`, {result['date']}, {result['hardware']['cpu']}",
            )
        )
    table = "\n".join(markdown_lines(lines, right=(3, 4)))
    return f"{table}\n\nMedian and quartiles over the plain backbone, in one process. More: [benchmarks](../benchmarks.md)."


def _rows_by_attention() -> dict[str, list[tables.Row]]:
    found: dict[str, list[tables.Row]] = {}
    for row in tables.load_rows():
        if row.build is not None:
            found.setdefault(row.build.attention, []).append(row)
    return found


def _row_table(rows: list[tables.Row]) -> str:
    lines = [("row", "network", "printed params, M", "printed scores")]
    for row in rows:
        network = ", ".join(part for part in (row.model, row.method, row.setting, row.detector, row.task) if part)
        scores = ", ".join(f"{name} {value:g}" for name, value in row.metrics.items())
        printed = row.printed.get("params")
        lines.append(
            (
                f"[{row.id}](../tables/{row.paper}.md)",
                network,
                "" if printed is None else f"{printed:.{row.digits}f}",
                scores,
            )
        )
    return "\n".join(markdown_lines(lines, right=(2,)))
