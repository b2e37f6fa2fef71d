"""The end of an epoch: its scores, its line of metrics, its checkpoint."""

from __future__ import annotations

import time
from typing import Any

from attn import console
from attn.evaluation.evaluate import Settings, evaluate_unless
from attn.runs import views
from attn.training import optim
from attn.training.progress import time_left
from attn.training.run import Run
from attn.training.state import Best, Meter
from attn.training.stopping import preempted, save


def end_epoch(run: Run, images_per_second: float) -> None:
    """Evaluates, writes the epoch's line, saves.

    Raises:
        Preempted: on all ranks, because one was asked to stop during the evaluation.
    """
    cfg, state = run.cfg, run.state
    began = time.monotonic()
    epoch = state.evaluated + 1
    state.broadcast_buffers()
    row: dict[str, Any] = {
        "epoch": epoch,
        "step": state.step,
        "lr": optim.learning_rate(cfg.schedule, state.step - 1, run.data.steps_per_epoch),
        **state.meter.row(),
    }
    last: dict[str, float] = {}
    settings = Settings.of(cfg, run.images_per_pass)
    for prefix, model in state.evaluated_models().items():
        scores = evaluate_unless(run.request.requested, model, run.val, run.ranks, settings)
        if scores is None:
            raise preempted(run)
        row |= scores.row(prefix)
        last = scores.values()
    row["images_per_second"] = images_per_second
    best, improved = state.best, state.best.beaten_by(last)
    if improved:
        state.best = Best(last["top1"], epoch, cfg.monitor, None if cfg.monitor == "top1" else last[cfg.monitor])
    early = state.best.outlasted(epoch, cfg.early_stop)
    state.evaluated, state.meter = epoch, Meter()
    if run.ranks.first:
        remaining = (run.total_steps - state.step) / run.data.steps_per_epoch
        images = run.data.steps_per_epoch * run.data.batch_size
        trained = images / images_per_second if images_per_second else 0.0  # no step since the run was continued
        left = f"  {time_left(remaining * (trained + time.monotonic() - began))} left" if remaining and not early else ""
        console.say(views.table_row(row) + left)
        state.rows.append(row)
        state.history.append(row)
        if not save(run, best=improved, final=early or state.step >= run.total_steps):
            state.best = best  # best.pt is still the old one
        if early and state.step < run.total_steps:
            console.say(f"stopped early: no better {cfg.monitor} in the {cfg.early_stop} epochs after epoch {best.epoch}")
        if run.mirror is not None:
            run.mirror.after_epoch()
