"""The model card of a run: what it is, how it was trained, what it reached on how many seeds, how to load and to cite it."""

from __future__ import annotations

import importlib
import inspect
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from attn.config import groups, parse
from attn.config.schema import Config
from attn.errors import UserError
from attn.models import spec
from attn.runs import directory, metrics
from attn.tabulate import markdown_lines

UNITS = {"loss": "nats", "mcc": "-1 to 1"}  # all other scores are in percent


def card(cfg: Config, content: Mapping[str, Any], path: Path, weights: str, parameters: int) -> str:
    """The text of README.md.

    Args:
        cfg: the run's config; what it names is trusted.
        content: the checkpoint.
        path: of the checkpoint; the metrics are those of its folder.
        weights: ema or raw.
        parameters: of the model.
    """
    name = f"{cfg.backbone['name']} with {cfg.attention_name}" if cfg.attention_name != "none" else cfg.backbone["name"]
    row = row_of(content, path)
    prefix = "ema_val_" if weights == "ema" else "val_"
    scores = {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix) and _finite(value)}
    lines = [*front_matter(name, cfg, scores), f"# {name}, trained on {cfg.data.name}", ""]
    lines += [
        f"{parameters / 1e6:.2f} M parameters, {cfg.data.num_classes} classes, images of {cfg.data.image_size} pixels.",
        "",
    ]
    lines += [
        "```python",
        "import attn",
        "",
        'model = attn.load("hf-hub:ORGANISATION/NAME")  # or this folder; in eval mode',
        "```",
        "",
    ]
    lines += [*for_timm(cfg.backbone["name"], cfg.attention_name), ""]
    lines += ["## Scores", ""]
    if scores:
        about = f"Validation after epoch {row['epoch']} of {cfg.schedule.epochs}, {'averaged' if weights == 'ema' else 'raw'} weights."
        table = [("score", "value", "unit"), *((key, f"{value:.4g}", UNITS.get(key, "%")) for key, value in scores.items())]
        lines += [about, "", *markdown_lines(table, right=[1]), "", *spread(cfg, path, prefix), ""]
    else:
        lines += ["The checkpoint comes without scores.", ""]
    origin = content.get("origin")
    if origin:
        lines += ["## Origin", "", *(f"- {key}: {value}" for key, value in origin.items()), ""]
    lines += ["## Config", "", "```yaml", yaml.safe_dump(parse.to_dict(cfg), sort_keys=False).rstrip(), "```", ""]
    versions = content.get("versions") or {}
    lines += [", ".join(f"{key} {value}" for key, value in versions.items()), "", "## Citation", ""]
    lines += [*(f"- {line}" for line in papers(cfg)), "- attn: channel attention in convolutional networks (software)."]
    return "\n".join(lines) + "\n"


def for_timm(backbone: str, attention: str) -> list[str]:
    """How `timm.create_model("local-dir:...")` and transformers' TimmWrapper come to know the network."""
    if attention == "none":
        return ["`timm.create_model` builds it, too."]
    if attention not in groups.names("attention"):
        return []
    before = "After `import attn.timm`"
    if backbone not in groups.names("backbone"):
        before += f' and `attn.timm.register("{backbone}", "{attention}")`'
    return [f"{before} `timm.create_model` builds it, too."]


def front_matter(name: str, cfg: Config, scores: Mapping[str, float]) -> list[str]:
    """The metadata that the Hub reads."""
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": cfg.data.name, "type": cfg.data.name},
            "metrics": [{"type": key, "value": round(value, 4)} for key, value in scores.items()],
        }
    ]
    content: dict[str, Any] = {"library_name": "timm", "pipeline_tag": "image-classification"}
    content["tags"] = ["attn", "channel-attention", cfg.attention_name, cfg.backbone["name"]]
    if scores:
        content["model-index"] = [{"name": name, "results": results}]
    return ["---", yaml.safe_dump(content, sort_keys=False).rstrip(), "---", ""]


def row_of(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The line of metrics of the epoch in which a checkpoint was saved, or an empty one."""
    rows = [*metrics.read_metrics(path.parent), *content.get("rows", ()), *content.get("history", ())]
    return next((row for row in rows if row["epoch"] == content.get("evaluated")), {})


def spread(cfg: Config, path: Path, prefix: str) -> list[str]:
    """The finished runs beside this one that differ in the seed alone: their best scores, mean and standard deviation."""
    key = f"{prefix}{cfg.monitor}"
    found: dict[int, float] = {}
    for folder in sorted(path.parent.parent.glob("*")):
        if not (folder / directory.DONE).exists():
            continue
        try:
            other = parse.from_dict(yaml.safe_load((folder / directory.CONFIG).read_text()))
        except (OSError, UserError, yaml.YAMLError, TypeError):
            continue
        differing = {line.partition(":")[0] for line in directory.differences(cfg, other)}
        values = [row[key] for row in metrics.read_metrics(folder) if _finite(row.get(key))]
        if differing <= {"seed"} and values:
            found[other.seed] = min(values) if cfg.monitor == "loss" else max(values)
    if len(found) < 2:
        return ["One run: there is no spread over seeds."]
    values = list(found.values())
    each = ", ".join(f"seed {seed} {value:.2f}" for seed, value in sorted(found.items()))
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return [f"Best {cfg.monitor} over {len(values)} seeds: {mean:.2f} ± {deviation:.2f} (standard deviation); {each}."]


def papers(cfg: Config) -> Iterator[str]:
    """The first line of the file of each attention in the config, which names its paper."""
    seen: set[str] = set()
    for _, target in spec.targets(cfg.attention):
        module = str(target).rpartition(".")[0]
        text = inspect.getdoc(importlib.import_module(module))
        if text and text not in seen:
            seen.add(text)
            yield text.splitlines()[0]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
