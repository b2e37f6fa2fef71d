"""The networks for small images: the papers' sizes and operations, and their equations."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor

import attn
from attn.config import groups
from attn.models import flops

# Parameters at 100 (ImageNet: 1000) classes: those that the rows of BA2M's tables were found to have.
SIZES = {
    ("cifar_resnet18", "none"): 11220132,
    ("cifar_resnet50", "none"): 23705252,
    ("cifar_resnet50", "se"): 26236244,
    ("cifar_resnet101", "none"): 42697380,
    ("cifar_preresnet110", "none"): 1733812,
    ("cifar_preresnet110_bottleneck", "none"): 1169972,
    ("cifar_wrn28_8", "none"): 23401012,
    ("cifar_wrn28_8", "se"): 23576852,
    ("cifar_wrn28_10", "none"): 36536884,
    ("cifar_resnext29_8x64d", "none"): 34518948,
    ("cifar_densenet100", "none"): 800032,
    ("cifar_shufflenetv2", "none"): 1360896,
    ("cifar_mobilenetv2", "none"): 2369380,
    ("cifar_efficientnet_b0", "none"): 2940979,
    ("wrn18_15", "none"): 25875816,
    ("wrn18_15", "se"): 26074716,
    ("wrn18_2", "none"): 45618216,
    ("wrn18_2", "se"): 45970456,
    ("resnet18", "se"): 11778592,
}
# Multiply-adds of one 32x32 image, in G, as printed; ResNets are printed with another stride, ResNeXt too.
PRINTED_G = {
    "cifar_preresnet110": 0.25,
    "cifar_wrn28_8": 3.36,
    "cifar_wrn28_10": 5.24,
    "cifar_densenet100": 0.29,
    "cifar_shufflenetv2": 0.05,
    "cifar_mobilenetv2": 0.07,
    "cifar_efficientnet_b0": 0.03,
}
# Channels and sides of the maps that a 32x32 image gives.
MAPS = {
    "cifar_resnet18": [(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)],
    "cifar_resnext29_8x64d": [(64, 32), (256, 32), (512, 16), (1024, 8)],
    "cifar_preresnet110": [(16, 32), (16, 32), (32, 16), (64, 8)],
    "cifar_preresnet110_bottleneck": [(16, 32), (64, 32), (128, 16), (256, 8)],
    "cifar_wrn28_8": [(16, 32), (128, 32), (256, 16), (512, 8)],
    "cifar_densenet100": [(24, 32), (216, 32), (300, 16), (342, 8)],
    "cifar_shufflenetv2": [(24, 32), (116, 16), (232, 8), (464, 4)],
    "cifar_efficientnet_b0": [(32, 32), (16, 16), (24, 16), (40, 8), (80, 4), (112, 4), (192, 2), (320, 1)],
}
SMALL = {
    "cifar_preresnet110": {"depths": (2, 2, 2)},
    "cifar_preresnet110_bottleneck": {"depths": (2, 1, 1)},
    "cifar_wrn28_8": {"widths": (32, 48, 64), "depths": (2, 1, 1)},
    "cifar_resnext29_8x64d": {"base_width": 8, "layers": (2, 1, 1)},
    "cifar_densenet100": {"block_config": (2, 2, 2), "growth_rate": 16},
    "cifar_shufflenetv2": {},
    "cifar_mobilenetv2": {},
    "cifar_efficientnet_b0": {},
}


def small(name: str, attention: Any = None, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return attn.create_model(name, attention, 10, **SMALL[name], **kwargs)


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("backbone", "attention"), SIZES)
def test_sizes(backbone: str, attention: str) -> None:
    with torch.device("meta"):
        model = attn.create_model(backbone, attention, 100 if backbone.startswith("cifar") else 1000)
    assert sum(p.numel() for p in model.parameters()) == SIZES[backbone, attention]


@pytest.mark.parametrize(
    ("backbone", "options", "size"),
    [
        ("cifar_preresnet110_bottleneck", {"reduction": 2}, 1954992),
        ("cifar_wrn28_10", {"reduction": 4}, 38368236),
        ("cifar_resnext29_8x64d", {"reduction": 8}, 36469216),
        ("cifar_densenet100", {"reduction": 16, "stages": [1, 2]}, 821653),
        ("cifar_efficientnet_b0", {"reduction": 2, "stages": [4, 5, 6, 7]}, 4383379),
        ("wrn18_15", {"reduction": 3}, 29827592),
    ],
)
def test_sizes_with_ba2m(backbone: str, options: dict[str, Any], size: int) -> None:
    """The stage slot is where BA2M's printed sizes require it."""
    mapping = groups.load("attention", "ba2m")
    mapping["stage"].update(variant="fitted", **options)
    with torch.device("meta"):
        model = attn.create_model(backbone, mapping, 100 if backbone.startswith("cifar") else 1000)
    assert sum(p.numel() for p in model.parameters()) == size


