"""SIGTERM, SIGUSR1 (SLURM) and Ctrl-C ask a run to end at the next step."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class StopRequest:
    """While entered, remembers the first SIGTERM or SIGUSR1 instead of dying; after `hold_interrupt` SIGINT (Ctrl-C) too.

    `name` is the signal's name, or None as long as there was none. A second signal changes nothing: the checkpoint that is
    being written is finished.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def hold_interrupt(self) -> None:
        """From here on SIGINT is remembered too, because there is something to save; if ignored (nohup), it stays so."""
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._remember)

    def requested(self) -> bool:
        """Whether there was a signal."""
        return self.name is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.name is None and number == signal.SIGINT:
            os.write(2, b"\nSIGINT: saving after this step\n")  # print may be what was interrupted
        self.name = self.name or signal.Signals(number).name
