"""Errors that a user can fix: the message says everything, no traceback is needed."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something outside the program is wrong. `exit_code` is what the process returns."""

    exit_code = 2


class TrainingStopped(UserError):
    """The run stopped itself: non-finite values, or a checkpoint that could not be kept."""

    exit_code = 3


class Preempted(UserError):
    """A signal asked the run to end; a checkpoint was saved. 75 is EX_TEMPFAIL: run the same command again."""

    exit_code = 75


class Interrupted(Preempted):
    """Ctrl-C asked the run to end; a checkpoint was saved. 130 is what shells give to a process that ends by SIGINT."""

    exit_code = 130


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Turns what bad input raises while a run is being prepared into a `UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def reason(error: BaseException) -> str:
    """The message of another library's error in one line, without colours; for an assertion without a message, its condition."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    if isinstance(error, AssertionError) and not text:
        frames = traceback.extract_tb(error.__traceback__)
        return f"it expects {(frames[-1].line or '').removeprefix('assert ')}" if frames else "an assertion failed"
    if isinstance(error, (KeyError, IndexError, AttributeError, ZeroDivisionError)) or not text:
        return f"{type(error).__name__} {text}".strip()
    return text


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that this machine or GPU ran out of memory."""
    words = ("not enough memory", "can't allocate memory", "out of memory", "cannot allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError)) and any(word in str(error).lower() for word in words)
    )
