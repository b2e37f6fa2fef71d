"""Evaluation against plain torch: a consistent mistake is the same on any number of ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attn.config.schema import Data
from attn.data.loader import evaluation_data
from attn.distributed import Ranks
from attn.evaluation.evaluate import Settings, evaluate


@pytest.mark.parametrize("classes", [3, 10])
def test_the_scores_are_those_of_all_images(classes: int) -> None:
    data = evaluation_data(
        Data(name="fake", source="fake", samples=37, num_classes=classes, image_size=8, test_resize=8, workers=0)
    )
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(576, classes)
    )
    statistics = [buffer.clone() for buffer in model.buffers()]
    scores = evaluate(model.train(), data, Ranks(0, 1, torch.device("cpu")), Settings(8))
    assert model.training
    assert all(torch.equal(one, other) for one, other in zip(statistics, model.buffers(), strict=True))
    first = five = loss = 0.0
    with torch.no_grad():
        for index in range(37):
            image, label, *_ = data[0, index]
            logits = model.eval()(image[None])[0].double()
            rank = int((logits > logits[label]).sum())
            first, five = first + (rank < 1), five + (rank < 5)
            loss += float(logits.logsumexp(0) - logits[label])
    assert (scores.count, scores.correct1, scores.correct5) == (37, first, five)
    assert scores.loss == pytest.approx(loss / 37, rel=1e-5)
    assert (scores.top1, scores.top5) == (100 * first / 37, 100 * five / 37)
    assert scores.row("val_") == {"val_loss": scores.loss, "val_top1": scores.top1, "val_top5": scores.top5}
