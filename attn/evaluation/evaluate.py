"""Evaluation: every image of a data set once, whatever the number of ranks and the batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn.data.loader import Seeded, evaluation_batches, to_device
from attn.distributed import Ranks


@dataclass(frozen=True)
class Scores:
    """Counts over a data set. `loss` is the mean cross-entropy in nats, `top1` and `top5` are in percent."""

    count: int
    correct1: int
    correct5: int
    loss: float

    @property
    def top1(self) -> float:
        return 100 * self.correct1 / self.count

    @property
    def top5(self) -> float:
        return 100 * self.correct5 / self.count

    def row(self, prefix: str = "") -> dict[str, Any]:
        """For a line of metrics."""
        values = {"loss": self.loss, "top1": self.top1, "top5": self.top5}
        return {f"{prefix}{name}": value for name, value in values.items()}


def autocast(amp: str | None, device: torch.device) -> torch.autocast:
    """The context of a schedule's `amp`: bf16, fp16 or None."""
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=amp is not None)


def correct(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of images [N, C] whose label is the first guess, and among the first five (or all, if there are fewer)."""
    guesses = logits.topk(min(5, logits.shape[1]), 1).indices
    hits = guesses == labels[:, None]
    return hits[:, 0].sum(), hits.sum()


class EvaluationStopped(Exception):
    """A rank was asked to stop before the end of the data set."""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: Seeded,
    ranks: Ranks,
    batch_size: int,
    workers: int,
    amp: str | None,
    channels_last: bool,
    stop: Callable[[], bool] = lambda: False,
) -> Scores:
    """Evaluates a model, not wrapped in DDP; all ranks get the scores of the whole set.

    Raises:
        EvaluationStopped: on all ranks, because `stop` was true on one.
    """
    training = model.training
    model.eval()
    totals = torch.zeros(5, dtype=torch.float64, device=ranks.device)
    for loaded in evaluation_batches(dataset, batch_size, workers, ranks):
        if stop():
            totals[4] += 1
            break
        batch = to_device(loaded, ranks.device, channels_last)
        with autocast(amp, ranks.device):
            logits = model(batch.images)
        logits = logits.double()
        first, five = correct(logits, batch.labels)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        totals[:4] += torch.stack([torch.full_like(loss, len(batch.labels)), first.double(), five.double(), loss])
    model.train(training)
    count, correct1, correct5, loss_sum, stopped = ranks.sum(totals).tolist()
    if stopped:
        raise EvaluationStopped
    return Scores(int(count), int(correct1), int(correct5), loss_sum / count)
