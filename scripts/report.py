"""One self-contained page of many runs: `python scripts/report.py runs [out=report.html] [figures=FOLDER]`.

Every finished run below the given folders is in it: a table over seeds, a verdict for each pair of methods, learning curves,
the papers' printed values, pictures that lie beside the runs or in the folder of figures=, configs, and the commands to
repeat all of it. What is left out is named. docs/report.md says how to read it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from attn import console
from attn.config import scripts
from attn.errors import UserError
from attn.runs.files import write_atomically
from attn.runs.outputs import expect_older

KEYS = ("out", "figures", "trust")


def parse(arguments: list[str]) -> tuple[list[Path], dict[str, str]]:
    """The folders, and the keys that are set.

    Raises:
        UserError: an unknown key, or no folder.
    """
    parser = scripts.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUNS", help="folders with runs in or below them, such as runs")
    parser.add_argument("out", nargs="?", metavar="out=report.html", help="the page; an older page is replaced")
    parser.add_argument(
        "figures", nargs="?", metavar="figures=FOLDER", help="also show all PNG and SVG pictures of this folder"
    )
    parser.add_argument(
        "trust", nargs="?", metavar="trust=[MODULE]", help="modules of your own that runs may name; they are imported"
    )
    if {"-h", "--help"} & set(arguments):
        parser.parse_args(["--help"])
    folders: list[Path] = []
    keys: dict[str, str] = {}
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if sign and key in KEYS:
            keys[key] = value
        elif argument.startswith("-") or (sign and key.isidentifier() and not Path(argument).exists()):
            raise UserError(f"unknown argument {argument!r}: name folders with runs, and {', '.join(f'{k}=' for k in KEYS)}")
        else:
            folders.append(Path(argument).expanduser())
    if not folders:
        raise UserError("no folder is named, as in scripts/report.py runs")
    for key, value in keys.items():
        if not value:
            raise UserError(f"{key}= is empty")
    return folders, keys


def main() -> int:
    try:
        folders, keys = parse(sys.argv[1:])
        out = Path(keys.get("out", "report.html")).expanduser()
        older = expect_older(out, "out=", "<!doctype html>", "HTML page")
        missing = [folder for folder in folders if not folder.is_dir()]
        if missing:
            raise UserError(f"{missing[0]}: no such folder")
        figures = Path(keys["figures"]).expanduser() if "figures" in keys else None
        trust = [name.strip() for name in keys.get("trust", "").strip("[]").split(",") if name.strip()]
        from attn.report.page import report  # imports torch, for which a wrong folder need not wait

        page, left_out = report(folders, figures, trust, sys.argv[1:])
        for line in left_out:
            console.warn(line)
        write_atomically(out, page)
        print(f"{'replaced' if older else 'saved'} {out} ({len(page.encode()) / 1e6:.2f} MB)")
    except BrokenPipeError:
        raise  # a reader that closes the pipe is no error: `scripts.run`
    except OSError as error:
        raise UserError(str(error)) from error
    return 0


if __name__ == "__main__":
    scripts.run(main)
