"""Two steps of training for each way in which ranks can wait for a gradient: `torchrun --nproc-per-node=2 tests/two_ranks.py
FOLDER`.

These are the printed attentions that hold unused parameters, each setting once, and one attention of each slot. The steps
are those of `attn.training`, on narrow networks. Prints a line of JSON with the rows whose networks were trained.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from commands import composed

from attn import tables
from attn.config.schema import Config
from attn.data.ahead import Ahead
from attn.distributed import fail_together, launch
from attn.models.spec import resolve_attention
from attn.tables.build import Build
from attn.training.loop import train_step
from attn.training.setup import prepare
from attn.training.stop_request import StopRequest

STEPS = 2
SETTINGS = [
    "data=fake",
    "data.image_size=32",
    "data.test_resize=32",
    "data.num_classes=10",
    "data.samples=16",
    "data.workers=0",
]
SETTINGS += ["schedule.batch_size=8", "schedule.lr=1e-4", "device=cpu", "logger=none"]
NARROW = ["++backbone.layers=[2,1,1,1]", "++backbone.channels=[32,32,32,32]", "++backbone.stem_width=32"]


def chosen() -> dict[str, Build]:
    """The builds to train, by the first row of each."""
    found: dict[str, tuple[str, Build]] = {}
    for row in tables.with_alternatives((*tables.load_rows(), *tables.load_computed())):
        if row.build is None or row.build.detector is not None or row.build.data != "imagenet":
            continue
        attention = row.build.mapping("attention")
        unused = any(key.endswith(".unused") and value for key, value in row.build.settings)
        slots = sorted(resolve_attention(attention).filled)
        found.setdefault(json.dumps(attention if unused else slots), (row.id, row.build))
    return dict(found.values())


def config(build: Build, run_dir: Path) -> Config:
    choices = [f"backbone={build.backbone}", f"attention={build.attention}", *SETTINGS, f"run_dir={run_dir}"]
    own = [o for o in build.overrides() if o.lstrip("+").startswith(("backbone.", "attention."))]
    return composed(*choices, *own, *(NARROW if build.backbone.startswith("res") else []))


def main() -> None:
    trained = []
    for number, (name, build) in enumerate(chosen().items()):
        run_dir = Path(sys.argv[1]) / str(number)
        run_dir.mkdir(parents=True, exist_ok=True)
        cfg = config(build, run_dir)
        with launch(cfg.device, cfg.dist_timeout) as ranks, StopRequest() as request:
            with fail_together(ranks):
                run = prepare(cfg, run_dir, ranks, request, None)
            assert run is not None
            with contextlib.closing(Ahead(run.data.batches(0, STEPS, ranks), ranks.device)) as batches:
                for _ in range(STEPS):
                    train_step(run, batches)
            ranks.barrier()
            if ranks.first:
                trained.append(name)
    if trained:
        print(json.dumps(trained))


if __name__ == "__main__":
    main()
