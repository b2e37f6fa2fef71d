"""Every attention on every family: it builds, learns, and survives what torch does to models."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from collections import deque
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import attn
from attn.backbones import families, family_of
from attn.config import groups
from attn.models.auxiliary import extra_loss
from attn.modules.strip import Strip

# The smallest member of each family that still has every kind of block, and the side of its images in pixels.
MINIS: dict[str, tuple[dict[str, Any], int]] = {
    "ResNet": ({"backbone": "resnet50", "layers": (1, 2, 1, 1), "channels": (32, 64, 96, 128)}, 64),
    "BasicResNet": ({"backbone": "resnet18", "layers": (1, 2, 1, 1)}, 64),
    "EfficientNet": ({"backbone": "efficientnet_b0"}, 64),
    "MobileNetV3": ({"backbone": "mobilenetv3_small_100"}, 64),
    "DenseNet": ({"backbone": "densenet121", "growth_rate": 32, "block_config": (2, 2, 2, 2)}, 64),
    "RegNet": ({"backbone": "regnety_002"}, 64),
    "ConvNeXt": ({"backbone": "convnext_atto", "depths": (1, 2, 1, 1)}, 64),
    "Swin": (
        {
            "backbone": "swin_tiny_patch4_window7_224",
            "depths": (1, 2, 1, 1),
            "embed_dim": 48,
            "img_size": 64,
            "window_size": 2,
        },
        64,
    ),
    "ViT": ({"backbone": "deit_small_patch16_224", "embed_dim": 64, "depth": 3, "num_heads": 4, "img_size": 64}, 64),
    "PVT": (
        {"backbone": "pvt_v2_b0", "depths": (1, 2, 1, 1), "embed_dims": (64, 64, 128, 128), "num_heads": (1, 2, 4, 4)},
        64,
    ),
    "ShuffleNetV2": ({"backbone": "shufflenet_v2_x1_0"}, 64),
    "PreActResNet": ({"backbone": "cifar_preresnet110", "depths": (2, 1, 1), "widths": (32, 64, 96)}, 16),
    "CifarEfficientNet": ({"backbone": "cifar_efficientnet_b0"}, 32),
}
CLASSES = 10


def build(family: str, attention: Any, **kwargs: Any) -> nn.Module:
    options = {**MINIS[family][0], **kwargs}
    torch.manual_seed(0)
    return attn.create_model(options.pop("backbone"), attention, CLASSES, **options)


def images(family: str, n: int = 2) -> Tensor:
    side = MINIS[family][1]
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def pairings() -> list[tuple[str, str]]:
    return [(family, name) for family in MINIS for name in attn.list_attentions()]


# Invalid arguments, and what the error says.
MOBILE = ("EfficientNet", "MobileNetV3", "CifarEfficientNet")
GROUPED = (*MOBILE, "RegNet", "ConvNeXt", "ShuffleNetV2")
REFUSED: dict[tuple[str, str], str] = {
    **{(family, name): "replaces dense convolutions" for family in GROUPED for name in ("aa", "ea", "sasa")},
    **{(family, name): "its own norm and activation" for family in ("ConvNeXt", "DenseNet") for name in ("sk", "dca_sk")},
    **{
        (family, name): "no convolution to replace"
        for family in ("Swin", "ViT", "PVT")
        for name in attn.list_attentions()
        if "conv" in groups.load("attention", name)
    },
    **{(family, "dia"): "reduction=20 must lie between" for family in ("MobileNetV3", "CifarEfficientNet")},
    **{(family, "sge"): "groups=64 does not divide" for family in (*GROUPED, "DenseNet", "Swin", "PreActResNet")},
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), pairings())
def test_every_pairing_learns(family: str, name: str) -> None:
    if (family, name) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[family, name]) as error:
            build(family, name)
        assert name in str(error.value)
        return
    model = build(family, name)
    model.train()
    x, targets = images(family, 4), torch.tensor([0, 1, 2, 3])
    logits = model(x)
    loss = nn.functional.cross_entropy(logits, targets) + extra_loss(model, x, targets, logits)
    loss.backward()
    assert math.isfinite(loss.item())
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())

    model.eval()
    x = images(family)
    with torch.no_grad():
        both, one = model(x), model(x[:1])
        torch.testing.assert_close(both[:1], one, atol=1e-4 * max(1.0, float(both.abs().max())), rtol=0)


def one_family_each() -> list[tuple[str, str]]:
    """Each attention once, each family several times."""
    families = deque(MINIS)
    chosen = []
    for name in attn.list_attentions():
        chosen.append((next(family for family in families if (family, name) not in REFUSED), name))
        families.rotate(-1)
    assert {family for family, _ in chosen} == set(MINIS)
    return chosen


@pytest.mark.parametrize(("family", "name"), one_family_each())
def test_what_is_loaded_copied_or_pickled_computes_the_same(family: str, name: str) -> None:
    model, again, x = build(family, name).eval(), build(family, name).eval(), images(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        expected = model(x)
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(x), expected)
        clone = copy.deepcopy(model)
        for parameter in clone.parameters():
            parameter.add_(1.0)
        assert torch.equal(model(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


# Their parts, which are captured by themselves, do not meet.
COMBINED = {"aw_cbam", "aw_se", "bam_ba2m", "cbam_ba2m", "se_ba2m"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(attn.list_attentions()) - COMBINED))
def test_every_attention_is_captured_whole(name: str) -> None:
    """torch.compile without graph breaks in training, torch.export in evaluation: equal outputs."""
    model, x = build("BasicResNet", name, layers=(1, 1, 1, 1)).eval(), images("BasicResNet", 4)
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), model(x), atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()
    logits = torch.compile(model.train(), fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(logits, copy.deepcopy(model)(x), atol=1e-5, rtol=1e-5)
    logits.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ba", "dca_se"])
def test_inductor_agrees(name: str) -> None:
    model, x = build("PreActResNet", name).eval(), images("PreActResNet")
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", attn.list_attentions())
def test_every_attention_trains_under_bf16_and_checkpointing(name: str) -> None:
    """That checkpointing changes no bit is tested in test_combinations.py."""
    family = next(f for f in MINIS if (f, name) not in REFUSED)
    model, x = build(family, name).train(), images(family, 4)
    model.set_grad_checkpointing(True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        (logits.square().mean() + extra_loss(model, x, torch.tensor([0, 1, 2, 3]), logits)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("family", MINIS)
def test_stages_hand_out_their_maps(family: str) -> None:
    for name in ("none", "dca_se", "se_ba2m"):
        if (family, name) in REFUSED:
            continue
        model = build(family, name).eval()
        x = images(family)
        with torch.no_grad():
            last, maps = model.forward_intermediates(x)
            torch.testing.assert_close(last, model.forward_features(x))
            torch.testing.assert_close(model.forward_head(last), model(x))
            extractor = build(family, name, features_only=True).eval()
            extractor.model.load_state_dict(model.state_dict(), strict=False)
            for one, other, info in zip(extractor(x), maps, model.feature_info, strict=True):
                torch.testing.assert_close(one, other)
                assert one.shape[1] == info["num_chs"]
                assert one.shape[2] == math.ceil(x.shape[2] / info["reduction"])
            _, stopped = model.forward_intermediates(x, indices=[1, 2], stop_early=True)
            assert len(stopped) == 2
            torch.testing.assert_close(stopped[1], maps[2])
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet34d", "resnet26t", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "seresnet50", "ecaresnet50d"],
)
def test_without_attention_it_is_timms_network(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10).eval()
    ours = attn.create_model(name, None, 10).eval()
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        for one, other in zip(ours.forward_intermediates(x)[1], theirs.forward_intermediates(x)[1], strict=True):
            assert torch.equal(one, other)


def test_timm_options_arrive() -> None:
    x = torch.randn(2, 1, 64, 64)
    model = attn.create_model("resnet18", "ba", 5, in_chans=1, output_stride=8, drop_path_rate=0.2, drop_rate=0.1)
    assert model.forward_features(x).shape == (2, 512, 8, 8)
    assert model(x).shape == (2, 5)


def test_strip_takes_the_native_attention_away() -> None:
    theirs, stripped = timm.create_model("resnet50"), attn.create_model("seresnet50", "strip")
    assert list(stripped.state_dict()) == list(theirs.state_dict())
    assert any(isinstance(m, Strip) for m in stripped.modules())


def test_sync_batch_norm_conversion_changes_nothing() -> None:
    for family in MINIS:
        for name in ("none", "ba"):
            if (family, name) in REFUSED:
                continue
            model, x = build(family, name).eval(), images(family)
            with torch.no_grad():
                expected = model(x)
                torch.testing.assert_close(timm.layers.convert_sync_batchnorm(copy.deepcopy(model)).eval()(x), expected)


def test_one_image_per_device_trains_by_running_statistics() -> None:
    for name in ("ba", "ba_v2"):
        model = attn.create_model("resnet18", name, 10)
        model.train()
        model(torch.randn(1, 3, 64, 64)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_every_family_is_tested() -> None:
    networks = {family_of(timm_model(options)).network for options, _ in MINIS.values()}  # type: ignore[union-attr]
    assert networks == {family.network for family in families()}


def timm_model(options: dict[str, Any]) -> nn.Module:
    options = dict(options)
    with torch.device("meta"):
        return timm.create_model(options.pop("backbone"), **options)


def test_settings_of_the_mapping() -> None:
    one_key = groups.load("attention", "ba")
    one_key["block"]["reduction"] = 8
    assert attn.create_model("resnet18", one_key, 10).layer1[0].se.expand.weight.shape == (64, 8)
    some = {"block": {"_target_": "attn.modules.se.SE", "stages": [3, 4]}}
    model = attn.create_model("resnet18", some, 10)
    assert model.layer1[0].se is None
    assert model.layer3[0].se is not None


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("sse", "unknown attention 'sse': did you mean 'se'"),
        ({"blok": None}, "unknown attention key 'blok': did you mean 'block'"),
        ({"block": {"_target_": "os.system"}}, "not a subclass of attn.attention.Attention"),
        ({"block": {"_target_": "attn.modules.se.Nothing"}}, "cannot be imported"),
        ({"block": {"_target_": "attn.modules.se.SE", "ratio": 3}}, "its options are: reduction, bias"),
        ({"block": {"_target_": "attn.modules.se.SE", "stages": [5]}}, "no stage 5"),
        ({"block": 3}, "must be a mapping with a _target_"),
        ({"sites": "some"}, "sites='some'"),
    ],
)
def test_bad_mappings(attention: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attn.create_model("resnet18", attention)


def test_unknown_backbones_and_options() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'resnet5': did you mean 'resnet50'"):
        attn.create_model("resnet5")
    with pytest.raises(ValueError, match="nonsense"):
        attn.create_model("resnet18", nonsense=1)
    assert attn.create_model("mixer_s32_224", None, 10)(torch.randn(1, 3, 224, 224)).shape == (1, 10)


def test_import_is_quick() -> None:
    code = "import sys, attn; assert 'torch' not in sys.modules; attn.list_attentions; assert 'timm' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
