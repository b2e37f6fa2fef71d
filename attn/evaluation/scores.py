"""Scores of a classification, from counts that add up over batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassCounts:
    """Numbers of images by class, each [K]: of that label, given that label, and both; see `scores`."""

    labelled: Tensor
    guessed: Tensor
    hit: Tensor

    @classmethod
    def of(cls, guesses: Tensor, labels: Tensor, num_classes: int) -> ClassCounts:
        """Of guesses [N] and labels [N]."""
        sets = (labels, guesses, labels[guesses == labels])
        return cls(*(torch.bincount(values, minlength=num_classes) for values in sets))

    def scores(self) -> dict[str, float]:
        """The scores as scikit-learn defines them; they need only the margins and the diagonal of the confusion matrix.

        Returns:
            balanced_accuracy: mean recall over the classes with images, in percent; macro_f1: mean F1 over the classes with
            images or guesses, in percent; mcc: Matthews' correlation of several classes (Gorodkin 2004), from -1 to 1, 0
            where it is not defined.
        """
        labelled, guessed, hit = ([int(v) for v in values.tolist()] for values in (self.labelled, self.guessed, self.hit))
        recalls = [h / t for h, t in zip(hit, labelled, strict=True) if t]
        f1 = [2 * h / (t + p) for h, t, p in zip(hit, labelled, guessed, strict=True) if t + p]
        count = sum(labelled)
        # Python's integers: products of large counts exceed what a float holds exactly.
        covariance = sum(hit) * count - sum(t * p for t, p in zip(labelled, guessed, strict=True))
        spread = (count**2 - sum(t * t for t in labelled)) * (count**2 - sum(p * p for p in guessed))
        return {
            "balanced_accuracy": 100 * sum(recalls) / len(recalls),
            "macro_f1": 100 * sum(f1) / len(f1),
            "mcc": covariance / math.sqrt(spread) if spread else 0.0,
        }


@dataclass(frozen=True)
class Outcomes:
    """What a model says of every image, in the order of the data set.

    Attributes:
        indices: numbers of the images [N], from 0; each once.
        labels: their labels [N].
        guesses: the likeliest classes [N, k], the likeliest first; k is 5, or the number of classes if there are fewer.
        probabilities: of those classes [N, k], by softmax over all classes, from 0 to 1.
    """

    indices: Tensor
    labels: Tensor
    guesses: Tensor
    probabilities: Tensor

    @classmethod
    def of(cls, parts: Sequence[tuple[Tensor, ...]]) -> Outcomes:
        """From the parts of the ranks, in any order."""
        whole = [torch.cat(column) for column in zip(*parts, strict=True)]
        order = whole[0].argsort()
        return cls(*(column[order] for column in whole))


@dataclass(frozen=True)
class Scores:
    """Counts over a data set. `loss` is the mean cross-entropy in nats, `top1` and `top5` are in percent.

    `more` holds the further scores that were asked for; see `ClassCounts.scores`. `classes` and `outcomes` are None unless they were
    asked for.
    """

    count: int
    correct1: int
    correct5: int
    loss: float
    more: dict[str, float] = field(default_factory=dict)
    classes: ClassCounts | None = None
    outcomes: Outcomes | None = None

    @property
    def top1(self) -> float:
        return 100 * self.correct1 / self.count

    @property
    def top5(self) -> float:
        return 100 * self.correct5 / self.count

    def values(self) -> dict[str, float]:
        """All by name."""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5, **self.more}

    def row(self, prefix: str = "") -> dict[str, Any]:
        """All values with a prefix to their names, for a line of metrics."""
        return {f"{prefix}{name}": value for name, value in self.values().items()}
