"""Loader processes: what they do on signals and when their parent dies."""

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

    If a worker died from the signal, the current step would fail. After SIGTERM it lives for another `PATIENCE` seconds and
    then ends, because a parent also uses SIGTERM to end a worker that hangs.

    A worker whose parent was killed before this call ends at once: torch starts to watch the parent after this call and
    would watch the process that adopted the worker instead, so the worker would never end.
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
