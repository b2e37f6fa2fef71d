"""attn.fuse: the same outputs as the network that it was made of, with fewer layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import build
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

import attn
from attn.attention import Attention, Gate, Site
from attn.backbones.folded import Bottleneck

# The smallest network of each family, or all that is in configs/backbone where it is small; each with its options and a size.
BACKBONES: dict[str, tuple[dict[str, Any], int]] = {
    "cifar_resnext29_8x64d": ({"base_width": 8, "layers": (1, 1, 1)}, 32),
    "cifar_preresnet110": ({"depths": (2, 2, 2)}, 32),
    "cifar_preresnet110_bottleneck": ({"depths": (2, 2, 2)}, 32),
    "cifar_wrn28_8": ({"depths": (1, 1, 1), "widths": (32, 64, 128)}, 32),
    "cifar_densenet100": ({"block_config": (2, 2, 2)}, 32),
    "cifar_efficientnet_b0": ({}, 32),
    "cifar_mobilenetv2": ({}, 32),
    "cifar_shufflenetv2": ({}, 32),
    "shufflenet_v2_x0_5": ({}, 32),
    "resnet10t": ({}, 32),
    "resnetblur50": ({"layers": (1, 1, 1, 1)}, 64),
    "seresnet50": ({"layers": (1, 1, 1, 1)}, 64),
    "densenet121": ({"block_config": (2, 2, 2, 2)}, 64),
    "efficientnet_b0": ({}, 32),
    "tf_efficientnet_b0": ({}, 32),
    "efficientnet_es": ({}, 32),
    "mixnet_s": ({}, 32),
    "mnasnet_050": ({}, 32),
    "mobilenetv1_100": ({}, 32),
    "mobilenetv2_035": ({}, 32),
    "mobilenetv3_small_050": ({}, 32),
    "mobilenetv4_conv_small": ({}, 32),
    "regnety_002": ({}, 32),
    "regnetz_005": ({}, 32),
    "convnext_atto": ({}, 32),
    "swin_tiny_patch4_window7_224": ({"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}, 224),
    "vit_tiny_patch16_224": ({"depth": 2}, 224),
    "deit_tiny_patch16_224": ({"depth": 2}, 224),
    "pvt_v2_b0": ({"depths": (1, 1, 1, 1)}, 64),
}


def unusual(model: nn.Module) -> nn.Module:
    """In evaluation mode, with norms, biases and scales that are not those of a new network."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
    for parameter in model.parameters():
        if parameter.ndim <= 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


@torch.no_grad()
def check(model: nn.Module, size: int) -> nn.Module:
    """The folded network, after a comparison in float32, and of the features in float64."""
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(3, 3, size, size)
    fused = attn.fuse(model, images)
    expected = model(images)
    assert (fused(images) - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))

    model64, images = copy.deepcopy(model).double(), images[:2].double()
    exact = attn.fuse(model64, images)
    torch.testing.assert_close(exact(images), model64(images), rtol=1e-9, atol=1e-9)
    given, own = model64.forward_intermediates(images)[1], exact.forward_intermediates(images)[1]
    torch.testing.assert_close(own, given, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, nn.Dropout) for module in fused.modules())
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    return fused


@pytest.mark.parametrize("attention", attn.list_attentions())
def test_outputs_with_every_attention(attention: str) -> None:
    check(unusual(build("resnet50", attention)), 32)


@pytest.mark.parametrize("attention", ["aa", "ba", "dca_sk", "srm"])
def test_outputs_in_basic_blocks(attention: str) -> None:
    check(unusual(build("resnet18", attention)), 32)


@pytest.mark.parametrize("attention", ["aw_cbam", "dca_se"])
def test_outputs_in_mobile_blocks(attention: str) -> None:
    check(unusual(build("mobilenetv3_small_050", attention)), 32)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_outputs_of_every_family(backbone: str) -> None:
    options, size = BACKBONES[backbone]
    one = backbone == "mobilenetv1_100"  # its blocks have one convolution before the gate: nothing to bridge
    gate = {"block": {"_target_": "attn.modules.se.SE" if one else "attn.modules.ba.BA", "reduction": 4}}
    torch.manual_seed(0)
    check(unusual(attn.create_model(backbone, gate, 8, **options)), size)


def left(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, BatchNorm)]


@pytest.mark.parametrize(
    "attention", ["none", "se", "ba", "ba_v2", "ba_fca", "dca_se", "aw", "sk", "bam", "cbam", "ge_theta"]
)
def test_no_norm_is_left(attention: str) -> None:
    model = build("resnet50", attention)
    assert left(model)
    assert left(attn.fuse(model)) == []


