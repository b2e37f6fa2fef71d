"""What a run says on the terminal."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """A line on the console, at once."""
    print(text, flush=True)


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
