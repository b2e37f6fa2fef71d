"""Weights & Biases as a mirror of `metrics.jsonl`."""

from __future__ import annotations

import json
import netrc
import os
import queue
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from attn.config.parse import to_dict
from attn.config.schema import Config
from attn.console import warn
from attn.runs import files, metrics

SYNC = "wandb sync {}/wandb/*run-*"


class Wandb:
    """Mirrors metrics.jsonl to Weights & Biases in a thread of its own: a stalled or broken service never delays training.

    The mode is decided once, before anything is sent: `logger.wandb_mode`, else WANDB_MODE, else online. Online without a
    key, or without a connection to the server, becomes offline. The first failure is reported in one line, then the mirror
    is off.

    `wandb.json` in the run's directory keeps the id, so that a continued run is the same run there. Rows that a
    killed process gave to wandb may never have been sent. Online the service is asked for its last step and gets the rows
    after it; offline each process writes its own folder with all rows, so that the newest folder is complete.
    """

    STATE = "wandb.json"

    def __init__(self, cfg: Config, run_dir: Path) -> None:
        self._cfg, self._run_dir = cfg, run_dir
        self._run: Any = None
        self._id, self._step = "", 0
        self._off = False
        self._pending: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pending.put(self._start)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def update(self) -> None:
        """Sends the rows of metrics.jsonl that were not sent yet; returns at once."""
        self._pending.put(self._send)

    def finish(self, patience: float = 60.0) -> None:
        """Waits up to `patience` seconds for what is pending."""
        self._pending.put(self._send)
        self._pending.put(self._end)
        self._thread.join(patience)
        if self._thread.is_alive():
            warn(
                f"Weights & Biases does not answer; `{SYNC.format(self._run_dir)}` sends the rest later, "
                "metrics.jsonl is whole"
            )

    def _start(self) -> None:
        import wandb

        path = self._run_dir / self.STATE
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"id": "", "step": 0}
        started_again = not metrics.read_metrics(self._run_dir) and known["step"] > 0
        if not known["id"] or started_again:
            known = {"id": uuid.uuid4().hex[:8], "step": 0}
        self._id = known["id"]
        self._remember(known["step"])
        mode: Any = wandb_mode(self._cfg.logger.wandb_mode or os.environ.get("WANDB_MODE") or None, self._run_dir)
        self._run = wandb.init(
            project=self._cfg.logger.wandb_project,
            name=str(self._run_dir),
            id=self._id,
            resume=None if mode == "offline" else "allow",
            dir=str(self._run_dir),
            mode=mode,
            config=to_dict(self._cfg),
            settings=wandb.Settings(init_timeout=30, silent=True),
        )
        self._step = self._run.step - 1 if mode == "online" else 0
        self._send()

    def _send(self) -> None:
        for row in metrics.read_metrics(self._run_dir):
            if row["step"] > self._step:
                self._run.log(row, step=row["step"])
                self._step = row["step"]
                self._remember(self._step)

    def _remember(self, step: int) -> None:
        """Saves the id and the last step sent; if the folder was emptied since, another run begins."""
        files.write_atomically(self._run_dir / self.STATE, files.to_json({"id": self._id, "step": step}))

    def _end(self) -> None:
        self._run.finish()
        self._off = True

    def _work(self) -> None:
        while not self._off:
            job = self._pending.get()
            try:
                job()
            except (Exception, SystemExit) as error:  # a mirror may fail in any way, and must not end the run
                warn(f"Weights & Biases is off: {' '.join(str(error).split())[:300] or type(error).__name__}")
                self._off = True


def wandb_mode(asked: str | None, run_dir: Path) -> str:
    """The mode that will work: `asked`, or offline, with a warning that says why, where the server cannot be used."""
    if asked not in (None, "online"):
        return str(asked)
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    reason = None
    if not os.environ.get("WANDB_API_KEY") and not _has_netrc_entry(server.hostname or ""):
        reason = "no key (run `wandb login`)"
    else:
        proxy = getproxies().get(server.scheme)
        door = urlsplit(proxy) if proxy else server
        host, port = door.hostname or "", door.port or (443 if door.scheme == "https" else 80)
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            reason = f"{host}:{port} cannot be reached ({error})"
    if reason is None:
        return "online"
    warn(
        f"Weights & Biases is offline: {reason}; its files are in {run_dir}/wandb, `{SYNC.format(run_dir)}` sends them later"
    )
    return "offline"


def _has_netrc_entry(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
