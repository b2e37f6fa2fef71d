"""A run's directory: one owner at a time, and everything that is needed to resume, evaluate and plot it.

config.yaml     the composed config of the last start
metrics.jsonl   one line per epoch: the truth
last.pt previous.pt best.pt
DONE            the run is finished
lock            who writes here
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from attn.config.parse import flatten, to_dict
from attn.config.schema import Config
from attn.errors import UserError
from attn.runs.files import write_atomically

DONE, LOCK, CONFIG = "DONE", "lock", "config.yaml"


# What may differ when a run is continued: none of it changes what is computed from finite values and readable images, up to
# the rounding of another device.
FREE = {
    "run_dir",
    "resume",
    "force",
    "device",
    "channels_last",
    "compile",
    "grad_checkpointing",
    "deterministic",
    "nonfinite",
    "max_skipped",
    "dist_timeout",
    "log_every",
}


FREE |= {"save_every_steps", "save_every_minutes", "save_error", "pretrained", "init", "attention_name"}


FREE |= {"data.root", "data.workers", "data.name", "data.on_error", "schedule.name"}


@contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Creates the directory and keeps other processes out of it while this one lives.

    Raises:
        UserError: it cannot be written, or another process has it; the message names host and process.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"run_dir={run_dir} cannot be written: {error.strerror}; choose another run_dir=") from None
    try:
        try:
            # Not flock: loader processes would inherit it, and hold it after their killed parent.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"run_dir={run_dir} cannot be locked: {error.strerror}; use a file system with locks"
                ) from None
            owner = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"run_dir={run_dir} is in use by {owner}: wait for it to end, stop it, or choose another run_dir="
            ) from None
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            for unfinished in run_dir.glob("*.tmp"):  # of a process that was killed while it wrote
                unfinished.unlink()
        except OSError as error:
            raise UserError(f"run_dir={run_dir} cannot be written: {error.strerror}; choose another run_dir=") from None
        yield
    finally:
        os.close(handle)


def differences(old: Config, new: Config) -> list[str]:
    """Keys whose values differ and change the result, as `key: old -> new`.

    `schedule.epochs` is one of them only if the learning rate of the epochs before depends on it.
    """
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    free = FREE if new.schedule.curve == "cosine" else FREE | {"schedule.epochs"}
    keys = [k for k in {**before, **after} if k not in free and not k.startswith("logger.")]
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def write_config(run_dir: Path, cfg: Config) -> None:
    write_atomically(run_dir / CONFIG, OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg) | {"resume": "auto"})))
