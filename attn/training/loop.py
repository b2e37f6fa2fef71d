"""Training: one flat loop. The same command starts a run, continues it, or says that it is finished."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from attn import console, rng
from attn.config.parse import all_metrics
from attn.config.schema import Config
from attn.data.loader import Batch, to_device
from attn.distributed import Ranks, fail_together, launch
from attn.errors import Preempted
from attn.evaluation.evaluate import EvaluationStopped, autocast, correct, evaluate
from attn.models.auxiliary import extra_loss
from attn.runs import directory, views
from attn.runs.wandb import Wandb
from attn.training import optim
from attn.training.setup import Job, find_checkpoint, prepare, with_kernels
from attn.training.state import Best, Meter
from attn.training.stopping import StopRequest, finish, preempt, rescue, save, stop_non_finite


def train(cfg: Config) -> None:
    """Runs a config to its end.

    Raises:
        UserError: something outside the program is wrong; before any work where it can be known before.
        TrainingStopped: non-finite values, or a checkpoint could not be written.
        Preempted: a signal asked for the end; a checkpoint was saved.
    """
    run_dir = Path(cfg.run_dir)
    with launch(cfg.device, cfg.dist_timeout) as ranks, contextlib.ExitStack() as stack:
        cfg = with_kernels(cfg, ranks)
        path: Path | None = None
        with fail_together(ranks):
            if ranks.first:
                stack.enter_context(directory.claim(run_dir))
                path = find_checkpoint(cfg, run_dir)
        path = ranks.gather(path)[0]
        request = stack.enter_context(StopRequest())
        with fail_together(ranks):
            job = prepare(cfg, run_dir, ranks, path)
        if job is None:
            return
        request.hold_interrupt()
        mirror = Wandb(cfg, run_dir) if cfg.logger.wandb and ranks.first else None
        try:
            fit(cfg, run_dir, ranks, job, mirror, request)
            ranks.barrier()
        except Preempted:
            raise
        except Exception as error:
            job.log.flush()
            rescue(cfg, run_dir, ranks, job.state, error)
        else:
            if ranks.first:
                finish(cfg, run_dir, job.state.best)
        finally:
            if mirror is not None:
                mirror.finish()


def fit(cfg: Config, run_dir: Path, ranks: Ranks, job: Job, mirror: Wandb | None, request: StopRequest) -> None:
    """Trains from `job.state.step` to the end; saves, evaluates and logs after every epoch.

    Raises:
        Preempted: on all ranks, at the same step, because one was asked to stop.
    """
    state, per_epoch = job.state, job.data.steps_per_epoch
    bar, started, started_at, saved_at = None, time.monotonic(), state.step, time.monotonic()
    began, began_at = started, started_at
    with contextlib.closing(job.data.batches(state.step, job.total_steps, ranks)) as batches:
        while True:
            if state.step == (state.evaluated + 1) * per_epoch:
                bar = bar.close() if bar is not None else None
                speed = (state.step - started_at) * job.data.batch_size / (time.monotonic() - started)
                end_epoch(cfg, run_dir, ranks, job, mirror, request, speed)
                started, started_at, saved_at = time.monotonic(), state.step, time.monotonic()
                # The first rank may have kept an older best: its disk was full.
                if ranks.gather(state.best.outlasted(state.evaluated, cfg.early_stop))[0]:
                    return
            if state.step >= job.total_steps:
                return
            if bar is None and ranks.first and sys.stderr.isatty():
                epoch, done = divmod(state.step, per_epoch)
                bar = tqdm(total=per_epoch, initial=done, desc=f"epoch {epoch + 1}", leave=False)
            stop = train_step(cfg, run_dir, ranks, job, batches, request)
            if ranks.first:
                shown = progress(job, (time.monotonic() - began) / (state.step - began_at))
                if bar is not None:
                    bar.set_postfix_str(shown, refresh=False)
                    bar.update()
                elif state.step % cfg.log_every == 0:
                    console.say(f"step {state.step}/{job.total_steps}  {shown}")
                if state.step % cfg.log_every == 0:
                    job.log.flush()
            if stop:
                job.log.flush()
                preempt(cfg, run_dir, ranks, state, request)
            # The evaluation may fail or be killed; it shall cost no training then.
            if ranks.first and (state.step % per_epoch == 0 or due(cfg, state.step, saved_at)):
                job.log.flush()
                save(cfg, run_dir, state)
                saved_at = time.monotonic()


def progress(job: Job, seconds_per_step: float) -> str:
    """What is shown beside the number of steps: mean loss of the epoch so far, learning rate, time left for the whole run."""
    meter, rate = job.state.meter, job.state.optimizer.param_groups[0]["lr"]
    left = tqdm.format_interval(round((job.total_steps - job.state.step) * seconds_per_step))
    return f"loss {meter.loss / max(meter.images, 1):.4f}  lr {rate:.2e}  {left} left"


def due(cfg: Config, step: int, saved_at: float) -> bool:
    """Whether a checkpoint within the epoch is due."""
    by_step = cfg.save_every_steps is not None and step % cfg.save_every_steps == 0
    by_time = cfg.save_every_minutes is not None and time.monotonic() - saved_at >= 60 * cfg.save_every_minutes
    return by_step or by_time


def train_step(cfg: Config, run_dir: Path, ranks: Ranks, job: Job, batches: Iterator[Batch], request: StopRequest) -> bool:
    """One optimizer step: `accumulate` forward and backward passes, one update. Returns whether any rank was asked to stop."""
    state, schedule = job.state, cfg.schedule
    optim.set_learning_rate(state.optimizer, optim.learning_rate(schedule, state.step, job.data.steps_per_epoch))
    state.optimizer.zero_grad(set_to_none=True)
    state.begin_step()
    totals = torch.zeros(6, dtype=torch.float64, device=ranks.device)
    seen: list[int] = []
    for part in range(schedule.accumulate):
        batch = to_device(next(batches), ranks.device, cfg.channels_last)
        seen += batch.indices.tolist()
        rng.seed_everything(cfg.seed, "step", state.step, part, ranks.rank)
        with contextlib.ExitStack() as stack:
            if part < schedule.accumulate - 1 and isinstance(job.net, DistributedDataParallel):
                stack.enter_context(job.net.no_sync())
            with autocast(schedule.amp, ranks.device):
                loss, logits = forward(job, batch, schedule.label_smoothing)
            state.scaler.scale(loss / schedule.accumulate).backward()
        n = len(batch.labels)
        first, five = correct(logits.detach(), batch.labels)
        replaced = batch.replaced.sum().to(ranks.device)
        totals[:5] += torch.stack([v.detach().double() for v in (loss.new_tensor(n), loss * n, first, five, replaced)])
    own_loss = totals[1].clone()
    totals[5] = request.requested()
    ranks.sum(totals)

    state.scaler.unscale_(state.optimizer)
    parameters = list(state.model.parameters())
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if bool(torch.isfinite(totals[1]) & torch.isfinite(norm)):
        if schedule.clip_grad is not None:
            clip_grads_with_norm_(parameters, schedule.clip_grad, norm)
        state.phase = "update"
        state.scaler.step(state.optimizer)
        if state.ema is not None:
            state.ema.update(state.model)
        state.skipped_in_row = 0
        state.meter.add(*totals[:5].tolist())
    else:
        if (schedule.amp != "fp16" and cfg.nonfinite == "stop") or state.skipped_in_row >= cfg.max_skipped:
            stop_non_finite(cfg, run_dir, ranks, state, float(own_loss), float(norm), seen)
        state.undo_step()  # the pass may have left its NaN in a running mean
        state.phase = "update"
        state.skipped_in_row += 1
        state.meter.skipped += 1
    if ranks.first:
        mean = float(totals[1] / totals[0])
        epoch = state.step // job.data.steps_per_epoch + 1
        rate = state.optimizer.param_groups[0]["lr"]
        job.log.add(
            step=state.step + 1, epoch=epoch, loss=mean, lr=rate, grad_norm=float(norm), skipped=state.skipped_in_row > 0
        )
    state.scaler.update()
    state.step += 1
    state.phase = "between"
    return bool(totals[5])


def forward(job: Job, batch: Batch, smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss of a batch (mean over images, nats; with what the attentions add to it), and its logits."""
    images, targets = batch.images, batch.labels
    if job.mixup is not None:
        images, targets = job.mixup(images, targets)
        smoothing = 0.0  # mixup's targets are smoothed already
    logits = job.net(images)
    loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    return loss + extra_loss(job.state.model, images, targets, logits), logits


