"""Scripts of the repository as processes of their own, forked from a server that has imported torch, timm and Hydra.

Importing them takes a fresh process about five seconds of CPU time, a forked one none. Each is like a process that a user
starts: its own session, output, environment and exit code. Only what is about starting (torchrun, imports, the wheel) needs
fresh processes.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PRELOADED = [
    "attn.training.loop",
    "attn.evaluation.job",
    "attn.config.command_line",
    "sklearn.datasets",
    "matplotlib.figure",
]


def context() -> Any:
    """The context whose processes are forked from the server; it starts with the first of them."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(PRELOADED)
    return forkserver


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launcher_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets for a rank; nothing for a single one."""
    if world == 1:
        return {}
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in values.items()} | {"TORCHELASTIC_RUN_ID": "forked"}


def become_a_users_process(stdout: Path, stderr: Path) -> None:
    """For a forked process: a session of its own, fork for loader processes, Ctrl-C that interrupts, output to files."""
    multiprocessing.set_start_method("fork", force=True)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)


def run(
    arguments: Sequence[str], ranks: int, timeout: float, env: Mapping[str, str], cwd: Path
) -> subprocess.CompletedProcess:
    """Runs a script on so many ranks; returns the highest exit code and the outputs of all ranks, in their order.

    Raises:
        subprocess.TimeoutExpired: a rank did not end within `timeout` seconds; all are killed.
    """
    folder, port, end = Path(tempfile.mkdtemp(prefix="forked-")), free_port(), time.monotonic() + timeout
    outputs = [(folder / f"{rank}.out", folder / f"{rank}.err") for rank in range(ranks)]
    environments = [{**env, **launcher_environment(rank, ranks, port)} for rank in range(ranks)]
    processes = [
        context().Process(target=_script, args=(list(arguments), own, cwd, *paths))
        for own, paths in zip(environments, outputs, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    stdout, stderr = ("".join(path.read_text() for path in paths if path.exists()) for paths in zip(*outputs, strict=True))
    if alive:
        raise subprocess.TimeoutExpired(list(arguments), timeout, stdout, stderr)
    code = max((process.exitcode for process in processes), key=abs)
    return subprocess.CompletedProcess(list(arguments), code, stdout, stderr)


def _script(arguments: list[str], env: dict[str, str], cwd: Path, stdout: Path, stderr: Path) -> None:
    become_a_users_process(stdout, stderr)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None
    os.chdir(cwd)
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [str(Path(arguments[0]).resolve().parent), *paths]
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
