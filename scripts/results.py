"""Makes the studies in configs/studies: one recipe, many attentions, the same seeds and splits for all.

    python scripts/results.py list
    python scripts/results.py run digits --methods none,se --seeds 0,1
    python scripts/results.py table digits --out docs/results

`run` trains what is not finished, one run after the other; a study that was killed goes on where it was. `table` writes the
page of the results, and beside it the raw metrics of every finished run, from which the page can be made again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from attn.config import scripts
from attn.config.scripts import not_negative
from attn.errors import UserError
from attn.runs import directory
from attn.runs.files import to_json, write_atomically
from attn.runs.metrics import METRICS
from attn.studies import study as studies

ROOT = Path(__file__).resolve().parent.parent


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
        return 1
    write_atomically(folder / METRICS, "".join(to_json(row) + "\n" for row in rows))
    (folder / directory.DONE).touch()
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
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / f"{study.name}.md", tables.page(study, reached, Path("runs")))
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


def seeds_of(text: str) -> list[int]:
    """Seeds as in 0,1, as a `type` of argparse."""
    return [not_negative(seed) for seed in text.split(",")]


def main() -> int:
    parser = scripts.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the studies, their runs, and the command of each")
    for name, text in (("run", "train what is not finished"), ("table", "write the page of the results")):
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
                "--out", type=Path, default=ROOT / "docs" / "results", metavar="DIR", help="(default: docs/results)"
            )
    args = parser.parse_args()
    if args.command == "list":
        for study in map(studies.load, studies.names()):
            print(f"{study.name}: {study.title}; {len(study.methods)} methods, {len(study.seeds)} seeds")
            for method, seed in study.cells():
                print(f"  {studies.shell(study, Path('runs'), method, seed)}")
        return 0
    study = studies.load(args.study)
    return run(study, args) if args.command == "run" else table(study, args)


if __name__ == "__main__":
    scripts.run(main)