@pytest.mark.parametrize("backbone", PRINTED_G)
def test_operations(backbone: str) -> None:
    with torch.device("meta"):
        model = attn.create_model(backbone, None, 100)
    # DenseNet is printed without its norms: 0.288.
    count = flops.count(model, (3, 32, 32))
    assert PRINTED_G[backbone] in (round(count.ptflops / 1e9, 2), round(count.macs / 1e9, 2))


@pytest.mark.parametrize("backbone", MAPS)
def test_maps(backbone: str) -> None:
    with torch.device("meta"):
        model: Any = attn.create_model(backbone, None, 100).eval()
        _, maps = model.forward_intermediates(torch.empty(1, 3, 32, 32))
    assert [(m.shape[1], m.shape[2]) for m in maps] == MAPS[backbone]
    assert [(i["num_chs"], 32 // i["reduction"]) for i in model.feature_info] == MAPS[backbone]


@pytest.mark.parametrize("name", SMALL)
def test_every_network_learns_and_keeps_timms_interface(name: str) -> None:
    model = small(name, "se", drop_rate=0.1).train()
    model.set_grad_checkpointing()
    model(images()).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []

    model.eval()
    with torch.no_grad():
        y = model(images())
        torch.testing.assert_close(model(images()[:1]), y[:1], atol=1e-5, rtol=1e-5)
        last, maps = model.forward_intermediates(images())
        assert torch.equal(model.forward_head(last), y)
        features = small(name, "se", features_only=True).eval()
        features.model.load_state_dict(model.state_dict(), strict=False)
        assert len(maps) == len(model.feature_info)
        for one, other in zip(features(images()), maps, strict=True):
            assert torch.equal(one, other)
        two = small(name, "se", features_only=True, out_indices=(0, 2)).eval()
        two.model.load_state_dict(model.state_dict(), strict=False)
        assert all(torch.equal(a, b) for a, b in zip(two(images()), (maps[0], maps[2]), strict=True))
        assert sum(p.numel() for p in two.parameters()) < sum(p.numel() for p in features.parameters())
        model.reset_classifier(3)
        assert model(images()).shape == (2, 3)
        model.reset_classifier(0, "")
        assert model(images()).shape == last.shape
    assert attn.create_model(name, None, 10, in_chans=1, **SMALL[name])(images()[:, :1]).shape == (2, 10)


@pytest.mark.parametrize("name", ["cifar_preresnet110", "cifar_efficientnet_b0"])
def test_compiled_and_exported_whole(name: str) -> None:
    model = small(name, "se").eval()
    with torch.no_grad():
        expected = model(images())
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images()), expected)
        torch.testing.assert_close(torch.export.export(model, (images(),)).module()(images()), expected)


@pytest.mark.parametrize("name", [*SMALL, "cifar_resnet18", "cifar_resnet50", "wrn18_15"])
def test_timm_finds_them(name: str) -> None:
    attn.create_model("cifar_efficientnet_b0")
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=10)
        ours: Any = attn.create_model(name, None, 10)
        x = torch.empty(2, 3, 32, 32)
        assert theirs.eval()(x).shape == (2, 10)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert ours.pretrained_cfg["input_size"] == ((3, 32, 32) if name.startswith("cifar") else (3, 224, 224))


@pytest.mark.parametrize("name", ["cifar_wrn28_8", "cifar_shufflenetv2", "cifar_efficientnet_b0"])
def test_layer_wise_learning_rates_follow_the_depth(name: str) -> None:
    model = small(name)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    first, last = next(model.parameters()), model.get_classifier().weight
    blocks = [scale[id(p)] for n, p in model.named_parameters() if n.startswith(("layer", "stage", "blocks"))]
    assert scale[id(first)] < blocks[0] < blocks[-1] < scale[id(last)]
    assert blocks == sorted(blocks)


def norm(x: Tensor, bn: Any) -> Tensor:
    return F.relu(F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias))


