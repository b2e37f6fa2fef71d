"""How a run is saved, and how it ends: finished, by a signal (SIGTERM, SIGUSR1, Ctrl-C), or because something failed."""

from __future__ import annotations

import contextlib
import math
import traceback
from pathlib import Path

import torch

from attn import console
from attn.config.schema import Config
from attn.errors import Interrupted, Preempted, TrainingStopped, UserError, as_user_errors
from attn.runs import checkpoint, directory, metrics, views
from attn.runs.checkpoint import BEST, LAST, PREVIOUS
from attn.runs.steps import STEPS
from attn.training.run import Run
from attn.training.state import Best


def save(run: Run, best: bool = False, final: bool = False) -> bool:
    """Writes pending steps and metrics, and the checkpoint if all its values are finite; returns whether it could.

    Args:
        run: on the first rank.
        best: it is the best so far.
        final: no later save follows, so a failure must not be ignored.

    Raises:
        TrainingStopped: a value is not finite, or the disk refuses and save_error=stop or the save is the final one.
    """
    state, last = run.state, run.directory / LAST
    run.log.flush()
    content = state.state_dict(run.cfg)
    bad = checkpoint.non_finite({key: content[key] or {} for key in ("model", "ema", "optimizer")})
    kept = f"{last} is the last good checkpoint" if last.exists() else "there is no good checkpoint yet"
    if bad is not None:
        raise TrainingStopped(f"step {state.step}: {bad} is not finite; not saved, {kept}")
    try:
        if state.rows:
            metrics.append_metrics(run.directory, state.rows)
            state.rows = []
            content["rows"] = []
        with console.told_if_slow(f"{last} to be written"):
            checkpoint.save(content, run.directory, best)
    except OSError as error:
        message = f"step {state.step}: the checkpoint cannot be written to {run.directory} ({error.strerror}); {kept}"
        if final or run.cfg.save_error == "stop":
            raise TrainingStopped(f"{message}; make room, then run the same command again") from None
        console.warn(f"{message}; training goes on (save_error=continue)")
        return False
    state.saved = state.step
    return True


def finish(cfg: Config, run_dir: Path, best: Best) -> None:
    """Makes the views of the metrics, marks the run as done, prints the best score and where the files are."""
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
            (run_dir / PREVIOUS).unlink(missing_ok=True)  # it protects against a fault in the next save, and there is none
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


def preempted(run: Run) -> Preempted:
    """Saves between two steps, where all ranks are, and returns the error that ends the run."""
    if run.ranks.first:
        save(run, final=True)
    with contextlib.suppress(RuntimeError):
        # torchrun ends the first rank as soon as another one leaves, and that would be before it has saved
        run.ranks.barrier()
    who = run.request.name or "a signal to another rank"
    kind = Interrupted if run.request.name == "SIGINT" else Preempted
    return kind(f"{who}: saved {run.directory / LAST} at step {run.state.step}; the same command continues")


def non_finite_step(run: Run, loss: float, norm: float, seen: list[int]) -> TrainingStopped:
    """The error that ends the run before the update, on all ranks alike.

    It names the step, the rank, and the images where the loss was not finite.

    Args:
        run: before the update of the step.
        loss: sum of this rank's losses.
        norm: of the gradient, over all ranks.
        seen: indices of this rank's images.
    """
    ranks, state, last = run.ranks, run.state, run.directory / LAST
    reports = ranks.gather(None if math.isfinite(loss) else f"rank {ranks.rank} has loss {loss}, images {seen[:64]}")
    where = "; ".join(r for r in reports if r is not None) or f"the norm of the gradient is {norm}"
    if state.skipped_in_row:
        where += f", and the {state.skipped_in_row} steps before it were skipped (max_skipped={run.cfg.max_skipped})"
    good = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
    advice = "continue with nonfinite=skip, or with a lower schedule.lr or a schedule.clip_grad and force=true"
    bad = next((found for found in ranks.gather(non_finite_image(run, seen)) if found is not None), None)
    if bad is not None:
        advice = f"{bad} is not finite after its transformation: repair or remove it, or correct data.mean and data.std"
    return TrainingStopped(f"step {state.step}: {where}; no update was made, {good}; {advice}")


def non_finite_image(run: Run, seen: list[int]) -> str | None:
    """The file, or the number, of the first of a step's images that holds a NaN or an infinity as the network sees it; None if none does."""
    epoch = run.state.step // run.data.steps_per_epoch
    for index in seen:
        try:
            image = run.data.dataset[epoch, index][0]
        except (UserError, OSError):  # it was readable a moment ago
            continue
        if not bool(torch.isfinite(image).all()):
            samples = getattr(run.data.dataset.dataset, "samples", None)
            return f"{samples[index][0]} (image {index})" if samples else f"image {index}"
    return None


def rescued(run: Run, error: Exception) -> TrainingStopped:
    """Saves the state after the last whole step when this rank or another failed, and returns the error that ends the run.

    It names the step, the rank that failed, and the checkpoint to continue from. It uses no collective: the other ranks
    may be gone.
    """
    ranks, state, last = run.ranks, run.state, run.directory / LAST
    run.log.flush()
    if isinstance(error, TrainingStopped):  # decided here, with nothing to keep
        ranks.announce(str(error))
        return error
    peer_is_gone = ranks.world > 1 and is_of_a_collective(error)
    if not isinstance(error, UserError) and not peer_is_gone:
        traceback.print_exception(error)
    own = str(error) or type(error).__name__
    if not peer_is_gone:
        ranks.announce(own)
    kept = f"{last} holds step {state.saved}" if last.exists() else "there is no checkpoint yet"
    if ranks.first and state.step > state.saved and state.phase != "update":
        try:
            state.undo_step()
            save(run, final=True)
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
    return TrainingStopped(message)


def is_of_a_collective(error: Exception) -> bool:
    """Whether an error means a lost connection or an expired timeout between ranks."""
    words = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "tcpstore", "process group")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
