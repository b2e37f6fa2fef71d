"""How a run keeps what it has, and how it ends: well, asked to (SIGTERM, SIGUSR1, Ctrl-C), or because something failed."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from attn import console
from attn.config.schema import Config
from attn.distributed import Ranks
from attn.errors import Interrupted, Preempted, TrainingStopped, UserError, as_user_errors
from attn.runs import checkpoint, directory, metrics, views
from attn.runs.checkpoint import BEST, LAST, PREVIOUS
from attn.runs.steps import STEPS
from attn.training.state import Best, State


def save(cfg: Config, run_dir: Path, state: State, best: bool = False, final: bool = False) -> bool:
    """Writes the pending metrics and the checkpoint, if all its values are finite; returns whether the disk took them.

    Args:
        best: it is the best so far.
        final: there is no later save that could make up for this one.

    Raises:
        TrainingStopped: a value is not finite, or the disk refuses and save_error=stop or the save is the final one.
    """
    content = state.state_dict(cfg)
    bad = checkpoint.non_finite({key: content[key] or {} for key in ("model", "ema", "optimizer")})
    last = run_dir / LAST
    kept = f"{last} is the last good checkpoint" if last.exists() else "there is no good checkpoint yet"
    if bad is not None:
        raise TrainingStopped(f"step {state.step}: {bad} is not finite; not saved, {kept}")
    try:
        if state.rows:
            metrics.append_metrics(run_dir, state.rows)
            state.rows = []
            content["rows"] = []
        checkpoint.save(content, run_dir, best)
    except OSError as error:
        message = f"step {state.step}: the checkpoint cannot be written to {run_dir} ({error.strerror}); {kept}"
        if final or cfg.save_error == "stop":
            raise TrainingStopped(f"{message}; make room, then run the same command again") from None
        console.warn(f"{message}; training goes on (save_error=continue)")
        return False
    state.saved = state.step
    return True


def finish(cfg: Config, run_dir: Path, best: Best) -> None:
    """Makes the views of the metrics, marks the run as done, says what was reached and where everything lies."""
    try:
        if cfg.logger.csv:
            views.write_csv(run_dir)
        if cfg.logger.plot:
            views.write_curves(run_dir)
    except OSError as error:
        console.warn(f"a view of the metrics cannot be written to {run_dir} ({error.strerror}); {metrics.METRICS} is whole")
    with as_user_errors():
        (run_dir / directory.DONE).touch()
        if (run_dir / LAST).exists():
            (run_dir / PREVIOUS).unlink(missing_ok=True)  # for a fault in the next save, which will not come
    by = "" if best.value is None else f", the best by {best.monitor} ({best.value:.4f})"
    console.say(
        f"best val top-1 {best.top1:.2f} % in epoch {best.epoch}"
        if not by
        else f"val top-1 {best.top1:.2f} % in epoch {best.epoch}{by}"
    )
    for what, name in (
        ("checkpoint", BEST),
        ("metrics", metrics.METRICS),
        ("steps", STEPS),
        ("table", "metrics.csv"),
        ("curves", "curves.png"),
    ):
        if (run_dir / name).exists():
            console.say(f"  {what:<11}{run_dir / name}")


def preempt(cfg: Config, run_dir: Path, ranks: Ranks, state: State, request: StopRequest) -> NoReturn:
    """Ends the run between two steps; all ranks are here."""
    if ranks.first:
        save(cfg, run_dir, state, final=True)
    with contextlib.suppress(RuntimeError):
        ranks.barrier()  # torchrun ends the first rank as soon as another one leaves, and that would be before it has saved
    who = request.name or "a signal to another rank"
    kind = Interrupted if request.name == "SIGINT" else Preempted
    raise kind(f"{who}: saved {run_dir / LAST} at step {state.step}; the same command continues")


def stop_non_finite(
    cfg: Config, run_dir: Path, ranks: Ranks, state: State, loss: float, norm: float, seen: list[int]
) -> NoReturn:
    """Ends the run before the update, on all ranks alike.

    Raises:
        TrainingStopped: names the step, the rank, and the images where the loss was not finite.
    """
    reports = ranks.gather(None if math.isfinite(loss) else f"rank {ranks.rank} has loss {loss}, images {seen[:64]}")
    where = "; ".join(r for r in reports if r is not None) or f"the norm of the gradient is {norm}"
    if state.skipped_in_row:
        where += f", and the {state.skipped_in_row} steps before it were skipped (max_skipped={cfg.max_skipped})"
    last = run_dir / LAST
    good = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
    advice = "continue with nonfinite=skip, or with a lower schedule.lr or a schedule.clip_grad and force=true"
    raise TrainingStopped(f"step {state.step}: {where}; no update was made, {good}; {advice}")


def rescue(cfg: Config, run_dir: Path, ranks: Ranks, state: State, error: Exception) -> NoReturn:
    """Ends the run when something failed on this rank or on another: keeps the last step boundary, and says what failed.

    There is no collective in it: the other ranks may be gone.

    Raises:
        TrainingStopped: names the step, the rank that failed, and the checkpoint to continue from.
    """
    if isinstance(error, TrainingStopped):  # decided here, with nothing to keep
        ranks.announce(str(error))
        raise error
    peer_is_gone = ranks.world > 1 and is_of_a_collective(error)
    if not isinstance(error, UserError) and not peer_is_gone:
        traceback.print_exception(error)
    own = str(error) or type(error).__name__
    if not peer_is_gone:
        ranks.announce(own)
    last = run_dir / LAST
    kept = f"{last} holds step {state.saved}" if last.exists() else "there is no checkpoint yet"
    if ranks.first and state.step > state.saved and state.phase != "update":
        try:
            state.undo_step()
            save(cfg, run_dir, state, final=True)
            kept = f"saved {last} at step {state.step}"
        except Exception as second:
            kept += f"; {second}"
    if peer_is_gone:
        own = ranks.collect_failures()
    elif ranks.world > 1:
        own = f"rank {ranks.rank}: {own}"
    message = f"step {state.step}: {own}; {kept}"
    if not ranks.first and not peer_is_gone:
        console.warn(message)  # the command line prints what the first rank says
    raise TrainingStopped(message) from None


def is_of_a_collective(error: Exception) -> bool:
    """Whether it tells of a lost connection or an expired timeout between ranks."""
    words = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "tcpstore", "process group")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


class StopRequest:
    """While entered, remembers the first SIGTERM or SIGUSR1 instead of dying by it; SIGINT (Ctrl-C) too after `hold_interrupt`.

    `name` is the signal's name, or None as long as there was none. A second signal changes nothing: the checkpoint under way
    is finished.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def hold_interrupt(self) -> None:
        """From here on there is something to save. Where SIGINT is ignored, as by nohup, it stays so."""
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._remember)

    def requested(self) -> bool:
        return self.name is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.name is None and number == signal.SIGINT:
            os.write(2, b"\nSIGINT: saving after this step\n")  # print may be what was interrupted
        self.name = self.name or signal.Signals(number).name
