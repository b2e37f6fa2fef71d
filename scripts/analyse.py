"""Draws what attention does: `python scripts/analyse.py KIND checkpoint=A [checkpoint=B ...] [data=NAME] [key=value ...]`.

Writes a picture (PNG and SVG) and the numbers in it (CSV). `--help` lists the kinds, `KIND --help` the keys of one; docs/analysis.md
shows them all.
"""

from __future__ import annotations

import contextlib
import sys

from attn.config import analysis, command_line
from attn.errors import UserError


def main() -> int:
    arguments = sys.argv[1:]
    asks = [a for a in arguments if a in ("-h", "--help")]
    if asks or not arguments:
        kind = next((a for a in arguments if a in analysis.KINDS), None)
        with contextlib.suppress(BrokenPipeError):  # the reader may have seen enough, as in `| head`
            print(analysis.help_text(kind), flush=True)
        return 0 if asks else UserError.exit_code
    with command_line.one_line_errors():
        kind, options = analysis.read(arguments)
        from attn.analysis import command  # torch, timm and matplotlib take seconds to import

        command.run(kind, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
