"""Training: one flat loop. The same command starts a run, continues it, or says that it is finished."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from attn import console, rng
from attn.config.schema import Config
from attn.data.ahead import Ahead, Readback
from attn.data.loader import Batch, to_device
from attn.distributed import fail_together, launch
from attn.errors import Preempted
from attn.evaluation.evaluate import autocast, correct
from attn.models.auxiliary import extra_loss
from attn.runs import directory
from attn.runs.mirrors import Mirrors
from attn.training import optim
from attn.training.epoch import end_epoch
from attn.training.progress import Clock, due, progress
from attn.training.run import Run
from attn.training.setup import Found, find_checkpoint, prepare, read_found, with_data, with_kernels
from attn.training.stop_request import StopRequest
from attn.training.stopping import finish, non_finite_step, preempted, rescued, save


def train(cfg: Config) -> None:
    """Runs a config to its end.

    Raises:
        UserError: something outside the program is wrong; before any work where it can be known before.
        TrainingStopped: non-finite values, or a checkpoint could not be written.
        Preempted: a signal asked for the end; a checkpoint was saved.
    """
    run_dir = Path(cfg.run_dir)
    with launch(cfg.device, cfg.dist_timeout) as ranks, contextlib.ExitStack() as stack:
        cfg = with_data(with_kernels(cfg, ranks), ranks)
        found: Found | None = None
        with fail_together(ranks):
            if ranks.first:
                stack.enter_context(directory.claim(run_dir))
                found = find_checkpoint(cfg, run_dir)
        path = ranks.gather(None if found is None else found.path)[0]
        request = stack.enter_context(StopRequest())
        with fail_together(ranks):
            run = prepare(cfg, run_dir, ranks, request, found or read_found(path))
        if run is None:
            return
        request.hold_interrupt()
        run.mirror = Mirrors(cfg, run_dir) if ranks.first else None
        try:
            fit(run)
            ranks.barrier()
        except Preempted:
            raise
        except Exception as error:
            raise rescued(run, error) from None
        else:
            if ranks.first:
                finish(cfg, run_dir, run.state.best)
        finally:
            if run.mirror is not None:
                run.mirror.finish()


def fit(run: Run) -> None:
    """Trains from `run.state.step` to the end; saves, evaluates and logs after every epoch.

    Raises:
        Preempted: on all ranks, at the same step, because one was asked to stop.
    """
    state, ranks, per_epoch = run.state, run.ranks, run.data.steps_per_epoch
    clock = Clock(state.step)
    bar, began, saved_at = None, clock, time.monotonic()
    with contextlib.closing(Ahead(run.data.batches(state.step, run.total_steps, ranks), ranks.device)) as batches:
        while True:
            if state.step == (state.evaluated + 1) * per_epoch:
                bar = bar.close() if bar is not None else None
                end_epoch(run, images_per_second=run.data.batch_size / clock.seconds_per_step(state.step))
                clock, saved_at = Clock(state.step), time.monotonic()
                # The first rank may have kept an older best: its disk was full.
                if ranks.gather(state.best.outlasted(state.evaluated, run.cfg.early_stop))[0]:
                    return
            if state.step >= run.total_steps:
                return
            if bar is None and ranks.first and sys.stderr.isatty():
                epoch, done = divmod(state.step, per_epoch)
                bar = tqdm(total=per_epoch, initial=done, desc=f"epoch {epoch + 1}", leave=False)
            stop = train_step(run, batches)
            if ranks.first:
                shown = progress(run, began.seconds_per_step(state.step))
                if bar is not None:
                    bar.set_postfix_str(shown, refresh=False)
                    bar.update()
                elif state.step % run.cfg.log_every == 0:
                    console.say(f"step {state.step}/{run.total_steps}  {shown}")
                if state.step % run.cfg.log_every == 0:
                    run.log.flush()
                    if run.mirror is not None:
                        run.mirror.after_steps()
            if stop:
                raise preempted(run)
            # Also saved before the evaluation: if that fails or is killed, no training is lost.
            if ranks.first and (state.step % per_epoch == 0 or due(run.cfg, state.step, saved_at)):
                save(run)
                saved_at = time.monotonic()


def train_step(run: Run, batches: Ahead) -> bool:
    """One optimizer step: `accumulate` forward and backward passes, one update. Returns whether a rank was asked to stop.

    Whether the update is made is decided on the device. The host waits for it once, when the update is queued and the next
    batch is on its way.
    """
    cfg, ranks, state, schedule = run.cfg, run.ranks, run.state, run.cfg.schedule
    began = time.monotonic()
    optim.set_learning_rate(state.optimizer, optim.learning_rate(schedule, state.step, run.data.steps_per_epoch))
    state.optimizer.zero_grad(set_to_none=True)
    state.begin_step()
    sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)  # loss, top-1 and top-5 hits
    parts: list[Batch] = []
    for part in range(schedule.accumulate):
        batch = to_device(next(batches), ranks.device, cfg.channels_last, run.data.dataset.pixels)
        parts.append(batch._replace(images=batch.images[:0]))
        rng.seed_everything(cfg.seed, "step", state.step, part, ranks.rank)
        with contextlib.ExitStack() as stack:
            if part < schedule.accumulate - 1 and isinstance(run.net, DistributedDataParallel):
                stack.enter_context(run.net.no_sync())
            with autocast(schedule.amp, ranks.device):
                loss, logits = forward(run, batch, schedule.label_smoothing)
            with ranks.waiting("the gradients of the other ranks"):
                state.scaler.scale(loss / schedule.accumulate).backward()
        batches.fetch()
        loss = loss.detach()
        sums += torch.stack([v.double() for v in (loss * len(batch.labels), *correct(logits.detach(), batch.labels))])
    counts = (sum(len(b.labels) for b in parts), sum(int(b.replaced.sum()) for b in parts), run.request.requested())
    # Filled in by the device: a copy from the host would wait for it.
    totals = ranks.sum(torch.cat([sums, *(sums.new_full((1,), float(count)) for count in counts)]))

    state.scaler.unscale_(state.optimizer)
    norm = get_total_norm([p.grad for p in state.parameters if p.grad is not None])
    finite = torch.isfinite(totals[0]) & torch.isfinite(norm)
    results = Readback(torch.cat([totals, torch.stack([sums[0], norm.double(), finite.double()])]))
    if schedule.clip_grad is not None:
        clip_grads_with_norm_(state.parameters, schedule.clip_grad, norm)
    state.phase = "update"
    optim.update_if(finite, state.optimizer)
    loss_sum, top1, top5, images, substituted, stops, own_loss, total_norm, kept = results.wait()
    if kept:
        if state.ema is not None:
            state.ema.update(state.model)
        state.skipped_in_row = 0
        state.meter.add(images, loss_sum, top1, top5, substituted)
    else:
        state.phase = "gradients"  # there was no update
        if (schedule.amp != "fp16" and cfg.nonfinite == "stop") or state.skipped_in_row >= cfg.max_skipped:
            raise non_finite_step(run, own_loss, total_norm, [i for b in parts for i in b.indices.tolist()])
        state.undo_step()  # the pass may have left its NaN in a running mean
        state.phase = "update"
        state.skipped_in_row += 1
        state.meter.skipped += 1
    if ranks.first:
        epoch, rate = state.step // run.data.steps_per_epoch + 1, state.optimizer.param_groups[0]["lr"]
        values = {"loss": loss_sum / images, "lr": rate, "grad_norm": total_norm, "skipped": state.skipped_in_row > 0}
        run.log.add(state.step + 1, images, time.monotonic() - began, epoch=epoch, **values)
    state.scaler.update()
    state.step += 1
    state.phase = "between"
    return bool(stops)


def forward(run: Run, batch: Batch, smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss of a batch (mean over images, nats; with what the attentions add to it), and its logits.

    With weights it is the mean of weight x loss over the images, not over the sum of the weights: so it is the same however a
    batch is shared by ranks and parts.
    """
    images, targets = batch.images, batch.labels
    if run.mixup is not None:
        images, targets = run.mixup(images, targets)
        smoothing = 0.0  # mixup's targets are smoothed already
    logits = run.net(images)
    reduction = "mean" if run.weights is None else "none"
    loss = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction=reduction)
    if run.weights is not None:
        loss = (loss * run.weights[batch.indices].to(loss.device, non_blocking=True)).mean()
    return loss + extra_loss(run.state.model, images, targets, logits), logits
