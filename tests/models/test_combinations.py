"""Options of the computation with every attention: module by module, what they must not change."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import build, fitting
from timm.layers import convert_sync_batchnorm
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

import attn


@pytest.mark.parametrize("attention", attn.list_attentions())
def test_sync_bn_takes_every_batch_norm(attention: str) -> None:
    """torch runs SyncBatchNorm in training on GPUs only; here it is converted, and evaluated. Families: test_models.py."""
    model = build(fitting(attention), attention).eval()
    converted = convert_sync_batchnorm(copy.deepcopy(model)).eval()
    assert not [name for name, m in converted.named_modules() if isinstance(m, (BatchNorm1d, BatchNorm2d))]
    assert sum(isinstance(m, SyncBatchNorm) for m in converted.modules()) == sum(
        isinstance(m, BatchNorm) for m in model.modules()
    )
    assert list(converted.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(converted(x), model(x))


@pytest.mark.parametrize("attention", attn.list_attentions())
def test_checkpointing_with_every_attention(attention: str) -> None:
    same_step(fitting(attention), attention, exact=True, checkpointing=True)


@pytest.mark.parametrize(
    "backbone",
    ["densenet121", "regnety_002", "mobilenetv3_small_050", "convnext_atto", "cifar_resnet18", "shufflenet_v2_x1_0"],
)
def test_checkpointing_with_every_family(backbone: str) -> None:
    same_step(backbone, "se", exact=True, checkpointing=True)


@pytest.mark.parametrize("attention", attn.list_attentions())
def test_channels_last_with_every_attention(attention: str) -> None:
    same_step(fitting(attention), attention, exact=False, channels_last=True)


def same_step(backbone: str, attention: str, exact: bool, checkpointing: bool = False, channels_last: bool = False) -> None:
    """Output, gradients and running statistics of a training step are those without the option."""
    dtype = torch.float32 if exact else torch.float64
    plain = build(backbone, attention).to(dtype).train()
    model = copy.deepcopy(plain)
    if checkpointing:
        model.set_grad_checkpointing(True)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    images = torch.randn(4, 3, 64, 64, dtype=dtype)
    outputs = []
    for each, x in ((plain, images), (model, images.to(memory_format=layout))):
        torch.manual_seed(1)
        outputs.append(each(x))
        outputs[-1].square().mean().backward()
    tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-6, "atol": 1e-9}
    torch.testing.assert_close(outputs[1], outputs[0], **tolerance)
    for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    for (name, p), q in zip(plain.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(q, p, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
