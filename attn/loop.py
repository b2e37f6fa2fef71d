"""Training: one flat loop. The same command starts a run, continues it, or says that it is finished."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from attn import checkpoint, log, optim, rng, run
from attn.build import set_last_norm
from attn.checkpoint import BEST, LAST
from attn.config import Config
from attn.data import Batch, Seeded, TrainData, evaluation_data, to_device, train_data
from attn.dist import Ranks, launch
from attn.errors import Preempted, TrainingStopped, UserError, as_user_errors
from attn.evaluate import EvaluationStopped, autocast, correct, evaluate
from attn.objective import extra_loss
from attn.signals import StopRequest
from attn.state import Best, Meter, State


def train(cfg: Config) -> None:
    """Runs a config to its end.

    Raises:
        UserError: something outside the program is wrong; before any work where it can be known before.
        TrainingStopped: non-finite values, or a checkpoint could not be written.
        Preempted: a signal asked for the end; a checkpoint was saved.
    """
    run_dir = Path(cfg.run_dir)
    with launch(cfg.device, cfg.dist_timeout) as ranks, contextlib.ExitStack() as stack:
        path: Path | None = None
        with agreed(ranks):
            if ranks.first:
                stack.enter_context(run.claim(run_dir))
                path = find_checkpoint(cfg, run_dir)
        path = ranks.gather(path)[0]
        request = stack.enter_context(StopRequest())
        with agreed(ranks):
            job = prepare(cfg, run_dir, ranks, path)
        if job is None:
            return
        mirror = log.Wandb(cfg, run_dir) if cfg.logger.wandb and ranks.first else None
        try:
            fit(cfg, run_dir, ranks, job, mirror, request)
            ranks.barrier()
        except Preempted:
            raise
        except Exception as error:
            rescue(cfg, run_dir, ranks, job.state, error)
        else:
            if ranks.first:
                finish(cfg, run_dir, job.state.best)
        finally:
            if mirror is not None:
                mirror.finish()


@contextlib.contextmanager
def agreed(ranks: Ranks) -> Iterator[None]:
    """Lets all ranks fail together if one does, with that rank's message."""
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


@dataclass
class Job:
    """What `prepare` makes of a config."""

    data: TrainData
    val: Seeded
    state: State
    net: nn.Module  # the model as it is called in training: DDP around it on several ranks
    mixup: Mixup | None
    total_steps: int


def prepare(cfg: Config, run_dir: Path, ranks: Ranks, path: Path | None) -> Job | None:
    """Opens the data, builds the model, takes up the checkpoint at `path`; None if the run is finished already."""
    found = None if path is None else checkpoint.read(path)
    if found is not None:
        checkpoint.expect_resumable(found, str(path))
    schedule = cfg.schedule
    data = train_data(cfg.data, schedule.batch_size, schedule.accumulate, cfg.seed, ranks)
    val = evaluation_data(cfg.data)
    mixup = build_mixup(cfg, ranks)
    total = optim.total_steps(schedule, data.steps_per_epoch)
    if ranks.first:
        run.rewind_metrics(run_dir, found["evaluated"] if found is not None else 0)
    if found is not None and found["step"] >= total and found["evaluated"] * data.steps_per_epoch >= total:
        if ranks.first:
            log.say(f"finished already: {total // data.steps_per_epoch} epochs in {run_dir}")
            finish(cfg, run_dir, Best(**found["best"]))
        return None

    set_determinism(cfg.deterministic)
    rng.seed_everything(cfg.seed, "initialisation")
    model: Any = checkpoint.build(cfg, pretrained=cfg.pretrained and found is None)
    if schedule.zero_init_last is not None and not cfg.pretrained:
        set_last_norm(model, zero=schedule.zero_init_last)
    if schedule.sync_bn:
        if ranks.device.type == "cpu":
            raise ValueError("schedule.sync_bn=true: torch synchronises BatchNorm on GPUs only; leave it off on the CPU")
        model = convert_sync_batchnorm(model)
    if cfg.grad_checkpointing:
        model.set_grad_checkpointing(True)
    layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
    model = model.to(ranks.device, memory_format=layout)
    ema = None if schedule.ema_decay is None else ModelEmaV3(model, decay=schedule.ema_decay)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=schedule.amp == "fp16")
    state = State(model, ema, optim.build_optimizer(schedule, model), scaler)
    if found is not None:
        state.restore(found, str(path))
        if ranks.first:
            log.say(f"continuing from {path} at step {state.step} of {total}")
    if ranks.first:
        (run_dir / run.DONE).unlink(missing_ok=True)
        run.write_config(run_dir, cfg)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        log.say(f"{cfg.backbone['name']} + {cfg.attention_name}: {parameters:.2f} M parameters, {len(data.dataset)} images")
    if cfg.compile:
        model.compile()
    net: nn.Module = model
    if ranks.world > 1:
        net = DistributedDataParallel(model, device_ids=[ranks.device] if ranks.device.type == "cuda" else None)
    return Job(data, val, state, net, mixup, total)


