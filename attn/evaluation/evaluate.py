"""Evaluation: every image of a data set once, whatever the number of ranks and the batch size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

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


def evaluate(
    model: nn.Module,
    dataset: Seeded,
    ranks: Ranks,
    batch_size: int,
    workers: int | None,
    amp: str | None,
    channels_last: bool,
    metrics: Sequence[str] = (),
    by_class: bool = False,
    outcomes: bool = False,
) -> Scores:
    """Evaluates a model, not wrapped in DDP; all ranks get the scores of the whole set.

    Args:
        metrics: further scores, by their names in `ClassCounts.scores`.
        by_class: also count the images by class.
        outcomes: also keep what the model says of every image.
    """
    settings = (workers, amp, channels_last, metrics, by_class, outcomes)
    scores = evaluate_unless(lambda: False, model, dataset, ranks, batch_size, *settings)
    assert scores is not None, "nothing asks it to stop"
    return scores


@torch.inference_mode()
def evaluate_unless(
    stop: Callable[[], bool],
    model: nn.Module,
    dataset: Seeded,
    ranks: Ranks,
    batch_size: int,
    workers: int | None,
    amp: str | None,
    channels_last: bool,
    metrics: Sequence[str] = (),
    by_class: bool = False,
    outcomes: bool = False,
) -> Scores | None:
    """As `evaluate`; None on all ranks if `stop` became true on one of them before the end."""
    training = model.training
    model.eval()
    totals = torch.zeros(5, dtype=torch.float64, device=ranks.device)
    counted: Tensor | None = None  # [3, K]
    parts: list[tuple[Tensor, ...]] = []
    batches = evaluation_batches(dataset, batch_size, workers, ranks)
    number = -(-len(range(ranks.rank, len(dataset), ranks.world)) // batch_size)
    shown = ranks.first and sys.stderr.isatty()
    for loaded in tqdm(batches, "validation", number, leave=False, disable=not shown):
        if stop():
            totals[4] += 1
            break
        batch = to_device(loaded, ranks.device, channels_last)
        with autocast(amp, ranks.device):
            logits = model(batch.images)
        logits = logits.double()
        first, five = correct(logits, batch.labels)
        if metrics or by_class:
            counts = ClassCounts.of(guesses(logits)[:, 0], batch.labels, logits.shape[1])
            found = torch.stack([counts.labelled, counts.guessed, counts.hit])
            counted = found if counted is None else counted + found
        if outcomes:
            best = guesses(logits)
            chances = logits.softmax(1).gather(1, best)
            parts.append(tuple(value.cpu() for value in (batch.indices, batch.labels, best, chances)))
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        totals[:4] += torch.stack([torch.full_like(loss, len(batch.labels)), first.double(), five.double(), loss])
    model.train(training)
    count, correct1, correct5, loss_sum, stopped = ranks.sum(totals).tolist()
    if stopped:
        return None
    more, classes = {}, None
    if metrics or by_class:
        # A rank without images does not know the number of classes.
        size = max(ranks.gather(0 if counted is None else counted.shape[1]))
        own = counted if counted is not None else torch.zeros(3, size, dtype=torch.int64, device=ranks.device)
        classes = ClassCounts(*ranks.sum(own).cpu())
        known = classes.scores()
        more = {name: known[name] for name in metrics}
    whole = None
    if outcomes:
        mine = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        whole = Outcomes.of([of_rank for of_rank in ranks.gather(mine) if of_rank])
    return Scores(int(count), int(correct1), int(correct5), loss_sum / count, more, classes if by_class else None, whole)
