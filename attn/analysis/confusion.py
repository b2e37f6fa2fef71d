"""Where a network errs, and how far its confidence can be trusted. Guo et al.: On Calibration of Modern Neural Networks, ICML 2017."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from attn.analysis import images, style
from attn.analysis.files import Table
from attn.analysis.subjects import Subject
from attn.analysis.trace import evaluating
from attn.config.analysis import Confusion
from attn.data.loader import Seeded
from attn.evaluation.evaluate import autocast

FEW = 30  # classes whose names fit beside a matrix


@dataclass(frozen=True)
class Outcome:
    """What a network says of N images with K classes.

    Attributes:
        name: the network.
        label, guess: [N].
        confidence: probability of the guess, [N].
        index: of the image in the data set, [N].
        matrix: number of images by label (row) and guess (column), [K, K].
    """

    name: str
    label: np.ndarray
    guess: np.ndarray
    confidence: np.ndarray
    index: np.ndarray
    matrix: np.ndarray

    def accuracy(self) -> float:
        """In percent."""
        return 100 * float((self.label == self.guess).mean())

    def class_accuracy(self) -> np.ndarray:
        """Of the images of each class, in percent, [K]; NaN for a class without images."""
        with np.errstate(invalid="ignore"):
            return 100 * np.diag(self.matrix) / self.matrix.sum(1)

    def mistakes(self, count: int) -> np.ndarray:
        """Positions of the wrong guesses of the highest confidence, the most confident first."""
        wrong = np.flatnonzero(self.label != self.guess)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:count]

    def reliability(self, bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean confidence, accuracy (both 0 to 1, NaN in an empty bin) and images of equal bins of the confidence, each [bins]."""
        place = np.clip(np.ceil(self.confidence * bins).astype(int) - 1, 0, bins - 1)
        counts = np.bincount(place, minlength=bins)
        with np.errstate(invalid="ignore"):
            confidence = np.bincount(place, self.confidence, bins) / counts
            accuracy = np.bincount(place, self.label == self.guess, bins) / counts
        return confidence, accuracy, counts

    def calibration_error(self, bins: int = 15) -> float:
        """ECE: the mean of |accuracy - confidence| over the bins, weighted by their images; from 0 to 1."""
        confidence, accuracy, counts = self.reliability(bins)
        filled = counts > 0
        return float((np.abs(accuracy - confidence)[filled] * counts[filled]).sum() / counts.sum())


@torch.inference_mode()
def measure(
    name: str,
    model: nn.Module,
    data: Seeded,
    indices: Sequence[int] | np.ndarray,
    num_classes: int,
    batch_size: int = 64,
    workers: int | None = 0,
    amp: str | None = None,
) -> Outcome:
    """What a network says of images.

    Args:
        name: the network, for the titles.
        model: the network; the same afterwards.
        data: the images with their transform.
        indices: those to look at.
        num_classes: K.
        batch_size, workers: of the loader.
        amp: precision of autocast: bf16, fp16 or None.
    """
    device = next(model.parameters()).device
    columns: tuple[list[np.ndarray], ...] = ([], [], [])
    with evaluating(model):
        for batch in images.batches(data, indices, batch_size, device, name, workers):
            with autocast(amp, device):
                logits = model(batch.images)
            confidence, guess = logits.double().softmax(1).max(1)
            for found, value in zip(columns, (batch.labels, guess, confidence), strict=True):
                found.append(value.cpu().numpy())
    label, guess, confidence = (np.concatenate(v) for v in columns)
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (label, guess), 1)
    return Outcome(name, label, guess, confidence, np.asarray(indices), matrix)


@style.styled
def draw(
    found: Sequence[Outcome],
    names: Sequence[str],
    shown: Sequence[Sequence[tuple[np.ndarray, str]]] = (),
    bins: int = 15,
) -> Figure:
    """Per network the matrix, the accuracy of each class, the reliability diagram, and below them its mistakes.

    Args:
        found: one per network.
        names: of the classes.
        shown: the pictures of each network's mistakes with their captions.
        bins: of the reliability diagram.
    """
    with_mistakes = any(shown)
    tall = 1.4 if with_mistakes else 0.0
    figure = Figure(figsize=(11, len(found) * (3.4 + tall)), layout="constrained")
    for number, (part, one) in enumerate(zip(figure.subfigures(len(found), 1, squeeze=False)[:, 0], found, strict=True)):
        part.suptitle(f"{one.name}: top-1 {one.accuracy():.2f} % of {len(one.label)} images", fontsize=10)
        upper, lower = part.subfigures(2, 1, height_ratios=(3.0, tall)) if with_mistakes else (part, None)
        matrix, classes, reliability = upper.subplots(1, 3, width_ratios=(1.1, 1, 1))
        _matrix(upper, matrix, one, names)
        _classes(classes, one, names)
        _reliability(reliability, one, bins)
        if lower is not None and number < len(shown) and shown[number]:
            for panel, (picture, caption) in zip(
                lower.subplots(1, len(shown[number]), squeeze=False)[0], shown[number], strict=True
            ):
                panel.imshow(picture)
                panel.set_title(caption, fontsize=7)
                panel.set_xticks([])
                panel.set_yticks([])
    return figure


