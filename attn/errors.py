"""Errors that a user can mend: the message is the whole story, no traceback is needed."""

from __future__ import annotations

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


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Turns what bad input raises while a run is being prepared into a `UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
