"""What a run says on the terminal.

All of it goes through the logger `attn`: `logging.getLogger("attn").setLevel("WARNING")` silences progress, and a handler of
your own in place of `Terminal` sends it elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

LOGGER = logging.getLogger("attn")


class Terminal(logging.Handler):
    """Prints messages as plain lines: warnings to stderr, after the word `warning`, all others to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(f"warning: {record.getMessage()}", file=sys.stderr, flush=True)
        else:
            print(record.getMessage(), flush=True)


if not LOGGER.handlers:
    LOGGER.addHandler(Terminal())
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def say(text: str) -> None:
    """A line on the terminal, at once."""
    LOGGER.info("%s", text)


def warn(text: str) -> None:
    """A line on stderr, at once."""
    LOGGER.warning("%s", text)


def bar(items: Iterable[Item], what: str, total: int | None = None, delay: float = 2.0) -> Iterable[Item]:
    """The items, with a progress bar on the first rank's terminal if they take longer than `delay` seconds."""
    shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
    return tqdm(items, what, total, leave=False, delay=delay, disable=not shown)


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
