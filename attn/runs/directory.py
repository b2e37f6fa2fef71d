"""A run's directory: one owner at a time, and everything that is needed to resume, evaluate and plot it.

config.yaml     the composed config of the last start
metrics.jsonl   one line per epoch: the record of the run
steps.jsonl     one line per step
starts.jsonl    one line per process that trained here: command, versions, hardware
last.pt previous.pt best.pt
DONE            the run is finished
lock            host and process that write here
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import OmegaConf

from attn.config.parse import flatten, to_dict
from attn.config.run_name import MAY_DIFFER_ON_RESUME as MAY_DIFFER_ON_RESUME
from attn.config.schema import Config
from attn.errors import UserError
from attn.models.defaults import without_defaults
from attn.runs.files import write_atomically

DONE, LOCK, CONFIG = "DONE", "lock", "config.yaml"


@contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Creates the directory and locks it for this process until the context ends.

    If the work fails before it has written anything, the lock is removed again, and so are the folders that were created for it.

    Raises:
        UserError: it cannot be written, or another process holds the lock; the message names host and process.
    """
    created = [folder for folder in (run_dir, *run_dir.parents) if not os.path.exists(folder)]
    if not created and os.path.exists(run_dir / LOCK):
        created = [run_dir]  # by an earlier one
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        why = "a file is there" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"run_dir={run_dir} cannot be written: {why}; choose another run_dir=") from None
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
        try:
            yield
        except BaseException:
            if os.listdir(run_dir) == [LOCK]:
                (run_dir / LOCK).unlink()
                with suppress(OSError):  # another run is there by now
                    for folder in created:
                        folder.rmdir()
            raise
    finally:
        os.close(handle)


def differences(old: Config, new: Config) -> list[str]:
    """Keys whose values differ and change the result, as `key: old -> new`.

    `schedule.epochs` is one of them only if the learning rate of the earlier epochs depends on it. An option of the backbone
    or the attention that one config lacks counts as its default.
    """
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    was, now = (flatten(to_dict(cfg) | without_defaults(cfg.backbone, cfg.attention)) for cfg in (old, new))
    free = MAY_DIFFER_ON_RESUME if new.schedule.curve == "cosine" else MAY_DIFFER_ON_RESUME | {"schedule.epochs"}
    keys = [k for k in {**before, **after} if k not in free and not k.startswith("logger.")]
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if was.get(k) != now.get(k)]


def write_config(run_dir: Path, cfg: Config) -> None:
    write_atomically(run_dir / CONFIG, OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg) | {"resume": "auto"})))
