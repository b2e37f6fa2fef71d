"""The command lines of `scripts/`: options by argparse, and one line for every mistake in them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from attn.errors import UserError, is_out_of_memory, reason


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose answer to a mistake is one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line and code 2."""
        raise UserError(f"{message}; {self.prog} --help lists the options")


def not_negative(text: str) -> int:
    """An integer, 0 or more, as a `type` of argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer, 0 or more")
    return int(text)


def positive(text: str) -> int:
    """An integer above 0, as a `type` of argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer greater than 0")
    return int(text)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Calls a script's function and ends the process with its exit code.

    A `UserError` becomes one line on stderr; Ctrl-C ends with 130; a reader that closes the pipe, as `head` does, is no error.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        code = _said(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _said("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        code = _said(f"there is not enough memory for it ({reason(error)})", UserError.exit_code)
    sys.exit(code)


def _said(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
