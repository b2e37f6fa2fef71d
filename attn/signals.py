"""Preemption: SIGTERM and SIGUSR1 (SLURM) ask a run to end at the next step."""

from __future__ import annotations

import multiprocessing
import os
import signal
from types import FrameType
from typing import Any


class StopRequest:
    """While entered, remembers the first SIGTERM or SIGUSR1 instead of dying by it.

    `name` is the signal's name, or None as long as there was none. A second signal changes nothing: the checkpoint under way
    is finished.
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

    def requested(self) -> bool:
        return self.name is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name


PATIENCE = 20  # seconds; torchrun and SLURM kill 30 seconds after SIGTERM


def outlive_signals(_worker: int) -> None:
    """For loader processes: torchrun, SLURM and terminals signal whole groups, but the main process decides.

    A worker that died by the signal would end the step under way by an error. After SIGTERM it stays for `PATIENCE` seconds,
    since that is also how a parent ends a worker that is stuck.

    A worker whose parent was killed before it came here ends: torch's watch over the parent, which begins behind this, would take
    the process that it fell to for its parent, and the worker would stay for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and multiprocessing.get_start_method() != "forkserver" and os.getppid() != parent.pid:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)


def _leave_later(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    signal.alarm(PATIENCE)