def find_checkpoint(cfg: Config, run_dir: Path) -> Path | None:
    """The checkpoint to continue from, by `resume`; the run's own goes before one from elsewhere.

    Raises:
        UserError: none of the checkpoints is sound, the config differs in what changes the result, or resume=never and there
            is one.
    """
    if cfg.resume == "never":
        if (run_dir / LAST).exists():
            raise UserError(
                f"resume=never, but {run_dir} holds a run: remove it, choose another run_dir=, or use resume=auto"
            )
        return None
    path: Path | None = None
    if cfg.resume != "auto" and Path(cfg.resume).resolve().parent == run_dir.resolve():
        path = Path(cfg.resume)  # back to an older one of this run
    else:
        newest = checkpoint.newest(run_dir)
        if newest is not None:
            path, problems = newest
            for problem in problems:
                log.warn(f"{problem}; going back to {path}")
        elif cfg.resume != "auto":
            path = Path(cfg.resume)
    if path is None:
        return None
    changed = run.differences(checkpoint.load_config(checkpoint.read(path), path), cfg)
    if changed and not cfg.force:
        raise UserError(
            f"{path} was made with another config ({'; '.join(changed)}): use the old values, another run_dir=, or force=true"
        )
    return path


def fit(cfg: Config, run_dir: Path, ranks: Ranks, job: Job, mirror: log.Wandb | None, request: StopRequest) -> None:
    """Trains from `job.state.step` to the end; saves, evaluates and logs after every epoch.

    Raises:
        Preempted: on all ranks, at the same step, because one was asked to stop.
    """
    state, per_epoch = job.state, job.data.steps_per_epoch
    bar, started, started_at, saved_at = None, time.monotonic(), state.step, time.monotonic()
    with contextlib.closing(job.data.batches(state.step, job.total_steps, ranks)) as batches:
        while True:
            if state.step == (state.evaluated + 1) * per_epoch:
                bar = bar.close() if bar is not None else None
                speed = (state.step - started_at) * job.data.batch_size / (time.monotonic() - started)
                end_epoch(cfg, run_dir, ranks, job, mirror, request, speed)
                started, started_at, saved_at = time.monotonic(), state.step, time.monotonic()
            if state.step >= job.total_steps:
                return
            if bar is None and ranks.first and sys.stderr.isatty():
                epoch, done = divmod(state.step, per_epoch)
                bar = tqdm(total=per_epoch, initial=done, desc=f"epoch {epoch + 1}", leave=False)
            stop = train_step(cfg, run_dir, ranks, job, batches, request)
            if bar is not None:
                bar.update()
            elif ranks.first and state.step % cfg.log_every == 0:
                log.say(f"step {state.step}/{job.total_steps}  loss {state.meter.loss / max(state.meter.images, 1):.4f}")
            if stop:
                preempt(cfg, run_dir, ranks, state, request)
            # The evaluation may fail or be killed; it shall cost no training then.
            if ranks.first and (state.step % per_epoch == 0 or due(cfg, state.step, saved_at)):
                save(cfg, run_dir, state)
                saved_at = time.monotonic()


def preempt(cfg: Config, run_dir: Path, ranks: Ranks, state: State, request: StopRequest) -> NoReturn:
    """Ends the run between two steps; all ranks are here."""
    if ranks.first:
        save(cfg, run_dir, state, final=True)
    with contextlib.suppress(RuntimeError):
        ranks.barrier()  # torchrun ends the first rank as soon as another one leaves, and that would be before it has saved
    who = request.name or "a signal to another rank"
    raise Preempted(f"{who}: saved {run_dir / LAST} at step {state.step}; the same command continues")


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
        own = ranks.roll_call()
    elif ranks.world > 1:
        own = f"rank {ranks.rank}: {own}"
    message = f"step {state.step}: {own}; {kept}"
    if not ranks.first and not peer_is_gone:
        log.warn(message)  # the command line prints what the first rank says
    raise TrainingStopped(message) from None


def is_of_a_collective(error: Exception) -> bool:
    """Whether it tells of a lost connection or an expired timeout between ranks."""
    words = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "tcpstore", "process group")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


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


