"""Views of a run's metrics: a line for the console, CSV, curves. `metrics.jsonl` is the record; a view may fail."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from attn.config.schema import METRICS
from attn.runs import files, metrics


def table_row(row: dict[str, Any]) -> str:
    """An epoch as a line for the console."""
    text = f"epoch {row['epoch']:3d}  lr {row['lr']:.2e}  train loss {row['train_loss']:.4f} top-1 {row['train_top1']:6.2f}"
    text += f"  val loss {row['val_loss']:.4f} top-1 {row['val_top1']:6.2f} top-5 {row['val_top5']:6.2f}"
    text += "".join(f" {name.replace('_', ' ')} {row[f'val_{name}']:.2f}" for name in METRICS if f"val_{name}" in row)
    if "ema_val_top1" in row:
        text += f"  ema top-1 {row['ema_val_top1']:6.2f}"
    return text + f"  {row['images_per_second']:7.1f} images/s"


def write_csv(run_dir: Path) -> Path:
    """metrics.csv from metrics.jsonl."""
    rows = metrics.read_metrics(run_dir)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    path = run_dir / "metrics.csv"
    files.write_atomically(path, text.getvalue())
    return path


def write_curves(run_dir: Path) -> Path:
    """curves.png from metrics.jsonl: loss, top-1 and learning rate over the epochs."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.ticker import MaxNLocator

    rows = metrics.read_metrics(run_dir)
    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle("/".join(run_dir.resolve().parts[-2:]))
    panels = figure.subplots(1, 3)
    contents = [
        ("loss", ["train_loss", "val_loss", "ema_val_loss"]),
        ("top-1 (%)", ["train_top1", "val_top1", "ema_val_top1"]),
        ("learning rate", ["lr"]),
    ]
    for panel, (title, names) in zip(panels, contents, strict=True):
        for name in names:
            points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                panel.plot(*zip(*points, strict=True), marker=".", label=name.replace("_", " "))
        panel.set(title=title, xlabel="epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.legend()
    path = run_dir / "curves.png"
    temporary = path.with_name("curves.png.tmp")
    figure.savefig(temporary, format="png", dpi=110)
    os.replace(temporary, path)
    return path