def end_epoch(
    cfg: Config, run_dir: Path, ranks: Ranks, job: Job, mirror: Wandb | None, request: StopRequest, speed: float
) -> None:
    """Evaluates, writes the epoch's line, saves."""
    state = job.state
    epoch = state.evaluated + 1
    state.broadcast_buffers()
    row: dict[str, Any] = {
        "epoch": epoch,
        "step": state.step,
        "lr": optim.learning_rate(cfg.schedule, state.step - 1, job.data.steps_per_epoch),
        **state.meter.row(),
    }
    last: dict[str, float] = {}
    share = max(1, cfg.schedule.batch_size // (ranks.world * cfg.schedule.accumulate))
    for prefix, model in state.evaluated_models().items():
        try:
            scores = evaluate(
                model,
                job.val,
                ranks,
                share,
                cfg.data.workers,
                cfg.schedule.amp,
                cfg.channels_last,
                request.requested,
                all_metrics(cfg),
            )
        except EvaluationStopped:
            preempt(cfg, run_dir, ranks, state, request)
        row |= scores.row(prefix)
        last = scores.values()
    row["images_per_second"] = speed
    best, improved = state.best, state.best.beaten_by(last)
    if improved:
        state.best = Best(last["top1"], epoch, cfg.monitor, None if cfg.monitor == "top1" else last[cfg.monitor])
    early = state.best.outlasted(epoch, cfg.early_stop)
    state.evaluated, state.meter = epoch, Meter()
    if ranks.first:
        console.say(views.table_row(row))
        state.rows.append(row)
        state.history.append(row)
        job.log.flush()
        if not save(cfg, run_dir, state, improved, final=early or state.step >= job.total_steps):
            state.best = best  # best.pt is still the old one
        if early and state.step < job.total_steps:
            console.say(
                f"stopped early: no better {cfg.monitor} in the {cfg.early_stop} epochs after epoch {state.best.epoch}"
            )
        if mirror is not None:
            mirror.update()
