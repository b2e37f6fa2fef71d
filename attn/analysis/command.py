"""The job of scripts/analyse.py: from the keys to the files of a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from attn import console
from attn.analysis import (
    batch,
    confusion,
    connections,
    cost,
    embedding,
    gradcam,
    histograms,
    importance,
    maps,
    weights,
)
from attn.analysis.files import Table, output_paths, save
from attn.analysis.subjects import load_subjects
from attn.config.analysis import Batch, Checkpoints, Cost
from attn.distributed import Ranks, launch, pick_device
from attn.errors import UserError

OF_CHECKPOINTS: dict[str, Any] = {
    "weights": weights.run,
    "histograms": histograms.run,
    "importance": importance.run,
    "gradcam": gradcam.run,
    "connections": connections.run,
    "embedding": embedding.run,
    "maps": maps.run,
    "confusion": confusion.run,
}


def run(kind: str, options: Any) -> list[Path]:
    """Measures, draws and saves a figure; returns its files.

    Raises:
        UserError: something that the user can put right, said in one line.
    """
    out = options.out or kind
    output_paths(out)
    if isinstance(options, Batch):
        return _saved(batch.run(options), out)
    if isinstance(options, Cost):
        return _cost(options, out)
    assert isinstance(options, Checkpoints)
    device = pick_device(options.device)
    subjects = load_subjects(options.checkpoint, options.data, options.weights, device, options.trust)
    return _saved(OF_CHECKPOINTS[kind](subjects, options), out)


def _cost(options: Cost, out: str) -> list[Path]:
    sources = {"checkpoint": options.checkpoint, "runs": options.runs, "paper": options.paper}
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        raise UserError(
            f"cost takes one of checkpoint=, runs= and paper=, as in cost checkpoint=best.pt or cost paper=ba_net table=2; given: "
            f"{', '.join(given) or 'none'}"
        )
    if options.table is not None and options.paper is None:
        raise UserError(f"table={options.table} needs paper=, as in paper=ba_net")
    if not options.checkpoint:
        return _saved(cost.run([], options, Ranks(0, 1, pick_device("cpu"))), out)
    with launch(options.device, timeout=600) as ranks:
        subjects = load_subjects(options.checkpoint, options.data, options.weights, ranks.device, options.trust)
        found = cost.run(subjects, options, ranks)
        return _saved(found, out) if ranks.first else []


def _saved(found: tuple[Figure, Table], out: str) -> list[Path]:
    paths = save(*found, out)
    console.say(f"saved {', '.join(map(str, paths))}")
    return paths
