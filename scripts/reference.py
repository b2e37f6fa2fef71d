"""Writes docs/keys.md, the reference of all keys: `python scripts/reference.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from attn.config import reference

PAGE = Path(__file__).resolve().parent.parent / "docs" / "keys.md"


def main(arguments: list[str]) -> int:
    """Writes the page; with --check only says whether it is up to date."""
    if arguments not in ([], ["--check"]):
        print(f"error: {' '.join(arguments)}: the only option is --check", file=sys.stderr)
        return 2
    text = reference.markdown()
    if arguments:
        if PAGE.read_text() == text:
            return 0
        print(f"error: {PAGE} is out of date: run python scripts/reference.py", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
