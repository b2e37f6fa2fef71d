"""Evaluation: every image of a data set once, whatever the number of ranks and the batch size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from attn.data.ahead import Ahead
from attn.data.loader import Seeded, evaluation_batches, to_device
from attn.distributed import Ranks
from attn.evaluation.scores import ClassCounts, Scores


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
) -> Scores:
    """Evaluates a model, not wrapped in DDP; all ranks get the scores of the whole set.

    Args:
        metrics: further scores, by their names in `ClassCounts.scores`.
    """
    scores = evaluate_unless(lambda: False, model, dataset, ranks, batch_size, workers, amp, channels_last, metrics)
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
) -> Scores | None:
    """As `evaluate`; None on all ranks if `stop` became true on one of them before the end."""
    training = model.training
    model.eval()
    totals = torch.zeros(5, dtype=torch.float64, device=ranks.device)
    by_class: Tensor | None = None  # [3, K]
    batches = Ahead(evaluation_batches(dataset, batch_size, workers, ranks), ranks.device)
    parts = -(-len(range(ranks.rank, len(dataset), ranks.world)) // batch_size)
    shown = ranks.first and sys.stderr.isatty()
    for loaded in tqdm(batches, "validation", parts, leave=False, disable=not shown):
        if stop():
            totals[4] += 1
            break
        batch = to_device(loaded, ranks.device, channels_last, dataset.pixels)
        with autocast(amp, ranks.device):
            logits = model(batch.images)
        logits = logits.double()
        first, five = correct(logits, batch.labels)
        if metrics:
            counts = ClassCounts.of(guesses(logits)[:, 0], batch.labels, logits.shape[1])
            found = torch.stack([counts.labelled, counts.guessed, counts.hit])
            by_class = found if by_class is None else by_class + found
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        totals[:4] += torch.stack([torch.full_like(loss, len(batch.labels)), first.double(), five.double(), loss])
        batches.fetch()
    model.train(training)
    count, correct1, correct5, loss_sum, stopped = ranks.sum(totals).tolist()
    if stopped:
        return None
    more = {}
    if metrics:
        # A rank without images does not know the number of classes.
        classes = max(ranks.gather(0 if by_class is None else by_class.shape[1]))
        own = by_class if by_class is not None else torch.zeros(3, classes, dtype=torch.int64, device=ranks.device)
        known = ClassCounts(*ranks.sum(own)).scores()
        more = {name: known[name] for name in metrics}
    return Scores(int(count), int(correct1), int(correct5), loss_sum / count, more)
