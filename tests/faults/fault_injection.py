"""Faults that a test puts into a rank: each is called in the rank's process, before the run begins."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch

from attn.data import loader
from attn.evaluation import evaluate
from attn.runs import checkpoint
from attn.training import epoch, loop, state

SIGKILL = int(signal.SIGKILL)


def _wrap(owner: Any, name: str, before: Callable[..., None]) -> None:
    """Calls `before` with the arguments of a function before each of its calls."""
    original = getattr(owner, name)

    @wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _raise_signal(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)  # the handler runs in the main thread, which is this one


def signal_in_step(step: int, number: int = SIGKILL) -> Callable[[], None]:
    """A signal in the middle of a step: after the gradients, before the update."""
    return partial(_signal_in_step, step, number)


def _signal_in_step(step: int, number: int) -> None:
    seen = {"step": -1}
    _wrap(state.State, "begin_step", lambda self: seen.update(step=self.step))
    _wrap(loop, "get_total_norm", lambda *_, **__: _raise_signal(number) if seen["step"] == step else None)


def signal_in_evaluation(nth: int, number: int = SIGKILL) -> Callable[[], None]:
    """A signal at the first batch of the n-th evaluation, counted from 1."""
    return partial(_signal_in_evaluation, nth, number)


def _signal_in_evaluation(nth: int, number: int) -> None:
    calls = {"evaluate": 0, "sent": 0}
    _wrap(epoch, "evaluate_unless", lambda *_, **__: calls.update(evaluate=calls["evaluate"] + 1))

    def at_batch(*_: Any, **__: Any) -> None:
        if calls["evaluate"] == nth and not calls["sent"]:
            calls["sent"] = 1
            _raise_signal(number)

    _wrap(evaluate, "to_device", at_batch)


def signal_in_save(nth: int, where: str, number: int = SIGKILL) -> Callable[[], None]:
    """A signal in the n-th save: `half` of the bytes written, before the `fsync`, the `link` or the `rename`, or `after`."""
    return partial(_signal_in_save, nth, where, number)


def _signal_in_save(nth: int, where: str, number: int) -> None:
    calls = {"save": 0}
    original = checkpoint.save

    def save(*args: Any, **kwargs: Any) -> None:
        calls["save"] += 1
        original(*args, **kwargs)
        if where == "after" and calls["save"] == nth:
            _raise_signal(number)

    def at(*_: Any, **__: Any) -> None:
        if calls["save"] == nth:
            _raise_signal(number)

    def half(content: dict[str, Any], file: Any) -> None:
        if calls["save"] == nth:
            file.write(b"x" * 50_000)
            file.flush()
            _raise_signal(number)
        write(content, file)

    checkpoint.save = save
    write = torch.save
    if where == "half":
        torch.save = half
    elif where == "fsync":
        _wrap(checkpoint.os, "fsync", at)
    elif where == "link":
        _wrap(checkpoint, "replace_by_link", at)
    elif where == "rename":
        _wrap(checkpoint.os, "replace", lambda source, target: at() if str(target).endswith("last.pt") else None)


def full_disk_in_save(first: int, last: int) -> Callable[[], None]:
    """From the n-th save to another, the file is /dev/full."""
    return partial(_full_disk_in_save, first, last)


def _full_disk_in_save(first: int, last: int) -> None:
    calls = {"save": 0}
    _wrap(checkpoint, "save", lambda *_, **__: calls.update(save=calls["save"] + 1))

    def open_(path: Any, mode: str) -> Any:
        return open("/dev/full" if first <= calls["save"] <= last else path, mode)

    checkpoint.open = open_  # type: ignore[attr-defined]


def nan_loss(step: int, times: int = 1) -> Callable[[], None]:
    """The images of a step, or of several, become NaN."""
    return partial(_nan_loss, step, times)


def first_scale(scale: float) -> Callable[[], None]:
    """The first scale of the fp16 scaler."""
    return partial(_first_scale, scale)


def _first_scale(scale: float) -> None:
    torch.amp.GradScaler = partial(torch.amp.GradScaler, init_scale=scale)  # type: ignore[assignment, misc]


def _nan_loss(step: int, times: int) -> None:
    original, seen = loop.to_device, {"step": -1}
    _wrap(state.State, "begin_step", lambda self: seen.update(step=self.step))

    def to_device(batch: Any, *args: Any) -> Any:
        batch = original(batch, *args)
        return batch._replace(images=batch.images * float("nan")) if step <= seen["step"] < step + times else batch

    loop.to_device = to_device


def leave_in_step(step: int, code: int) -> Callable[[], None]:
    """The process exits without a message, in the forward pass of a step."""
    return partial(_at_forward, step, partial(os._exit, code))


def stop_in_step(step: int) -> Callable[[], None]:
    """SIGSTOP in the forward pass of a step."""
    return partial(_at_forward, step, partial(_raise_signal, int(signal.SIGSTOP)))


def fail_in_step(step: int, text: str) -> Callable[[], None]:
    return partial(_at_forward, step, partial(_fail, text))


def _fail(text: str) -> None:
    raise RuntimeError(text)


def _at_forward(step: int, act: Callable[[], None]) -> None:
    seen = {"step": -1}
    _wrap(state.State, "begin_step", lambda self: seen.update(step=self.step))
    _wrap(loop, "forward", lambda *_: act() if seen["step"] == step else None)


def slow_steps(seconds: float) -> Callable[[], None]:
    return partial(_slow_steps, seconds)


def _slow_steps(seconds: float) -> None:
    _wrap(loop, "train_step", lambda *_: time.sleep(seconds))


def slow_evaluation(seconds: float) -> Callable[[], None]:
    return partial(_slow_evaluation, seconds)


def _slow_evaluation(seconds: float) -> None:
    _wrap(evaluate, "to_device", lambda *_: time.sleep(seconds))


def loader_process_dies(nth: int) -> Callable[[], None]:
    """A loader process of this rank ends at its n-th image, as one that the kernel ended for want of memory."""
    return partial(_loader_process_dies, nth)


def _loader_process_dies(nth: int) -> None:
    main, calls = os.getpid(), {"image": 0}

    def at_image(*_: Any) -> None:
        calls["image"] += 1
        if os.getpid() != main and calls["image"] == nth:
            os._exit(9)

    _wrap(loader.Seeded, "__getitem__", at_image)


def slow_finish(seconds: float) -> Callable[[], None]:
    return partial(_slow_finish, seconds)


def _slow_finish(seconds: float) -> None:
    _wrap(loop, "finish", lambda *_: time.sleep(seconds))