def test_norms_before_an_activation_stay() -> None:
    model = unusual(attn.create_model("cifar_preresnet110", "se", 10, depths=(1, 1, 1)))
    assert sorted({name.split(".")[-1] for name in left(attn.fuse(model))}) == ["bn1", "norm"]


def test_ba_and_ba_v2_become_one_matrix() -> None:
    for attention in ("ba", "ba_v2"):
        fused = attn.fuse(build("resnet50", attention))
        gate = fused.layer1[0].se
        linears = [name for name, module in gate.named_modules() if isinstance(module, nn.Linear)]
        assert linears == ["bridge", "expand"]
        assert gate.bridge.in_features == 16 + 16 + 64


def test_what_only_training_needs_is_gone() -> None:
    assert not [name for name in attn.fuse(build("resnet50", "dreal")).state_dict() if "critic" in name or "view" in name]
    assert not [name for name in attn.fuse(build("resnet50", "ba2m")).state_dict() if ".attn." in name]
    kept = attn.create_model("resnet18", {"stage": {"_target_": "attn.modules.ba2m.BA2M", "inference": "softmax"}}, 8)
    check(unusual(kept), 64)


def test_it_cannot_be_trained() -> None:
    fused = attn.fuse(build("resnet50", "ba"))
    assert not fused.training
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert fused.eval() is fused
    with pytest.raises(RuntimeError, match=r"a model of attn\.fuse cannot be trained"):
        fused.train()
    with pytest.raises(RuntimeError, match="cannot be trained"):
        attn.fuse(attn.create_model("vit_tiny_patch16_224", depth=1)).train()


def test_gradients_to_the_images() -> None:
    """The map is overwritten only where no gradient is asked for."""
    model = unusual(build("resnet50", "ba")).double()
    given, own = (
        torch.linspace(-1, 1, 3 * 64 * 64, dtype=torch.double).reshape(1, 3, 64, 64).requires_grad_() for _ in "ab"
    )
    model(given).square().sum().backward()
    attn.fuse(model)(own).square().sum().backward()
    torch.testing.assert_close(own.grad, given.grad)


def test_a_model_of_timm_and_a_plain_sequence() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    net.append(nn.BatchNorm1d(4))
    net = unusual(net)
    fused = attn.fuse(net, torch.empty(2, 3, 16, 16))
    images = torch.randn(2, 3, 16, 16)
    assert left(fused) == []
    torch.testing.assert_close(fused(images), net(images))


class Reader(nn.Module):
    """A convolution whose output is read twice, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(y) + y
        return self.norm2(self.twice(z)) + self.twice(z)


def test_a_layer_that_something_else_reads_is_not_changed() -> None:
    net = unusual(Reader())
    fused, images = attn.fuse(net, torch.empty(1, 3, 8, 8)), torch.randn(2, 3, 8, 8)
    assert left(fused) == ["norm", "norm2"]
    torch.testing.assert_close(fused(images), net(images))


def test_hooks_stay() -> None:
    model, seen = build("resnet50", "se"), []
    model.layer1[0].conv3.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    fused = attn.fuse(model)
    assert left(fused) == ["layer1.0.bn3"]
    with torch.no_grad():
        fused(torch.randn(1, 3, 64, 64))
    assert len(seen) == 1


def test_the_fused_kernels_give_way_to_plain_modules(kernel_cache: Any) -> None:
    model = build("resnet50", "ba")
    attn.models.create.set_kernels(model, "auto")
    check(unusual(model), 64)


class Values(Gate):
    """A gate that looks at values."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.width = site.width

    def excite(self, z: Tensor) -> Tensor:
        return z.sigmoid() if float(z.sum()) > 0 else z.tanh()


def test_an_attention_that_needs_values() -> None:
    model = unusual(attn.create_model("resnet18", {"block": Values}, 8, layers=(1, 1, 1, 1), channels=[16, 32, 48, 64]))
    assert left(check(model, 64)) == []


def test_an_image_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"fuse: the network cannot run on images \(1, 1, 32, 32\)"):
        attn.fuse(build("resnet50", "se"), torch.empty(1, 1, 32, 32))


def test_blocks_of_other_attentions_keep_their_form() -> None:
    """Spatial attention needs the map itself."""
    kinds = {
        name: any(isinstance(m, Bottleneck) for m in attn.fuse(build("resnet50", name)).modules()) for name in ("ba", "cbam")
    }
    assert kinds == {"ba": True, "cbam": False}
    assert issubclass(Bottleneck, attn.backbones.resnet.Bottleneck)
    assert not issubclass(Bottleneck, Attention)
