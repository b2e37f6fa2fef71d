"""Evaluation: every image of a data set once, whatever the number of ranks and the batch size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from attn.config.parse import all_metrics
from attn.config.schema import Config
from attn.data.ahead import Ahead
from attn.data.loader import Seeded, evaluation_batches, to_device
from attn.distributed import Ranks
from attn.evaluation.scores import ClassCounts, Outcomes, Scores


def autocast(amp: str | None, device: torch.device) -> torch.autocast:
    """The context of a schedule's `amp`: bf16, fp16 or None."""
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=amp is not None)


def guesses(logits: Tensor) -> Tensor:
    """The five likeliest classes of logits [N, C] (or all, if there are fewer), the likeliest first."""
    return logits.topk(min(5, logits.shape[1]), 1).indices


def correct(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of images [N, C] whose label is the first guess, and among the first five (or all, if there are fewer)."""
    hits = guesses(logits) == labels[:, None]
    return hits[:, 0].sum(), hits.sum()


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    Attributes:
        batch_size: images per rank and forward pass.
        workers: loader processes per rank; None: one per processor core, at most 4.
        amp: precision of autocast: bf16, fp16 or None.
        channels_last: memory layout NHWC.
        metrics: further scores, by their names in `ClassCounts.scores`.
        by_class: also count the images by class.
        outcomes: also keep what the model says of every image.
    """

    batch_size: int
    workers: int | None = 0
    amp: str | None = None
    channels_last: bool = False
    metrics: Sequence[str] = ()
    by_class: bool = False
    outcomes: bool = False

    @classmethod
    def of(cls, cfg: Config, batch_size: int) -> Settings:
        """Those of a run's config."""
        return cls(batch_size, cfg.data.workers, cfg.schedule.amp, cfg.channels_last, all_metrics(cfg))


def evaluate(model: nn.Module, dataset: Seeded, ranks: Ranks, settings: Settings) -> Scores:
    """Evaluates a model, not wrapped in DDP; all ranks get the scores of the whole set."""
    scores = evaluate_unless(lambda: False, model, dataset, ranks, settings)
    assert scores is not None, "nothing asks it to stop"
    return scores


@torch.inference_mode()
def evaluate_unless(
    stop: Callable[[], bool], model: nn.Module, dataset: Seeded, ranks: Ranks, settings: Settings
) -> Scores | None:
    """As `evaluate`; None on all ranks if `stop` became true on one of them before the end."""
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=ranks.device)  # images, top-1 and top-5 hits, loss
    stopped = False
    counted: Tensor | None = None  # [3, K]
    parts: list[tuple[Tensor, ...]] = []
    batches = Ahead(evaluation_batches(dataset, settings.batch_size, settings.workers, ranks), ranks.device)
    number = -(-len(range(ranks.rank, len(dataset), ranks.world)) // settings.batch_size)
    shown = ranks.first and sys.stderr.isatty()
    for loaded in tqdm(batches, "validation", number, leave=False, disable=not shown):
        if stop():
            stopped = True
            break
        batch = to_device(loaded, ranks.device, settings.channels_last, dataset.pixels)
        with autocast(settings.amp, ranks.device):
            logits = model(batch.images)
        logits = logits.double()
        first, five = correct(logits, batch.labels)
        if settings.metrics or settings.by_class:
            counts = ClassCounts.of(guesses(logits)[:, 0], batch.labels, logits.shape[1])
            found = torch.stack([counts.labelled, counts.guessed, counts.hit])
            counted = found if counted is None else counted + found
        if settings.outcomes:
            best = guesses(logits)
            chances = logits.softmax(1).gather(1, best)
            parts.append(tuple(value.cpu() for value in (batch.indices, batch.labels, best, chances)))
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        sums += torch.stack([torch.full_like(loss, len(batch.labels)), first.double(), five.double(), loss])
        batches.fetch()
    model.train(training)
    totals = ranks.sum(torch.cat([sums, sums.new_tensor([stopped])]))
    count, correct1, correct5, loss_sum, stops = totals.tolist()
    if stops:
        return None
    more, classes = {}, None
    if settings.metrics or settings.by_class:
        # A rank without images does not know the number of classes.
        size = max(ranks.gather(0 if counted is None else counted.shape[1]))
        own = counted if counted is not None else torch.zeros(3, size, dtype=torch.int64, device=ranks.device)
        classes = ClassCounts(*ranks.sum(own).cpu())
        known = classes.scores()
        more = {name: known[name] for name in settings.metrics}
    whole = None
    if settings.outcomes:
        mine = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        whole = Outcomes.of([of_rank for of_rank in ranks.gather(mine) if of_rank])
    by_class = classes if settings.by_class else None
    return Scores(int(count), int(correct1), int(correct5), loss_sum / count, more, by_class, whole)
