"""DenseNet, RegNet, ConvNeXt, Swin, ViT, PVT, ShuffleNetV2: timm's networks without attention, and where attentions go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

import attn
from attn.attention import Attention, Site

SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)}
VIT = {"img_size": 64, "embed_dim": 64, "depth": 4, "num_heads": 4}
PVT = {"depths": (1, 2, 1, 1), "embed_dims": (32, 64, 96, 128), "num_heads": (1, 2, 3, 4)}
DENSE = {"growth_rate": 16, "block_config": (2, 3, 2, 2)}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("densenet121", DENSE),
    ("densenet121", {**DENSE, "memory_efficient": True, "drop_rate": 0.2, "proj_drop_rate": 0.2, "in_chans": 1}),
    ("regnetx_002", {}),
    ("regnety_002", {"drop_path_rate": 0.3, "in_chans": 1, "output_stride": 8}),
    ("regnetv_040", {}),
    ("convnext_atto", {"drop_path_rate": 0.3, "in_chans": 1}),
    ("convnext_atto", {"conv_mlp": False, "output_stride": 16}),
    ("convnextv2_atto", {}),
    ("swin_tiny_patch4_window7_224", {**SWIN, "drop_path_rate": 0.3, "in_chans": 1}),
    ("deit_small_patch16_224", {**VIT, "drop_path_rate": 0.3, "in_chans": 1}),
    ("vit_small_patch16_224", {**VIT, "init_values": 0.1, "class_token": False, "global_pool": "avg"}),
    ("vit_small_patch16_224", {**VIT, "block_fn": ParallelScalingBlock}),
    ("pvt_v2_b0", {**PVT, "drop_path_rate": 0.3, "in_chans": 1}),
    ("pvt_v2_b2_li", PVT),
]
MINIS: dict[str, tuple[str, dict[str, Any]]] = {
    "DenseNet": ("densenet121", DENSE),
    "RegNetY": ("regnety_002", {"zero_init_last": False}),
    "RegNetV": ("regnetv_040", {"w0": 24, "wa": 36.44, "wm": 2.49, "depth": 13, "group_size": 8}),
    "ConvNeXt": ("convnext_atto", {}),
    "Swin": ("swin_tiny_patch4_window7_224", SWIN),
    "ViT": ("deit_small_patch16_224", VIT),
    "PVT": ("pvt_v2_b0", PVT),
    "ShuffleNetV2": ("shufflenet_v2_x0_5", {}),
}
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(VARIANTS)]


def images(channels: int = 3, n: int = 2) -> Tensor:
    return torch.randn(n, channels, 64, 64, generator=torch.Generator().manual_seed(0))


def build(mini: str, attention: Any, **kwargs: Any) -> Any:
    name, options = MINIS[mini]
    torch.manual_seed(0)
    return attn.create_model(name, attention, 10, **{**options, **kwargs})


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_without_attention_it_is_timms_network(name: str, options: dict[str, Any]) -> None:
    """Keys, outputs, gradients and running statistics equal timm's bit by bit, with and without checkpointing."""
    theirs = timm.create_model(name, num_classes=10, **options)
    ours: Any = attn.create_model(name, None, 10, **options)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = images(options.get("in_chans", 3))
    for training, checkpointing in ((True, False), (True, True), (False, False)):
        outputs = []
        for model in (theirs, ours):
            model.train(training)
            # timm's own checkpointing updates running statistics twice per step.
            model.set_grad_checkpointing(checkpointing and model is ours)
            model.zero_grad()
            torch.manual_seed(1)
            y = model(x)
            y.square().sum().backward()
            outputs.append(y)
        assert torch.equal(*outputs)
        for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)
        for one, other in zip(theirs.buffers(), ours.buffers(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_without_attention_intermediates_are_timms(name: str, options: dict[str, Any]) -> None:
    theirs: Any = timm.create_model(name, num_classes=10, **options).eval()
    ours: Any = attn.create_model(name, None, 10, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = images(options.get("in_chans", 3))
    with torch.no_grad():
        for asked in ({}, {"indices": [1, 2]}, {"indices": [1, 2], "stop_early": True}, {"indices": 1, "norm": True}):
            (last, maps), (our_last, our_maps) = (
                theirs.forward_intermediates(x, **asked),
                ours.forward_intermediates(x, **asked),
            )
            assert torch.equal(last, our_last)
            assert len(maps) == len(our_maps)
            assert all(torch.equal(*pair) for pair in zip(maps, our_maps, strict=True))
        only = ours.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
        assert torch.equal(only[0], theirs.forward_intermediates(x, indices=[0], intermediates_only=True)[0])
        with pytest.raises(ValueError, match="NCHW"):
            ours.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("mini", MINIS)
@pytest.mark.parametrize("attention", [None, "se"])
def test_features_only_are_the_intermediates(mini: str, attention: str | None) -> None:
    whole = build(mini, attention).eval()
    for chosen in (None, (1, 2)):
        features = build(mini, attention, features_only=True, out_indices=chosen).eval()
        with torch.no_grad():
            found = features(images())
            expected = whole.forward_intermediates(images(), indices=None if chosen is None else list(chosen))[1]
        infos = [whole.feature_info[i] for i in chosen or range(len(whole.feature_info))]
        for one, other, info in zip(found, expected, infos, strict=True):
            assert torch.equal(one, other)
            assert one.shape == (2, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])


@pytest.mark.parametrize("size", ["x0_5", "x1_0", "x1_5", "x2_0"])
def test_shufflenet_is_torchvisions(size: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"shufflenet_v2_{size}")(num_classes=10)
    ours = attn.create_model(f"shufflenet_v2_{size}", None, 10)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for training in (True, False):
        outputs = [model.train(training)(images()) for model in (theirs, ours)]
        assert torch.equal(*outputs)
    for model in (theirs, ours):
        model(images()).square().sum().backward()
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


class Probe(Attention):
    """Checks its inputs against its site, and counts the sites in the state."""

    def __init__(self, site: Site, side: int = 64) -> None:
        super().__init__()
        self.site, self.side = site, side
        self.inner = site.conv or nn.Identity()

    def forward(self, feats: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        site, count = self.site, state or 0
        widths = site.widths if site.conv is None else site.widths[:1]
        assert tuple(f.shape[1] for f in feats) == widths
        assert (count == 0) == (site.prev is None)
        y = self.inner(feats[-1])
        assert y.shape[1] == site.width
        side = self.side // site.stride
        assert y.shape[2:] in ((side, side), (side * side + 1, 1))  # or all tokens of a ViT
        return 0.5 * y, count + 1


def probes(model: nn.Module) -> list[Probe]:
    return [module for module in model.modules() if isinstance(module, Probe)]


@pytest.mark.parametrize("mini", MINIS)
def test_block_slot_sees_the_input_and_the_convolutions(mini: str) -> None:
    model, plain = build(mini, {"block": Probe}).eval(), build(mini, "strip").eval()
    sites = [probe.site for probe in probes(model)]
    assert [site.depth for site in sites] == list(range(len(sites)))
    assert all(site.block == 0 for site, before in zip(sites[1:], sites, strict=False) if site.stage != before.stage)
    assert model.load_state_dict(plain.state_dict(), strict=False).missing_keys == []
    assert not torch.equal(model(images()), plain(images()))


@pytest.mark.parametrize("mini", [m for m in MINIS if m not in ("Swin", "ViT", "PVT")])
def test_conv_slot_holds_the_spatial_convolution(mini: str) -> None:
    model, plain = build(mini, {"conv": Probe}).eval(), build(mini, None)
    found = probes(model)
    assert len(found) == len(probes(build(mini, {"block": Probe})))
    assert all(max(probe.inner.kernel_size) > 1 for probe in found)
    assert model(images()).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("mini", MINIS)
def test_stage_slot_ends_every_stage(mini: str) -> None:
    model = build(mini, {"stage": Probe}).eval()
    assert [probe.site.stage for probe in probes(model)] == {"ShuffleNetV2": [1, 2, 3], "ViT": [1]}.get(mini, [1, 2, 3, 4])
    for probe in probes(model):
        # The stage slot has a state of its own.
        probe.site = Site(**{**vars(probe.site), "prev": None})
    x = images()
    last, maps = model.forward_intermediates(x)
    assert torch.equal(model.forward_head(last), model(x))
    plain = build(mini, None).eval()
    plain.load_state_dict(model.state_dict())
    first = {"ConvNeXt": 0, "Swin": 0, "PVT": 0, "ViT": 3}.get(mini, 1)
    theirs = plain.forward_intermediates(x)[1][first]
    # DenseNet returns the map before the transition, with which the first stage ends.
    torch.testing.assert_close(maps[first], theirs if mini == "DenseNet" else 0.5 * theirs)


def test_densenet_stages_end_with_the_transitions() -> None:
    """Table X of BA2M counts on this: 108 and 150 channels in DenseNet-BC-100."""
    model: Any = attn.create_model("cifar_densenet100", {"stage": Probe}, 100)
    assert [probe.site.width for probe in probes(model)] == [108, 150, 342]
    assert [probe.site.stride for probe in probes(model)] == [2, 4, 4]


@pytest.mark.parametrize(
    ("mini", "network"), [("Swin", "SwinTransformer"), ("ViT", "VisionTransformer"), ("PVT", "PyramidVisionTransformerV2")]
)
def test_transformers_have_no_convolution(mini: str, network: str) -> None:
    with pytest.raises(ValueError, match=rf"{network} has no convolution to replace"):
        build(mini, {"conv": Probe})


def test_masked_tokens_of_a_vit_are_timms() -> None:
    theirs = timm.create_model("deit_small_patch16_224", num_classes=10, **VIT).eval()
    ours: Any = build("ViT", None).eval()
    ours.load_state_dict(theirs.state_dict())
    mask = torch.rand(2, 1, 17, 17, generator=torch.Generator().manual_seed(0)) > 0.3
    for options in ({"attn_mask": mask}, {"is_causal": True}):
        assert torch.equal(ours(images(), **options), theirs(images(), **options))
    assert not torch.equal(ours(images(), attn_mask=mask), ours(images()))


def test_a_vit_of_other_blocks_has_no_slots() -> None:
    with pytest.raises(ValueError, match="VisionTransformer offers no site in the block slot"):
        build("ViT", "se", block_fn=ParallelScalingBlock)


@pytest.mark.parametrize(
    ("name", "blocks"), [("deit_small_patch16_224", 12), ("vit_small_patch16_224", 12), ("pvt_v2_b2", 16)]
)
def test_bridge_attention_in_whole_transformers(name: str, blocks: int) -> None:
    """Its width C / 16 and both branches' outputs: 2 C^2 / 16 + 3 + 2 C / 16 + C^2 / 16 parameters a block."""
    with torch.device("meta"):
        plain: Any = attn.create_model(name)
        model: Any = attn.create_model(name, "ba_v2")
    widths = [
        module.mlp.fc2.out_features for module in model.modules() if hasattr(module, "mlp") and hasattr(module, "gate")
    ]
    assert len(widths) == blocks
    added = sum(3 * c * (c // 16) + 3 + 2 * (c // 16) for c in widths)
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters()) == added


def test_regnet_is_native_where_it_has_squeeze_and_excitation() -> None:
    native = attn.create_model("regnety_002", {"sites": "native", "block": Probe}, 10)
    assert len(probes(native)) == 13
    assert not any(".se.fc" in key for key in native.state_dict())
    with pytest.raises(ValueError, match=r"regnetx_002.*no attention of its own"):
        attn.create_model("regnetx_002", {"sites": "native", "block": Probe}, 10)


def test_regnety_squeeze_and_excitation_takes_timms_weights() -> None:
    """The name of the slot is timm's, and its SE keeps the same names of layers."""
    theirs = timm.create_model("regnety_002", num_classes=10)
    ours = attn.create_model("regnety_002", "se", 10)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("mini", MINIS)
def test_captured_whole_and_trained_under_checkpointing(mini: str) -> None:
    model = build(mini, "ba" if mini == "DenseNet" else "se_ba2m")
    model.eval()
    x = images()
    with torch.no_grad():
        expected = model(x)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-5)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(x[:1]), expected[:1], atol=1e-5, rtol=1e-5)
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    gradients: list[Sequence[Tensor]] = []
    for checkpointing in (False, True):
        model.load_state_dict(state)
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        torch.manual_seed(1)
        model(images(n=4)).square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mini", MINIS)
def test_classifier_can_be_reset(mini: str) -> None:
    model = build(mini, "se").eval()
    model.reset_classifier(3)
    assert model(images()).shape == (2, 3)
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.num_features)
