"""Batches on the way to the device, and values on the way back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from attn.data.ahead import Ahead, Readback
from attn.data.loader import Batch
from attn.errors import UserError

CPU = torch.device("cpu")


def batch(number: int) -> Batch:
    ones = torch.ones(2, dtype=torch.int64)
    return Batch(torch.full((2, 3, 4, 4), number, dtype=torch.uint8), ones, ones * number, ones > 1)


def test_batches_come_in_order_and_end() -> None:
    ahead, seen = Ahead(iter([batch(0), batch(1), batch(2)]), CPU), []
    for one in ahead:
        seen.append(int(one.indices[0]))
        ahead.fetch()
    assert seen == [0, 1, 2]


def test_on_the_cpu_nothing_is_fetched_before_it_is_asked_for() -> None:
    taken: list[int] = []

    def batches() -> Iterator[Batch]:
        for number in range(3):
            taken.append(number)
            yield batch(number)
        raise UserError("the last one is damaged")

    ahead = Ahead(batches(), CPU)
    next(ahead)
    ahead.fetch()
    assert taken == [0]
    next(ahead)
    next(ahead)
    with pytest.raises(UserError, match="damaged"):
        next(ahead)


def test_closing_closes_the_loader() -> None:
    closed: list[bool] = []

    def batches() -> Iterator[Batch]:
        try:
            yield batch(0)
        finally:
            closed.append(True)

    ahead = Ahead(batches(), CPU)
    next(ahead)
    ahead.close()
    assert closed


def test_values_are_those_of_the_moment() -> None:
    values = torch.tensor([1.0, 2.5], dtype=torch.float64)
    assert Readback(values).wait() == [1.0, 2.5]


@pytest.mark.cuda
def test_on_a_gpu_the_next_batch_is_there_in_time() -> None:
    device = torch.device("cuda")
    ahead, seen = Ahead(iter([Batch(*(t.pin_memory() for t in batch(n))) for n in range(5)]), device), []
    for one in ahead:
        seen.append(one.images.float().mean())
        ahead.fetch()
    assert [int(value) for value in seen] == [0, 1, 2, 3, 4]
    assert Readback(torch.stack(seen)).wait() == [0.0, 1.0, 2.0, 3.0, 4.0]
