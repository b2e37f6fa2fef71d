"""The counter: the papers' printed numbers, and each rule of the conventions by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn
from attn.models import flops


def build(backbone: str, attention: str | None) -> nn.Module:
    with torch.device("meta"):
        return attn.create_model(backbone, attention)


@pytest.mark.parametrize(
    ("backbone", "attention", "printed"),
    [
        ("resnet50", None, 4.1219),
        ("resnet101", None, 7.8495),
        ("resnet152", None, 11.5807),
        ("resnet50", "se", 4.1300),
        ("resnet50", "eca", 4.1275),
        ("resnet50", "ba", 4.1339),
        ("resnet50", "dca_se", 4.1305),
    ],
)
def test_the_papers_convention_gives_the_papers_numbers(backbone: str, attention: str | None, printed: float) -> None:
    """BA-Net and DCANet print these numbers to two digits; four were measured from the authors' modules."""
    assert round(flops.count(build(backbone, attention)).ptflops / 1e9, 4) == printed


def test_macs_are_convolutions_and_linear_layers() -> None:
    found = flops.count(build("resnet50", None))
    assert round(found.macs / 1e9, 3) == 4.089
    assert found.params == 25_557_032


def test_functional_and_module_pooling_count_alike() -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(x).flatten(1)

    for network in (Functional(), Pooled()):
        assert flops.count(network, (8, 6, 5)) == flops.Count(params=0, ptflops=8 * 6 * 5, macs=0)


class Rules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 10)
        self.norm1d = nn.BatchNorm1d(10)
        self.tied = nn.Linear(6, 10)
        self.tied.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.conv(x)))  # 6 x 4 x 4
        x = F.max_pool2d(x, 2)  # reads 6 x 4 x 4
        by_channel = x.mean(1, keepdim=True)  # no pooling over the map: free
        x = (x * by_channel.sigmoid()).flatten(2)  # 6 x 4
        x = x @ (x.transpose(1, 2) @ x)  # a product of activations: 2 x 6 x 4 x 4
        z = x.mean(2)
        return self.norm1d(self.fc(z)) + self.tied(z)


@pytest.mark.parametrize("training", [False, True])
def test_every_rule_by_hand(training: bool) -> None:
    positions = 4 * 4
    conv, fc = 6 * 2 * 9 * positions, 6 * 10
    ptflops = (conv + 6 * positions) + 2 * 6 * positions + 6 * positions + 6 * positions + 2 * fc
    macs = conv + 2 * fc + 2 * 6 * 4 * 4
    params = (6 * 2 * 9 + 6) + 12 + (60 + 10) + 20 + 10
    network = Rules().train(not training)
    assert flops.count(network, (4, 8, 8), training) == flops.Count(params, ptflops, macs)
    assert network.training is not training
    assert network.norm.num_batches_tracked == 0
    assert network.conv.weight.device.type == "cpu"


def test_frozen_parameters_are_not_trainable() -> None:
    network = Rules()
    network.conv.requires_grad_(False)
    assert flops.parameters(network) == flops.parameters(Rules()) - (6 * 2 * 9 + 6)


@pytest.mark.parametrize(("backbone", "first"), [("resnet50", 3.858), ("resnext50_32x4d", 3.768), ("resnet18", 1.814)])
def test_the_stride_in_the_first_convolution(backbone: str, first: float) -> None:
    """As ResNet-50 and ResNeXt-50 are printed where they are copied; a network of basic blocks has no such choice."""
    model = attn.create_model(backbone)
    before = flops.count(model)
    moved = flops.count(flops.stride_in_first(model))
    assert round(moved.macs / 1e9, 3) == first
    assert moved.params == before.params
    assert flops.count(model) == before
    assert (moved.macs == before.macs) == (backbone == "resnet18")
