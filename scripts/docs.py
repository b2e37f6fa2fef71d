"""Writes the sources of the documentation site.

    python scripts/docs.py [OUT]
    mkdocs build --strict -f OUT/mkdocs.yml

`make docs` does both. The pages in docs/ are copied; what follows from the code, the configs and the tables (a page per
attention, the backbones, the recipes with their curves) is generated beside them. OUT is build/ by default, and is replaced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pages import site

from attn.config import scripts
from attn.errors import as_user_errors

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = scripts.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "build", help="directory to write to (default: build)")
    out = parser.parse_args().out
    with as_user_errors():
        number = site.write(ROOT, out)
    print(f"wrote {number} pages; build them with: mkdocs build --strict -f {out / 'mkdocs.yml'}")
    return 0


if __name__ == "__main__":
    scripts.run(main)