def _matrix(figure: Figure, axes: Any, one: Outcome, names: Sequence[str]) -> None:
    with np.errstate(invalid="ignore"):
        shares = one.matrix / one.matrix.sum(1, keepdims=True)
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap=style.RAMP)
    axes.set(title="guesses, as shares of a label's images", xlabel="guess", ylabel="label")
    if len(names) <= FEW:
        turned = max(map(len, names)) > 2
        axes.set_xticks(range(len(names)), names, rotation=90 if turned else 0, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    if len(names) <= 12:
        for (i, j), count in np.ndenumerate(one.matrix):
            if count:
                light = shares[i, j] < 0.6
                axes.text(j, i, str(count), ha="center", va="center", fontsize=6, color="white" if light else "black")
    figure.colorbar(picture, ax=axes)


def _classes(panel: Any, one: Outcome, names: Sequence[str]) -> None:
    accuracy = one.class_accuracy()
    order = np.argsort(accuracy)
    panel.barh(range(len(order)), accuracy[order], color=style.colour(0))
    if len(names) <= FEW:
        panel.set_yticks(range(len(order)), [names[i] for i in order], fontsize=7)
    else:
        panel.set_ylabel("classes, from the worst to the best")
    panel.axvline(one.accuracy(), color=style.colour(1), linewidth=1)
    panel.set(title="accuracy of each class (line: all)", xlabel="%", xlim=(0, 100))


def _reliability(panel: Any, one: Outcome, bins: int) -> None:
    confidence, accuracy, counts = one.reliability(bins)
    edges = np.linspace(0, 1, bins + 1)
    filled = counts > 0
    panel.bar(
        edges[:-1][filled],
        accuracy[filled],
        1 / bins,
        align="edge",
        color=style.colour(5),
        edgecolor="white",
    )
    panel.plot(confidence[filled], accuracy[filled], "o", markersize=3, color=style.colour(0))
    panel.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    panel.set(
        title=f"reliability, ECE {100 * one.calibration_error(bins):.2f} %",
        xlabel="confidence (dots: its mean)",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1),
    )


def table(found: Sequence[Outcome], names: Sequence[str], bins: int = 15) -> Table:
    """Rows of four kinds: a cell of the matrix that is not 0, the accuracy of a class, a bin of the confidence, and the ECE."""
    rows: list[tuple[object, ...]] = []
    for one in found:
        rows += [(one.name, "images", names[i], names[j], int(one.matrix[i, j])) for i, j in np.argwhere(one.matrix > 0)]
        rows += [(one.name, "class_accuracy", names[i], "", float(v)) for i, v in enumerate(one.class_accuracy())]
        confidence, accuracy, counts = one.reliability(bins)
        for at in np.flatnonzero(counts):
            rows.append((one.name, "bin_accuracy", float(confidence[at]), int(counts[at]), float(accuracy[at])))
        rows.append((one.name, "ece", "", "", one.calibration_error(bins)))
        rows += [
            (
                one.name,
                "mistake",
                names[one.label[at]],
                names[one.guess[at]],
                f"image {one.index[at]}: {one.confidence[at]:.6f}",
            )
            for at in one.mistakes(len(one.label))
        ]
    return Table(("network", "what", "label_or_confidence", "guess_or_images", "value"), rows)


def run(subjects: Sequence[Subject], options: Confusion) -> tuple[Figure, Table]:
    """The job of `scripts/analyse.py confusion`."""
    count = subjects[0].cfg.data.num_classes
    names = subjects[0].classes or [str(i) for i in range(count)]
    found, shown = [], []
    for s in subjects:
        chosen = images.sample(len(s.data), options.images, options.seed)
        one = measure(s.name, s.model, s.data, chosen, count, options.batch_size, options.workers, s.cfg.schedule.amp)
        found.append(one)
        pictures = []
        for at in one.mistakes(options.mistakes):
            picture = images.pixels(images.one(s.data, one.index[at])[0][None], s.cfg.data)[0]
            caption = f"{names[one.label[at]]} as {names[one.guess[at]]}\n{100 * one.confidence[at]:.1f} %"
            pictures.append((picture, caption))
        shown.append(pictures)
    return draw(found, names, shown, options.bins), table(found, names, options.bins)
