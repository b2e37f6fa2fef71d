"""What a run says on the terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator


def say(text: str) -> None:
    """A line on the console, at once."""
    print(text, flush=True)


def warn(text: str) -> None:
    """A warning on standard error, at once."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def told_if_slow(what: str, seconds: float = 10.0) -> Iterator[None]:
    """Prints once what is being waited for, if it takes longer than `seconds`."""
    timer = threading.Timer(seconds, lambda: say(f"still waiting for {what}"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
