"""Batch norms on the meta device: allocated, in the shapes that torch gives them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from attn.models.meta import AllocatedNorms


def shapes(norm: nn.Module, x: Tensor, training: bool) -> dict[str, tuple[object, ...]]:
    """What is known of the output and of the gradients of a norm on the meta device."""
    norm.to("meta").train(training).zero_grad()
    x = x.to("meta").requires_grad_()
    out = norm(x)
    out.sum().backward()
    tensors = {"out": out, "x": x.grad, **{name: p.grad for name, p in norm.named_parameters()}}
    return {name: (t.shape, t.stride(), t.dtype, t.device) for name, t in tensors.items() if t is not None}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("norm", "size"),
    [
        (nn.BatchNorm2d(4), (2, 4, 6, 5)),
        (nn.BatchNorm2d(4, affine=False), (2, 4, 6, 5)),
        (nn.BatchNorm2d(4, track_running_stats=False), (2, 4, 6, 5)),
        (nn.BatchNorm1d(4), (3, 4)),
        (nn.BatchNorm1d(4), (3, 4, 7)),
    ],
)
def test_outputs_and_gradients_have_the_shapes_that_torch_computes(
    norm: nn.Module, size: tuple[int, ...], training: bool
) -> None:
    for images in (
        torch.empty(size),
        *([torch.empty(size).to(memory_format=torch.channels_last)] if len(size) == 4 else []),
    ):
        with AllocatedNorms():
            allocated = shapes(norm, images, training)
        assert allocated == shapes(norm, images, training)
        assert len(allocated) == 2 + len(list(norm.parameters()))


@pytest.mark.parametrize("inside", [AllocatedNorms, nullcontext])
def test_a_norm_of_another_width_is_refused_as_by_torch(inside: type) -> None:
    with inside(), pytest.raises((RuntimeError, AssertionError, ValueError)):
        nn.BatchNorm2d(4).to("meta")(torch.empty(2, 6, 3, 3, device="meta"))


def test_values_are_computed_everywhere_else() -> None:
    norm, x = nn.BatchNorm2d(4), torch.randn(2, 4, 3, 3)
    expected = norm(x)
    with AllocatedNorms():
        assert torch.equal(norm(x), expected)