def end_epoch(
    cfg: Config, run_dir: Path, ranks: Ranks, job: Job, mirror: log.Wandb | None, request: StopRequest, speed: float
) -> None:
    """Evaluates, writes the epoch's line, saves."""
    state = job.state
    epoch = state.evaluated + 1
    state.share_buffers()
    row: dict[str, Any] = {
        "epoch": epoch,
        "step": state.step,
        "lr": optim.learning_rate(cfg.schedule, state.step - 1, job.data.steps_per_epoch),
        **state.meter.row(),
    }
    top1 = -1.0
    share = max(1, cfg.schedule.batch_size // (ranks.world * cfg.schedule.accumulate))
    for prefix, model in state.evaluated_models().items():
        try:
            scores = evaluate(
                model, job.val, ranks, share, cfg.data.workers, cfg.schedule.amp, cfg.channels_last, request.requested
            )
        except EvaluationStopped:
            preempt(cfg, run_dir, ranks, state, request)
        row |= scores.row(prefix)
        top1 = scores.top1
    row["images_per_second"] = speed
    best, improved = state.best, top1 > state.best.top1
    if improved:
        state.best = Best(top1, epoch)
    state.evaluated, state.meter = epoch, Meter()
    if ranks.first:
        log.say(log.table_row(row))
        state.rows.append(row)
        if not save(cfg, run_dir, state, improved, final=state.step >= job.total_steps):
            state.best = best  # best.pt is still the old one
        if mirror is not None:
            mirror.update()


def save(cfg: Config, run_dir: Path, state: State, best: bool = False, final: bool = False) -> bool:
    """Writes the pending metrics and the checkpoint, if all its values are finite; returns whether the disk took them.

    Args:
        best: it is the best so far.
        final: there is no later save that could make up for this one.

    Raises:
        TrainingStopped: a value is not finite, or the disk refuses and save_error=stop or the save is the final one.
    """
    content = state.content(cfg)
    bad = checkpoint.non_finite({key: content[key] or {} for key in ("model", "ema", "optimizer")})
    last = run_dir / LAST
    kept = f"{last} is the last good checkpoint" if last.exists() else "there is no good checkpoint yet"
    if bad is not None:
        raise TrainingStopped(f"step {state.step}: {bad} is not finite; not saved, {kept}")
    try:
        if state.rows:
            run.append_metrics(run_dir, state.rows)
            state.rows = []
            content["rows"] = []
        checkpoint.save(content, run_dir, best)
    except OSError as error:
        message = f"step {state.step}: the checkpoint cannot be written to {run_dir} ({error.strerror}); {kept}"
        if final or cfg.save_error == "stop":
            raise TrainingStopped(f"{message}; make room, then run the same command again") from None
        log.warn(f"{message}; training goes on (save_error=continue)")
        return False
    state.saved = state.step
    return True


def finish(cfg: Config, run_dir: Path, best: Best) -> None:
    """Makes the views of the metrics, marks the run as done, says what was reached and where everything lies."""
    try:
        if cfg.logger.csv:
            log.write_csv(run_dir)
        if cfg.logger.plot:
            log.write_curves(run_dir)
    except OSError as error:
        log.warn(f"a view of the metrics cannot be written to {run_dir} ({error.strerror}); {run.METRICS} is whole")
    with as_user_errors():
        (run_dir / run.DONE).touch()
    log.say(f"best val top-1 {best.top1:.2f} % in epoch {best.epoch}")
    for what, name in (("checkpoint", BEST), ("metrics", run.METRICS), ("table", "metrics.csv"), ("curves", "curves.png")):
        if (run_dir / name).exists():
            log.say(f"  {what:<11}{run_dir / name}")


def build_mixup(cfg: Config, ranks: Ranks) -> Mixup | None:
    """timm's mixup and cutmix, or None when both are off.

    Raises:
        ValueError: the images of a pass cannot be paired.
    """
    schedule = cfg.schedule
    if not schedule.mixup and not schedule.cutmix:
        return None
    parts = ranks.world * schedule.accumulate
    if schedule.batch_size // parts % 2:
        raise ValueError(
            f"schedule.batch_size={schedule.batch_size} gives {schedule.batch_size // parts} images to each of {ranks.world} ranks "
            f"x {schedule.accumulate} accumulated parts: mixup and cutmix need an even number"
        )
    return Mixup(
        mixup_alpha=schedule.mixup,
        cutmix_alpha=schedule.cutmix,
        prob=schedule.mix_prob,
        switch_prob=schedule.mix_switch_prob,
        label_smoothing=schedule.label_smoothing,
        num_classes=cfg.data.num_classes,
    )


def set_determinism(on: bool) -> None:
    """With `on`, operations that differ from run to run are replaced or refused (slower on a GPU)."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may choose another algorithm each time
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = not on and torch.cuda.is_available()
