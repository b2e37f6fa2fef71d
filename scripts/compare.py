"""One table of many runs, with mean and spread over seeds: `python scripts/compare.py runs --format md --picture compare.png`.

Every folder below the given ones that holds a config.yaml and a metrics.jsonl is a run. Runs that differ in the seed alone are
one row; runs of one backbone, attention and data set that differ in more are told apart by the keys in which they differ.
`best` is the highest validation top-1 of a run and so looks a little better than it is; `last` is that of its last epoch. Both
are of the averaged weights where there are any. The spread is the sample standard deviation, in percentage points.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from attn.config import parse
from attn.config.schema import Config
from attn.errors import UserError
from attn.runs import directory, metrics
from attn.training.optim import total_epochs

IGNORED = directory.FREE | {"seed"}


@dataclass(frozen=True)
class Result:
    """A run: its config, and validation top-1 in percent."""

    folder: Path
    cfg: Config
    best: float
    last: float
    epochs: int

    @property
    def finished(self) -> bool:
        return (self.folder / directory.DONE).exists() or self.epochs >= total_epochs(self.cfg.schedule)

    @property
    def name(self) -> tuple[str, str, str]:
        return self.cfg.backbone["name"], self.cfg.attention_name, self.cfg.data.name

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on, without the seed, as dotted keys."""
        flat = parse.flatten(parse.to_dict(self.cfg))
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


def find(folders: Iterable[Path]) -> list[Result]:
    """All runs with at least one evaluated epoch.

    Raises:
        UserError: a folder is missing, or a config does not fit this version.
    """
    found = {}
    for top in folders:
        if not top.is_dir():
            raise UserError(f"{top}: no such folder")
        for path in sorted(top.rglob(metrics.METRICS)):
            folder = path.parent
            rows = metrics.read_metrics(folder)
            if not rows or not (folder / directory.CONFIG).exists():
                continue
            try:
                cfg = parse.parse(OmegaConf.load(folder / directory.CONFIG))  # type: ignore[arg-type]
            except UserError as error:
                raise UserError(f"{folder / directory.CONFIG}: {error}") from None
            scores = [row.get("ema_val_top1", row["val_top1"]) for row in rows]
            found[folder.resolve()] = Result(folder, cfg, max(scores), scores[-1], rows[-1]["epoch"])
    return list(found.values())


def table(results: list[Result]) -> list[Row]:
    """Rows by data set, backbone and attention; `none` first, for the others are compared with it."""
    named: dict[tuple[str, str, str], dict[str, list[Result]]] = {}
    for result in results:
        named.setdefault(result.name, {}).setdefault(json.dumps(result.settings, sort_keys=True), []).append(result)
    rows = []
    for (backbone, attention, data), groups in named.items():
        settings = [json.loads(key) for key in groups]
        differing = [key for key in settings[0] if any(s.get(key) != settings[0][key] for s in settings)]
        differing += sorted({key for s in settings for key in s} - set(settings[0]))
        for setting, runs in zip(settings, groups.values(), strict=True):
            variant = " ".join(f"{key}={setting.get(key)}" for key in differing)
            done = [result for result in runs if result.finished]
            rows.append(
                Row(backbone, attention, data, variant, parameters(runs[0].cfg), done or runs, len(runs) - len(done))
            )
    return sorted(rows, key=lambda r: (r.data, r.backbone, r.attention != "none", r.attention, r.variant))


def parameters(cfg: Config) -> int:
    import torch  # seconds, which a wrong folder shall not cost

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


def cells(rows: list[Row]) -> list[list[str]]:
    """The table as text, its header first."""

    def score(values: list[float]) -> str:
        deviation = spread(values)
        return f"{statistics.mean(values):.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")

    text = [["data", "backbone", "attention", "params (M)", "runs", "best top-1 (%)", "last top-1 (%)", "gain"]]
    for row in rows:
        better = gain(row, rows)
        count = str(len(row.runs))
        if row.unfinished:
            count += (
                f" (+{row.unfinished} unfinished)"
                if row.unfinished < len(row.runs) or row.runs[0].finished
                else " unfinished"
            )
        text.append(
            [
                *(row.data, row.backbone, row.label, f"{row.parameters / 1e6:.2f}", count),
                *(score(row.best()), score(row.last()), "" if better is None else f"{better:+.2f}"),
            ]
        )
    return text


def as_text(rows: list[Row]) -> str:
    lines = cells(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_markdown(rows: list[Row]) -> str:
    header, *lines = cells(rows)
    rule = ["---", "---", "---", *["---:"] * (len(header) - 3)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def as_json(rows: list[Row]) -> str:
    return json.dumps(
        [
            {
                "data": row.data,
                "backbone": row.backbone,
                "attention": row.attention,
                "variant": row.variant,
                "parameters": row.parameters,
                "seeds": [result.cfg.seed for result in row.runs],
                "unfinished": row.unfinished,
                "best": {"mean": statistics.mean(row.best()), "std": spread(row.best()), "values": row.best()},
                "last": {"mean": statistics.mean(row.last()), "std": spread(row.last()), "values": row.last()},
                "gain": gain(row, rows),
                "run_dirs": [str(result.folder) for result in row.runs],
            }
            for row in rows
        ],
        indent=2,
    )


FORMATS: dict[str, Callable[[list[Row]], str]] = {"text": as_text, "md": as_markdown, "json": as_json}


def picture(rows: list[Row], path: Path) -> None:
    """Last top-1 over parameters: a panel per data set, a colour per backbone; bars are the spread, dots the runs."""
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(row.data for row in rows))
    figure = Figure(figsize=(6 * len(sets), 4.5), layout="constrained")
    for panel, data in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        here = [row for row in rows if row.data == data]
        for number, backbone in enumerate(dict.fromkeys(row.backbone for row in here)):
            colour = f"C{number % 10}"
            for index, row in enumerate(row for row in here if row.backbone == backbone):
                x, y = row.parameters / 1e6, statistics.mean(row.last())
                label = backbone if index == 0 else None
                panel.errorbar(x, y, yerr=spread(row.last()), fmt="o", color=colour, capsize=3, label=label)
                panel.scatter([x] * len(row.runs), row.last(), s=8, color=colour, alpha=0.5)
                panel.annotate(row.label, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
        panel.set(title=data, xlabel="parameters (millions)", ylabel="top-1 in the last epoch (%)")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders with runs in or below them, such as runs")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--picture", type=Path, help="also draw top-1 over parameters, to this file")
    options = parser.parse_args()
    try:
        rows = table(find(options.runs))
        if not rows:
            raise UserError(f"no run with an evaluated epoch in {', '.join(map(str, options.runs))}")
        print(FORMATS[options.format](rows))
        if options.picture:
            picture(rows, options.picture)
            print(f"saved {options.picture}", file=sys.stderr)
    except (UserError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
