"""Builds every row of the papers' tables, and prints what was printed beside what is measured here.

    python scripts/tables.py --paper dcanet --table 1
    python scripts/tables.py --format json
    python scripts/tables.py --runs runs

With --runs every printed metric (top-1, top-5; AP, AP50, AP75, AP_S, AP_M, AP_L; VOC mAP, Recall) is shown with mean,
median, best and standard deviation over the seeds that were run, and how far each is from the printed value. Exits with 1 if
a row that should agree with its paper does not.
"""

from __future__ import annotations

import contextlib
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from attn import tables
from attn.config import scripts
from attn.models import flops
from attn.runs.files import write_atomically


def detector_tools(
    directory: Path | None,
) -> tuple[Callable[[tables.Build], flops.Count] | None, Callable[[tables.Row], list[tables.Run]] | None]:
    """What counts the detector of a row, and what finds its runs below a directory; nothing without MMDetection."""
    try:
        from detection import runs
        from detection.cli import CONFIGS
        from detection.count import count
    except ImportError:
        return None, None

    @cache
    def count_detector(build: tables.Build) -> flops.Count:
        return count(CONFIGS / f"{build.detector}.py", build.options, **dict(build.counted))

    return count_detector, None if directory is None else partial(runs.matching, runs.find(directory))


def main() -> int:
    parser = scripts.Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--paper", choices=tables.papers(), help="only the rows of this paper")
    parser.add_argument("--table", help="only this table, as the paper numbers it: 1, 2e, XII")
    parser.add_argument(
        "--computed", action="store_true", help="instead, sizes that follow from released code alone (BA-Net v2)"
    )
    parser.add_argument("--format", choices=("text", "md", "json"), default="text", help="of the output (default text)")
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="also show what finished runs below DIR reached, metric by metric (. for runs/ and work_dirs/)",
    )
    parser.add_argument(
        "--write", type=Path, metavar="DIR", help="write the pages of the docs: DIR/tables.md and DIR/tables/"
    )
    args = parser.parse_args()
    if args.write is not None and (args.paper or args.table or args.computed or args.format != "text"):
        parser.error("--write: the pages hold all rows; leave out --paper, --table, --computed and --format")
    if args.runs is not None and not args.runs.is_dir():
        parser.error(f"--runs {args.runs}: no such directory")
    try:
        rows = tables.load_computed() if args.computed else tables.load_rows(args.paper, args.table)
    except ValueError as error:
        parser.error(str(error))
    runs = None if args.runs is None else tables.find_runs(args.runs)
    with contextlib.redirect_stdout(sys.stderr):  # MMDetection prints when it is imported; the output is the table's alone
        count_detector, detector_runs = detector_tools(args.runs)
        results = tables.evaluate(rows, count_detector, runs, detector_runs)
    if args.write is not None:
        for name, page in tables.pages(results).items():
            (args.write / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.write / name, page)
            print(f"wrote {args.write / name}")
        return _exit_code(results)
    show = {"text": tables.as_text, "md": tables.as_markdown, "json": tables.as_json}[args.format]
    with contextlib.suppress(BrokenPipeError):  # the reader may have seen enough, as in `| head`
        print(show(results), flush=True)
    return _exit_code(results)


def _exit_code(results: list[tables.Result]) -> int:
    wrong = [result.row.id for result in results if result.verdict == tables.WRONG]
    if wrong:
        print(f"error: {len(wrong)} rows do not agree with their papers: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    scripts.run(main)
