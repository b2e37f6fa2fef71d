"""Ranks: who this process is, the few collectives that training needs, and who is missing when one of them fails."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from attn import console
from attn.errors import UserError, as_user_errors, reason


@dataclass(frozen=True)
class Ranks:
    """This process among all of them, and the device that it computes on.

    `store` is the key-value store of the rendezvous; it still works when collectives fail because a rank is gone. `watch` says
    when the others are waited for.
    """

    rank: int
    world: int
    device: torch.device
    store: dist.Store | None = None
    watch: console.Watch = field(default_factory=console.Watch, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def waiting(self, what: str = "the other ranks") -> contextlib.AbstractContextManager[None]:
        """Around a collective: the first rank says it if the other ranks let it wait long."""
        return self.watch.waiting(what) if self.world > 1 else contextlib.nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place, on this rank's device."""
        if self.world > 1:
            with self.waiting():
                dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """One object of every rank, in their order."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        with self.waiting():
            dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        if self.world > 1:
            with self.waiting():
                dist.barrier()

    def announce(self, failure: str) -> None:
        """Tells the other ranks what failed on this one, which may then exit."""
        if self.store is not None:
            with contextlib.suppress(RuntimeError):  # the process that holds the store may be gone
                self.store.set(f"failure/{self.rank}", failure)

    def collect_failures(self, patience: float = 5.0) -> str:
        """Which ranks failed, and how; for a rank whose collective failed because another rank is gone.

        Args:
            patience: seconds to wait for the other ranks to answer.

        Returns:
            What other ranks passed to `announce`, and the ranks that do not answer.
        """
        assert self.store is not None
        told = {self.rank: ""}
        with contextlib.suppress(RuntimeError):
            self.store.set_timeout(timedelta(seconds=patience))
            self.store.set(f"failure/{self.rank}", "")
            end = time.monotonic() + patience
            while len(told) < self.world and time.monotonic() < end:
                for rank in range(self.world):
                    if rank not in told and self.store.check([f"failure/{rank}"]):
                        told[rank] = self.store.get(f"failure/{rank}").decode()
                time.sleep(0.05)
        causes = [f"rank {rank}: {text}" for rank, text in sorted(told.items()) if text]
        silent = [str(rank) for rank in range(self.world) if rank not in told]
        if silent:
            causes.append(f"rank {', '.join(silent)} ended, or does not answer")
        return "; ".join(causes) or "the connection between the ranks broke, though all answer"


@contextlib.contextmanager
def fail_together(ranks: Ranks) -> Iterator[None]:
    """If one rank raises a UserError, ValueError or OSError inside, all ranks raise a UserError with its message."""
    failure: UserError | None = None
    try:
        with as_user_errors():
            yield
    except UserError as error:
        failure = error
    messages = ranks.gather(None if failure is None else str(failure))
    failed = [(rank, message) for rank, message in enumerate(messages) if message is not None]
    if failed:
        rank, message = failed[0]
        raise failure or UserError(f"rank {rank}: {message}")


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device by its config name: auto, cpu or cuda.

    Raises:
        UserError: CUDA is asked for and absent, or there are fewer GPUs than ranks.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no CUDA device here; use device=cpu or device=auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"rank {local_rank} of this node has no GPU of its own ({torch.cuda.device_count()} here): "
            "start as many processes as there are GPUs (torchrun --nproc-per-node)"
        )
    return torch.device("cuda", local_rank)


def _environment(name: str, default: int, least: int = 0, most: int | None = None) -> int:
    """An integer that the launcher sets."""
    text = os.environ.get(name, "").strip() or str(default)
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        between = f"an integer, {least} or more" if most is None else f"an integer between {least} and {most}"
        raise UserError(f"{name}={text} in the environment: must be {between}; torchrun sets it, else unset it")
    return int(text)


_LAUNCHES = itertools.count()  # a sweep launches several runs in one process, one after the other


@contextlib.contextmanager
def launch(device: str, timeout: float) -> Iterator[Ranks]:
    """Joins the process group that torchrun announces (gloo on the CPU, NCCL on GPUs), and leaves it at the end.

    Args:
        device: auto, cpu or cuda.
        timeout: seconds to wait for a rank that does not answer.

    Raises:
        UserError: the launcher's environment makes no sense, or the ranks do not find each other in time.
    """
    world = _environment("WORLD_SIZE", 1, least=1)
    rank = _environment("RANK", 0, most=world - 1)
    where = pick_device(device, _environment("LOCAL_RANK", 0))
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world == 1:
        yield Ranks(0, 1, where)
        return
    limit = timedelta(seconds=timeout)
    address, port = os.environ.get("MASTER_ADDR"), _environment("MASTER_PORT", 0, most=65535)
    if not address or not port:
        raise UserError(
            f"WORLD_SIZE={world}, but {'MASTER_PORT' if address else 'MASTER_ADDR'} is not set: start ranks by torchrun, or "
            "unset WORLD_SIZE"
        )
    try:
        with console.told_if_slow(f"the {world} ranks to meet at {address}:{port}"):
            store, rank, world = next(dist.rendezvous("env://", rank, world, timeout=limit))
            store.set_timeout(limit)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"rank {rank} of {world} does not find the others at {address}:{port} (MASTER_ADDR, MASTER_PORT): "
            f"{reason(error).partition(' Exception raised')[0]}"
        ) from None
    # torchrun keeps its store when it restarts the ranks: without a prefix of their own, they would read the keys of the
    # dead ones. Several nodes do not count restarts in the same way; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is needed.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" else ""
    store = dist.PrefixStore(f"attempt{attempt}/launch{next(_LAUNCHES)}", store)
    backend = "nccl" if where.type == "cuda" else "gloo"
    try:
        with console.told_if_slow(f"all {world} ranks to join"):
            dist.init_process_group(
                backend, store=dist.PrefixStore("group", store), rank=rank, world_size=world, timeout=limit
            )
    except RuntimeError as error:
        cause = reason(error).partition(" Exception raised")[0]
        raise UserError(f"rank {rank}: not all of the {world} ranks came within {timeout:g} s: {cause}") from None
    # DDP's reducer holds the group too. If it freed the group last, gloo's threads would be joined while Python's lock is
    # held, and one of them may wait for that lock to free a tensor: about 1 run in 50 hung at its very end. So the group is
    # never freed.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
    ranks = Ranks(rank, world, where, dist.PrefixStore("attn", store))
    try:
        yield ranks
    finally:
        ranks.watch.close()
        dist.destroy_process_group()
