"""Speed and memory beside a baseline, measured side by side: `python scripts/benchmark.py step --threads 2`.

Contenders take turns. Each measurement is a pair, a contender and the first one next to each other in changing order; a pair in
which other processes used the machine is dropped. Reported are medians and quartiles of the pairs' ratios. What is measured is
one file each in `scripts/benchmarks`; `python scripts/benchmark.py WHAT --help` shows its options.
"""

from __future__ import annotations

import argparse
from importlib import import_module

from attn.config import scripts
from attn.errors import as_user_errors
from attn.runs.outputs import expect_older, expect_picture

COMMANDS = ("step", "module", "loop", "input", "inference", "startup")


def main() -> int:
    parser = scripts.Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True, metavar="|".join(COMMANDS))
    for name in COMMANDS:
        module = import_module(f"benchmarks.{name}")
        command = commands.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawTextHelpFormatter,
        )
        module.add_options(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args()
    if getattr(options, "json", None):
        expect_older(options.json, "--json ", "{", "JSON file")
    if getattr(options, "picture", None):
        expect_picture(options.picture)
    with as_user_errors():
        return options.run(options)


if __name__ == "__main__":
    scripts.run(main)
