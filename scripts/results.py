"""Makes the studies in configs/studies: one recipe, many attentions, the same seeds and splits for all.

    python scripts/results.py list
    python scripts/results.py run digits --methods none,se --seeds 0,1
    python scripts/results.py figures digits
    python scripts/results.py table digits --out docs/results
    python scripts/results.py readme
    python scripts/results.py splits

`run` trains what is not finished, one run after the other; a study that was killed goes on where it was. `figures` draws learning
curves, and the figures of scripts/analyse.py that the study names. `table` writes the page of the results with these pictures,
and beside it the raw metrics of every finished run, from which the page can be made again. `readme` brings the results of all
studies with a page into README.md. `splits` writes the random splits of ELPV.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from attn.config import scripts
from attn.config.groups import config_dir
from attn.config.scripts import not_negative
from attn.errors import UserError
from attn.runs import directory
from attn.runs.files import to_json, write_atomically
from attn.runs.metrics import METRICS
from attn.studies import study as studies

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
SPLITS = 50  # as many as arXiv 2408.06229 repeats


def run(study: studies.Study, args: argparse.Namespace) -> int:
    """Trains every run that is not finished; a run that fails is named at the end, and the others are still made."""
    cells = list(study.cells(args.methods, args.seeds))
    failed, began, made = [], time.monotonic(), 0
    for number, (method, seed) in enumerate(cells, 1):
        if (study.folder(args.runs, method, seed) / directory.DONE).exists():
            continue
        left = ""
        if made:
            minutes = (time.monotonic() - began) / made * (len(cells) - number + 1) / 60
            left = f", about {minutes:.0f} min left"
        print(f"{number} of {len(cells)}: {study.name} {method} seed {seed}{left}", flush=True)
        command = [sys.executable, str(ROOT / study.script), *study.command(args.runs.resolve(), method, seed)]
        code = subprocess.run(command, check=False).returncode
        made += 1
        if not code and study.detector is not None:
            code = finish_detector(study.folder(args.runs, method, seed))
        if code in (75, 130):
            return code
        if code:
            failed.append(f"{method} seed {seed} (code {code})")
    if failed:
        print(f"error: {len(failed)} of {len(cells)} runs failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    print(f"all {len(cells)} runs of {study.name} are finished below {args.runs / study.name}")
    return 0


def finish_detector(folder: Path) -> int:
    """Writes metrics.jsonl from MMEngine's logs and marks the run as finished, as `train.py` does itself; 1 if it holds none."""
    from detection import runs  # MMDetection, which only studies of detectors need

    rows = runs.epochs(folder)
    if not rows:
        again = "it was ended after its last epoch, before its test; remove the folder, and the run is made again"
        print(f"error: {folder} holds no scores: {again}", file=sys.stderr)
        return 1
    write_atomically(folder / METRICS, "".join(to_json(row) + "\n" for row in rows))
    (folder / directory.DONE).touch()
    return 0


def figures(study: studies.Study, args: argparse.Namespace) -> int:
    """Draws the pictures of the page into OUT/images."""
    from attn.studies import figures as drawn

    (args.out / "images").mkdir(parents=True, exist_ok=True)
    for path in drawn.write(study, args.runs, args.out / "images"):
        print(f"drew {path} ({path.stat().st_size / 1000:.0f} kB)", flush=True)
    return 0


def table(study: studies.Study, args: argparse.Namespace) -> int:
    """Writes OUT/STUDY.md and the raw metrics to OUT/raw/STUDY."""
    from attn.studies import outcome
    from attn.studies import table as tables

    reached = outcome.read(study, args.runs)
    if not reached:
        raise UserError(
            f"{args.runs / study.name}: no finished run; make them by: python scripts/results.py run {study.name}"
        )
    counts = tables.sizes(study, reached) if study.detector is None else sizes_of_detectors(study, reached)
    args.out.mkdir(parents=True, exist_ok=True)
    page = tables.page(study, reached, Path("runs"), counts, args.out / "images")
    write_atomically(args.out / f"{study.name}.md", page)
    for method, seeds in reached.items():
        for seed in seeds:
            source = study.folder(args.runs, method, seed)
            target = study.folder(args.out / "raw", method, seed)
            if source.resolve() != target.resolve():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / METRICS, target / METRICS)
                (target / directory.DONE).touch()
    print(f"wrote {args.out / f'{study.name}.md'} from {sum(map(len, reached.values()))} runs")
    return 0


def sizes_of_detectors(study: studies.Study, methods: Iterable[str]) -> dict[str, Any]:
    """Trainable parameters and operations of the methods' detectors, as `attn.studies.table.sizes`."""
    from detection import cli, count

    found = {}
    for method in methods:
        given = cli.parser("").parse_args([str(study.detector), "--cfg-options", *study.base, *study.methods[method]])
        found[method] = count.count(given.config, given.cfg_options)
    return found


def readme() -> int:
    """Replaces the results in README.md by those of docs/results."""
    from attn.studies import summary

    path = ROOT / "README.md"
    write_atomically(path, summary.replaced(path.read_text(), summary.section(RESULTS)))
    print(f"wrote the results of {RESULTS} into {path}")
    return 0


def splits() -> int:
    """Writes the splits of ELPV to docs/results/splits."""
    from attn.config import parse
    from attn.data import elpv

    (RESULTS / "splits").mkdir(exist_ok=True)
    _, thirds, types = elpv.load()
    for name in ("elpv", "elpv_four", "elpv_defect"):
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            data = parse.parse(compose("train", [f"data={name}", "attention_name=none"])).data
        numbers = [None] if data.split is None else range(SPLITS)
        path = RESULTS / "splits" / f"{name}.json"
        write_atomically(path, elpv.published(thirds, types, name, data.held_out, numbers))
        print(f"wrote {path}")
    return 0


def seeds_of(text: str) -> list[int]:
    """Seeds as in 0,1, as a `type` of argparse."""
    return [not_negative(seed) for seed in text.split(",")]


def main() -> int:
    parser = scripts.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the studies, their runs, and the command of each")
    commands.add_parser("readme", help="bring the results of docs/results into README.md")
    commands.add_parser("splits", help="write the random splits of ELPV to docs/results/splits")
    for name, text in (
        ("run", "train what is not finished"),
        ("figures", "draw the pictures of the page"),
        ("table", "write the page of the results"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("study", choices=studies.names())
        command.add_argument(
            "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the runs are (default: runs)"
        )
        if name == "run":
            command.add_argument("--methods", type=lambda text: text.split(","), help="some of the methods, as in none,se")
            command.add_argument("--seeds", type=seeds_of, help="some of the seeds, as in 0,1")
        else:
            command.add_argument(
                "--out",
                type=Path,
                default=RESULTS,
                metavar="DIR",
                help="where the page and its files are written (default: docs/results)",
            )
    args = parser.parse_args()
    if args.command == "list":
        for study in map(studies.load, studies.names()):
            print(f"{study.name}: {study.title}; {len(study.methods)} methods, {len(study.seeds)} seeds")
            for method, seed in study.cells():
                print(f"  {studies.shell(study, Path('runs'), method, seed)}")
        return 0
    if args.command in ("readme", "splits"):
        return readme() if args.command == "readme" else splits()
    return {"run": run, "figures": figures, "table": table}[args.command](studies.load(args.study), args)


if __name__ == "__main__":
    scripts.run(main)
