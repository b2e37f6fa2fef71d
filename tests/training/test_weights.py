"""Weights of images in the loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn.data.loader import Batch
from attn.training.loop import forward


def a_run(weights: Tensor | None) -> Any:
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    return SimpleNamespace(net=model, state=SimpleNamespace(model=model), mixup=None, weights=weights)


def a_batch(rows: slice = slice(None)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(6, 3, generator=generator), torch.tensor([0, 3, 2, 1, 1, 0])
    indices = torch.tensor([5, 0, 9, 2, 2, 7])
    return Batch(*(part[rows] for part in (images, labels, indices, torch.zeros(6, dtype=torch.bool))))


def test_an_image_counts_by_its_weight_whatever_the_parts_of_a_batch() -> None:
    weights = torch.linspace(0.1, 1.0, 10)
    run, batch = a_run(weights), a_batch()
    loss, logits = forward(run, batch, 0.1)
    each = F.cross_entropy(logits, batch.labels, label_smoothing=0.1, reduction="none")
    assert loss.item() == pytest.approx(float((weights[batch.indices] * each.detach()).mean()))
    halves = [forward(run, a_batch(rows), 0.1)[0] for rows in (slice(0, 3), slice(3, 6))]
    assert loss.item() == pytest.approx(sum(half.item() for half in halves) / 2)


def test_without_weights_the_loss_is_what_it_was() -> None:
    """Bit for bit: a run of an older version goes on."""
    loss, logits = forward(a_run(None), a_batch(), 0.1)
    assert torch.equal(loss, F.cross_entropy(logits, a_batch().labels, label_smoothing=0.1))
    assert forward(a_run(torch.ones(10)), a_batch(), 0.1)[0].item() == pytest.approx(loss.item())