def shake(model: Any) -> Any:
    """Gives the norms random values."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def test_wide_resnet_is_its_equations() -> None:
    """Zagoruyko and Komodakis: x + conv(relu(bn(conv(relu(bn(x)))))); a new width is projected from the activated map."""
    model = shake(small("cifar_wrn28_8"))
    x = F.conv2d(images(), model.conv1.weight, padding=1)
    for i, stage in enumerate((model.layer1, model.layer2, model.layer3)):
        for j, block in enumerate(stage):
            stride = 2 if i and j == 0 else 1
            a = norm(x, block.bn1)
            y = F.conv2d(a, block.conv1.weight, stride=stride, padding=1)
            y = F.conv2d(norm(y, block.bn2), block.conv2.weight, padding=1)
            x = y + (F.conv2d(a, block.downsample.weight, stride=stride) if j == 0 else x)
    expected = norm(x, model.norm).mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(images()), expected)


def test_preresnet_pads_its_shortcuts_with_zeros() -> None:
    model = shake(small("cifar_preresnet110"))
    x = F.conv2d(images(), model.conv1.weight, padding=1)
    for i, stage in enumerate((model.layer1, model.layer2, model.layer3)):
        for j, block in enumerate(stage):
            stride = 2 if i and j == 0 else 1
            y = F.conv2d(norm(x, block.bn1), block.conv1.weight, stride=stride, padding=1)
            y = F.conv2d(norm(y, block.bn2), block.conv2.weight, padding=1)
            y[:, : x.shape[1]] += x[:, :, ::stride, ::stride]
            x = y
    expected = norm(x, model.norm).mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(images()), expected)


def test_efficientnet_is_its_equations() -> None:
    model = shake(small("cifar_efficientnet_b0"))
    x = norm(F.conv2d(images(), model.conv_stem.weight, padding=1), model.bn1)
    for stage in model.blocks:
        for j, block in enumerate(stage):
            stride = block.conv_dw.stride[0]
            y = norm(F.conv2d(x, block.conv_pw.weight), block.bn1)
            y = norm(F.conv2d(y, block.conv_dw.weight, stride=stride, padding=1, groups=y.shape[1]), block.bn2)
            y = F.conv2d(y, block.conv_pwl.weight)
            bn = block.bn3
            y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias)
            gate = F.relu(F.conv2d(y.mean((2, 3), keepdim=True), block.se.conv_reduce.weight, block.se.conv_reduce.bias))
            gate = F.conv2d(gate, block.se.conv_expand.weight, block.se.conv_expand.bias).sigmoid()
            if stride == 2:
                x = y * gate + y
            elif j > 0:
                x = y * gate + x
            else:
                conv, bn = block.shortcut
                short = F.batch_norm(F.conv2d(x, conv.weight), bn.running_mean, bn.running_var, bn.weight, bn.bias)
                x = y * gate + short
    torch.testing.assert_close(model(images()), x.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias)


@pytest.mark.parametrize(("name", "conv"), [("cifar_wrn28_8", "conv1"), ("cifar_preresnet110_bottleneck", "conv2")])
def test_conv_slot_is_the_one_with_norm_and_activation(name: str, conv: str) -> None:
    """SK has its own norm and activation, so the block's are removed; AA, too, replaces the first of a wide block."""
    plain, model = small(name), small(name, "sk").train()
    block, number = model.layer2[0], int(conv[-1]) + 1
    assert type(getattr(block, conv)).__name__ == "SK"
    assert isinstance(getattr(block, f"bn{number}"), torch.nn.Identity)
    assert isinstance(getattr(block, f"act{number}"), torch.nn.Identity)
    assert model.layer2[0](plain.layer1((plain.stem(images()), (None, None))))[0].shape[2:] == (16, 16)
    model(images()).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_stochastic_depth_drops_branches() -> None:
    model = small("cifar_preresnet110", drop_path_rate=0.5)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for s in model.stages() for b in s]
    assert rates[0] == 0.0
    assert rates == sorted(rates)
    assert rates[-1] == 0.5
    model.train()
    assert not torch.equal(model(images(8)), model(images(8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "wide"}, "block='wide' must be one of 'basic', 'bottleneck'"),
        ({"shortcut": "pool"}, "shortcut='pool' must be one of 'conv', 'pad'"),
        ({"depths": (1, 2)}, r"depths=\[1, 2\].*three of each"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attn.create_model("cifar_wrn28_8", None, 10, **options)


def test_output_stride_counts_the_strides_of_the_small_form() -> None:
    with torch.device("meta"):
        model: Any = attn.create_model("cifar_resnet18", None, 10, output_stride=4)
        assert model.forward_features(torch.empty(1, 3, 32, 32)).shape[2:] == (8, 8)
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2, 4, 4]
