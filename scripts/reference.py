"""Writes docs/keys.md, the reference of all keys: `python scripts/reference.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from attn.config import reference, scripts

PAGE = Path(__file__).resolve().parent.parent / "docs" / "keys.md"


def main() -> int:
    """Writes the page; with --check only says whether it is up to date."""
    parser = scripts.Parser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; the exit status is 1 if the page is out of date"
    )
    options = parser.parse_args()
    text = reference.markdown()
    if not options.check:
        PAGE.write_text(text)
        print(f"wrote {PAGE}")
    elif not PAGE.exists() or PAGE.read_text() != text:
        print(f"error: {PAGE} is out of date: run python scripts/reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    scripts.run(main)
