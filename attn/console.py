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
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

LOGGER = logging.getLogger("attn")


class Terminal(logging.Handler):
    """Prints messages as plain lines: warnings to stderr, after the word `warning`, all others to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        stream = sys.stderr if warning else sys.stdout
        try:
            print(f"warning: {record.getMessage()}" if warning else record.getMessage(), file=stream, flush=True)
        except BrokenPipeError:  # the reader has seen enough, as in `| head`; the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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


class Watch:
    """Says what is being waited for when a wait takes long, for loops that wait often: one thread watches all of their
    waits.

    Only the first rank says it. Close it to end the thread.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._waits: tuple[float, str] | None = None  # since when, and for what
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """While entered, `what` is waited for; it is said once if it takes longer than `seconds`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        before = self._waits
        self._waits = (time.monotonic(), what)
        try:
            yield
        finally:
            self._waits = before

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()

    def _run(self) -> None:
        told = None
        while not self._closed.wait(self.seconds / 10):
            now = self._waits
            if now is not None and now is not told and time.monotonic() - now[0] > self.seconds:
                told = now
                if os.environ.get("RANK", "0") == "0":
                    say(f"still waiting for {now[1]}")


@contextlib.contextmanager
def told_if_slow(what: str, seconds: float = 10.0) -> Iterator[None]:
    """Says once what is being waited for, if it takes longer than `seconds`; for a single wait, as `Watch` is for many."""
    with contextlib.closing(Watch(seconds)) as watch, watch.waiting(what):
        yield
