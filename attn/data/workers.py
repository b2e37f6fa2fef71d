"""Loader processes: how they meet signals and the death of their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
from types import FrameType

PATIENCE = 20  # seconds; torchrun and SLURM kill 30 seconds after SIGTERM


def worker_count(asked: int | None) -> int:
    """Loader processes of this rank: what was asked for, or one per processor core that the rank has, at most 4."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, min(4, cores // (int(ranks) if ranks.isdecimal() and int(ranks) else 1)))


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
