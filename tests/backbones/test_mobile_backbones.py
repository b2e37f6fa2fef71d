"""timm's EfficientNet and MobileNetV3 classes: timm's networks without attention, and attentions at every position."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attn
from attn.attention import Attention, Gate, Site
from attn.config import groups

# Between them every kind of block, convolution, norm, padding and anti-aliasing that timm's builder can make.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("mobilenetv1_100", {}),
    ("mobilenetv1_100h", {"in_chans": 1}),
    ("mobilenetv2_100", {"output_stride": 16, "drop_path_rate": 0.2}),
    ("mnasnet_100", {"bn_momentum": 0.0003, "drop_rate": 0.2}),
    ("semnasnet_100", {}),
    ("efficientnet_b0", {"drop_path_rate": 0.2, "num_classes": 0}),
    ("tf_efficientnet_b0", {"in_chans": 4}),
    ("efficientnet_blur_b0", {}),
    ("efficientnet_cc_b0_4e", {}),
    ("efficientnet_lite0", {"output_stride": 8}),
    ("efficientnet_x_b3", {}),
    ("mixnet_s", {}),
    ("test_efficientnet", {"drop_path_rate": 0.5}),
    ("test_efficientnet_gn", {}),
    ("test_efficientnet_evos", {}),
    ("gc_efficientnetv2_rw_t", {}),
    ("mobilenet_edgetpu_v2_xs", {}),
    ("mobilenetv3_small_100", {"drop_path_rate": 0.3, "drop_rate": 0.2}),
    ("mobilenetv3_large_100", {"bn_eps": 1e-3}),
    ("tf_mobilenetv3_small_minimal_100", {}),
    ("fbnetv3_b", {}),
    ("lcnet_050", {}),
    ("hardcorenas_a", {}),
    ("mobilenetv4_conv_small", {}),
    ("mobilenetv4_conv_blur_medium", {}),
    ("mobilenetv4_hybrid_medium", {"drop_path_rate": 0.1}),
]
SMALL = ["mobilenetv2_035", "mobilenetv3_small_050", "test_efficientnet", "mobilenetv4_conv_small_035"]


def pair(name: str, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """timm's network and ours with the same weights, which are random in every norm too."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, **kwargs)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    ours = attn.create_model(name, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def images(model: nn.Module, n: int = 2, side: int = 64) -> Tensor:
    return torch.randn(n, model.conv_stem.in_channels, side, side, generator=torch.Generator().manual_seed(1))


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("name", "kwargs"), VARIANTS)
def test_without_attention_it_is_timms(name: str, kwargs: dict[str, Any]) -> None:
    theirs, ours = pair(name, **{"num_classes": 10, **kwargs})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.feature_info == theirs.feature_info
    x = images(ours)
    theirs.eval(), ours.eval()
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        assert torch.equal(ours.forward_features(x), theirs.forward_features(x))
        for options in ({}, {"indices": 2}, {"indices": [0, 3], "stop_early": True, "intermediates_only": True}):
            for extra in (False, True):
                a, b = (m.forward_intermediates(x, extra_blocks=extra, **options) for m in (ours, theirs))
                if isinstance(a, tuple):
                    assert torch.equal(a[0], b[0])
                    a, b = a[1], b[1]
                assert equal(a, b)


@pytest.mark.parametrize("name", SMALL)
def test_training_is_timms(name: str) -> None:
    theirs, ours = pair(name, num_classes=10, drop_path_rate=0.5, drop_rate=0.5)
    x = images(ours, 4)
    losses = []
    for model in (theirs, ours):
        model.train()
        torch.manual_seed(1)
        loss = model(x).square().sum()
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), key
    assert equal(list(ours.buffers()), list(theirs.buffers()))


@pytest.mark.parametrize("name", SMALL)
def test_timms_interface(name: str) -> None:
    model = attn.create_model(name, {"block": groups.load("attention", "se")["block"] | {"reduction": 2}}, 10).eval()
    x = images(model)
    with torch.no_grad():
        features = model.forward_features(x)
        assert torch.equal(model.forward_head(features), model(x))
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, features)
        assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
        assert [64 // m.shape[2] for m in maps] == [info["reduction"] for info in model.feature_info]
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)
    with pytest.raises(ValueError, match="only NCHW"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("indices", [(0,), (1, 2), (4,), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("name", SMALL[:3])
def test_features_only_keeps_what_it_needs(name: str, indices: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    attention = {"block": groups.load("attention", "dca_ge")["block"]}
    whole = attn.create_model(name, attention).eval()
    features = attn.create_model(name, attention, features_only=True, out_indices=indices).eval()
    features.model.load_state_dict(whole.state_dict(), strict=False)
    x = images(whole)
    with torch.no_grad():
        assert equal(features(x), whole.forward_intermediates(x, list(indices), intermediates_only=True))
    if indices[-1] < 4:
        assert sum(p.numel() for p in features.parameters()) < sum(p.numel() for p in whole.parameters()) / 2


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_changes_no_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls.append(function)
        return checkpoint(function, *args, **kwargs)

    monkeypatch.setattr("attn.backbones.recompute.checkpoint", counted)
    torch.manual_seed(0)
    model = attn.create_model(name, "dca_ge", 10).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    x = images(model, 4)
    model(x).square().sum().backward()
    assert not calls
    other(x).square().sum().backward()
    assert len(calls) == sum(len(stage) for stage in model.blocks)
    for (key, p), q in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q[1].grad, msg=key)


class Record(Attention):
    """Keeps its site, checks the features against it, and passes on the number of sites as the state."""

    def __init__(self, site: Site, factor: float = 1.0) -> None:
        super().__init__()
        self.site, self.factor = site, factor
        self.seen: list[Any] = []

    def forward(self, feats: tuple[Tensor, ...], state: int | None) -> tuple[Tensor, int]:
        self.seen.append((tuple(f.shape for f in feats), state))
        return feats[-1] * self.factor, (state or 0) + 1


def records(model: nn.Module) -> list[Record]:
    return [m for m in model.modules() if isinstance(m, Record)]


@pytest.mark.parametrize("position", ["native", "preact", "end", "both"])
@pytest.mark.parametrize(("name", "kwargs"), VARIANTS)
def test_sites_tell_the_truth(name: str, kwargs: dict[str, Any], position: str) -> None:
    attention = {"block": Record, "position": position}
    if position == "preact" and name == "test_efficientnet_evos":
        with pytest.raises(ValueError, match="no activation of its own"):
            attn.create_model(name, attention, **kwargs)
        return
    model = attn.create_model(name, attention, **kwargs).eval()
    with torch.no_grad():
        model.forward_features(images(model))
    placed = records(model)
    for i, record in enumerate(sorted(placed, key=lambda r: r.seen[0][1] or 0)):
        ((shapes, state),) = record.seen
        assert tuple(shape[1] for shape in shapes) == record.site.widths
        assert shapes[-1][2] == -(-64 // record.site.stride)
        assert (state or 0) == i
        assert (record.site.prev is None) == (i == 0)
    native = [m for m in model.modules() if type(m).__name__ in ("SqueezeExcite", "GlobalContext")]
    assert not native
    stages = sorted({r.site.stage for r in placed})
    assert stages[0] >= 1
    assert stages[-1] <= len(model.blocks)


@pytest.mark.parametrize(("name", "kwargs"), VARIANTS)
def test_stages_end_with_the_attention(name: str, kwargs: dict[str, Any]) -> None:
    plain = attn.create_model(name, **kwargs).eval()
    model = attn.create_model(name, {"stage": partial(Record, factor=2.0)}, **kwargs).eval()
    model.load_state_dict(plain.state_dict())
    placed = records(model)
    assert [r.site.stage for r in placed] == list(range(1, len(model.blocks) + 1))
    assert [r.site.depth for r in placed] == [sum(map(len, plain.blocks[: i + 1])) - 1 for i in range(len(plain.blocks))]
    x = images(model)
    with torch.no_grad():
        stem, first, *_ = plain.forward_intermediates(x, intermediates_only=True, extra_blocks=True)
        maps = model.forward_intermediates(x, intermediates_only=True, extra_blocks=True)
    assert equal(maps[:2], [stem, 2 * first])
    for record, found in zip(placed, maps[1:], strict=True):
        ((shapes, state),) = record.seen
        assert shapes == (found.shape,)
        assert state is None
        assert record.site.widths == (found.shape[1],)
        assert -(-64 // record.site.stride) == found.shape[2]


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_100", "semnasnet_100"])
def test_native_sites_are_timms_own(name: str) -> None:
    own = sum(type(m).__name__ == "SqueezeExcite" for m in timm.create_model(name).modules())
    model = attn.create_model(name, {"block": Record, "sites": "native"})
    assert own > 0
    assert len(records(model)) == own
    assert all(r.site.native for r in records(model))


@pytest.mark.parametrize("position", ["native", "preact", "end"])
def test_an_attention_of_ones_is_no_attention(position: str) -> None:
    torch.manual_seed(0)
    plain = attn.create_model("mobilenetv3_small_050", "strip", 10).eval()
    model = attn.create_model("mobilenetv3_small_050", {"block": Record, "position": position}, 10).eval()
    model.load_state_dict(plain.state_dict())
    x = images(model)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize(
    ("position", "expected"), [("native", lambda x: -x.relu()), ("preact", lambda x: (-x).relu()), ("end", lambda x: x)]
)
def test_where_the_position_is(position: str, expected: Callable[[Tensor], Tensor]) -> None:
    """A factor of -1 before a ReLU keeps the other half of the values; after it, it does not."""
    torch.manual_seed(0)
    model = attn.create_model("mobilenetv2_035", {"block": Negative, "position": position}, act_layer="relu").eval()
    block, seen = model.blocks[1][1], {}
    block.conv_dw.register_forward_hook(lambda m, i, y: seen.update(dw=y))
    block.conv_pwl.register_forward_hook(lambda m, i, y: seen.update(pwl_in=i[0], pwl=y))
    x = torch.randn(2, block.conv_pw.in_channels, 8, 8)
    with torch.no_grad():
        y, _ = block((x, (None, None)))
        normed = nn.BatchNorm2d.forward(block.bn2, seen["dw"])
        linear = nn.BatchNorm2d.forward(block.bn3, seen["pwl"])
    if position == "end":
        torch.testing.assert_close(seen["pwl_in"], normed.relu())
        torch.testing.assert_close(y, x - linear)
    else:
        torch.testing.assert_close(seen["pwl_in"], expected(normed))
        torch.testing.assert_close(y, x + linear)


class Negative(Gate):
    def __init__(self, site: Site) -> None:
        super().__init__()

    def excite(self, z: Tensor) -> Tensor:
        return -torch.ones_like(z)


class Wide(Record):
    """Refuses blocks with a single convolution, as bridge attention does."""

    @classmethod
    def place(cls, sites: Any, *, stages: Any = None, **options: Any) -> list[Attention | None]:
        return [cls(site) if len(site.widths) > 2 else None for site in sites]


@pytest.mark.parametrize("position", ["native", "preact", "end"])
def test_blocks_that_are_left_keep_their_own(position: str) -> None:
    model = attn.create_model("mobilenetv3_small_100", {"block": Wide, "sites": "native", "position": position})
    first = model.blocks[0][0]
    own = [name for name, m in first.named_children() if type(m).__name__ == "SqueezeExcite"]
    if position == "end":
        assert own == []
    else:
        assert own == ["attn_pre" if position == "preact" else "se"]
    assert len(records(model)) == 8 + (position == "end")


@pytest.mark.parametrize("position", ["native", "preact", "end", "both"])
def test_survives_what_torch_does(position: str) -> None:
    config = groups.load("attention", "dca_se") | {"position": position}
    config["block"] |= {"reduction": 4, "base": config["block"]["base"] | {"reduction": 4}}
    torch.manual_seed(0)
    model = attn.create_model("test_efficientnet", config, 10).train()
    x = images(model, 4)
    model(x).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(model(x[:1]), y[:1], atol=1e-5, rtol=1e-4)
        assert torch.equal(copy.deepcopy(model)(x), y)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), y, atol=1e-5, rtol=1e-4)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), y, atol=1e-5, rtol=1e-4)
        frozen = freeze_batch_norm_2d(copy.deepcopy(model))
        torch.testing.assert_close(frozen(x), y, atol=1e-5, rtol=1e-4)
        synced = timm.layers.convert_sync_batchnorm(copy.deepcopy(model))
        torch.testing.assert_close(synced(x), y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["spatial", "pointwise"])
@pytest.mark.parametrize("name", ["mobilenetv1_100", "mobilenetv2_100", "mobilenetv4_conv_small", "test_efficientnet"])
def test_conv_sites(name: str, kind: str) -> None:
    plain = timm.create_model(name)
    model = attn.create_model(name, {"conv": ConvRecord, "convs": kind}).eval()
    with torch.no_grad():
        model(images(model))
    placed = [m for m in model.modules() if isinstance(m, ConvRecord)]
    for record in placed:
        (record.seen,) = record.seen
        shape_in, shape_out = record.seen
        assert (shape_in[1], shape_out[1]) == record.site.widths
        assert shape_out[2] == -(-64 // record.site.stride)
    convs = [
        m for key, m in plain.named_modules() if isinstance(m, nn.Conv2d) and key.startswith("blocks") and ".se." not in key
    ]
    # A block of one convolution (timm's ConvBnAct) has none to be replaced.
    alone = [m.conv for m in plain.modules() if type(m).__name__ == "ConvBnAct"]
    convs = [c for c in convs if all(c is not a for a in alone)]
    assert len(placed) == sum((c.kernel_size == (1, 1)) == (kind == "pointwise") for c in convs)


class ConvRecord(Attention):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site, self.conv = site, site.conv
        self.seen: Any = []

    def refine(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.seen.append((x.shape, y.shape))
        return y


@pytest.mark.parametrize(
    ("name", "attention", "message"),
    [
        ("mixnet_s", {"conv": ConvRecord}, "stage 3, block 0 is a MixedConv2d, which cannot be replaced"),
        ("efficientnet_cc_b0_4e", {"conv": ConvRecord}, "CondConv2d, which cannot be replaced"),
        (
            "mobilenetv2_035",
            {"block": Record, "position": "middle"},
            "position='middle'; EfficientNet has native, preact, expanded, end, both",
        ),
        ("mobilenetv2_035", {"conv": ConvRecord, "convs": "all"}, "convs='all'; EfficientNet has spatial, pointwise"),
        ("mobilenetv2_035", {"block": Record, "sites": "native"}, "EfficientNet has no attention of its own"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, attention: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        attn.create_model(name, attention)
    assert f"backbone={name}" in str(error.value)


def test_an_attention_that_brings_its_activation_leaves_none_to_go_before() -> None:
    sk = groups.load("attention", "sk")["conv"]
    with pytest.raises(ValueError, match="preact"):
        attn.create_model("mobilenetv2_035", {"conv": sk, "block": Record, "position": "preact"})
    attn.create_model("mobilenetv2_035", {"conv": sk, "block": Record})


def test_conv_and_block_slots_see_the_backbones_own_widths() -> None:
    sk = groups.load("attention", "sk")["conv"]
    for name in ("mobilenetv2_035", "resnet10t"):
        both = attn.create_model(name, {"conv": sk, "block": Record})
        alone = attn.create_model(name, {"block": Record})
        assert [r.site.widths for r in records(both)] == [r.site.widths for r in records(alone)]


TORCHVISION: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "mobilenetv2_100": (torchvision.models.mobilenet_v2, {}),
    "mnasnet_100": (torchvision.models.mnasnet1_0, {"bn_momentum": 0.0003}),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, {}),
    "mobilenetv3_small_100": (torchvision.models.mobilenet_v3_small, {"bn_eps": 1e-3, "bn_momentum": 0.01}),
    "mobilenetv3_large_100": (torchvision.models.mobilenet_v3_large, {"bn_eps": 1e-3, "bn_momentum": 0.01}),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_backbones_are_torchvisions(name: str) -> None:
    """As the comments in configs/backbone say: the same tensors in the same order, the same outputs, the same momentum."""
    build, kwargs = TORCHVISION[name]
    torch.manual_seed(0)
    theirs, ours = build().eval(), attn.create_model(name, **kwargs).eval()
    tensors = theirs.state_dict()
    for key, tensor in tensors.items():
        if key.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif key.endswith("running_mean"):
            nn.init.normal_(tensor, std=0.1)
    pairs = zip(ours.state_dict().items(), tensors.values(), strict=True)
    ours.load_state_dict({key: value.reshape(tensor.shape) for (key, tensor), value in pairs})
    x = images(ours)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-5)
    norms = [[m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)] for model in (ours, theirs)]
    assert norms[0] == pytest.approx(norms[1])


MNASNET_STAGES = {"position": "end", "block.stages": [2, 3, 4, 5, 6, 7]}
MOBILENETV2_SK = {"conv.reduction": 8, "conv.min_width": 1, "conv.act": "relu6"}
MOBILENETV2_DCA_SK = {
    "conv.base.reduction": 8,
    "conv.base.min_width": 1,
    "conv.base.act": "relu6",
    "conv.matching": "2fc",
    "conv.reduction": 8,
    "conv.hand_on": "weights",
    "conv.unused": True,
}
END = {"position": "end"}
# Backbone, attention, settings, and the parameters that the papers print (rounded).
TABLES: list[tuple[str, str | None, dict[str, Any], int]] = [
    ("mobilenetv1_100", None, {}, 4231976),
    ("mobilenetv1_100", "se", {"position": "both"}, 5072114),
    ("mobilenetv1_100", "cbam", {"position": "both"}, 5074714),
    ("mobilenetv1_100", "aw_se", {"position": "both", "convs": "pointwise"}, 5520858),
    ("mobilenetv1_100", "aw_cbam", {"position": "both", "convs": "pointwise", "block.pool": "avg"}, 5523458),
    ("mobilenetv2_100", None, {}, 3504872),
    ("mobilenetv2_100", "se", {**END, "block.reduction": 8}, 3563492),
    ("mobilenetv2_100", "sk", MOBILENETV2_SK, 5277248),
    ("mobilenetv2_100", "ge_theta_minus", END, 3504872),
    ("mobilenetv2_100", "cbam", {**END, "block.reduction": 8}, 3565192),
    (
        "mobilenetv2_100",
        "dca_se",
        {**END, "block.base.reduction": 8, "block.matching": "1fc", "block.bias": False, "block.unused": True},
        3645086,
    ),
    ("mobilenetv2_100", "dca_sk", MOBILENETV2_DCA_SK, 5911786),
    ("mobilenetv2_100", "dca_ge", {**END, "block.matching": "1fc", "block.unused": True}, 3586483),
    ("mobilenetv2_100", "dca_cbam", {**END, "block.base.reduction": 8, "block.unused": True}, 3646176),
    ("mnasnet_100", None, {}, 4383312),
    ("mnasnet_100", "se", MNASNET_STAGES, 4421688),
    ("mnasnet_100", "ge_theta_minus", MNASNET_STAGES, 4383312),
    ("mnasnet_100", "cbam", MNASNET_STAGES, 4423288),
    ("mnasnet_100", "cbam", {**MNASNET_STAGES, "block.reduction": 8}, 4460342),
    ("mnasnet_100", "dca_se", {**MNASNET_STAGES, "block.unused": True}, 4443074),
    (
        "mnasnet_100",
        "dca_se",
        {**MNASNET_STAGES, "block.base.first_reduction": 8, "block.reduction": 8, "block.unused": True},
        4478586,
    ),
    ("mnasnet_100", "dca_ge", {**MNASNET_STAGES, "block.matching": "1fc", "block.unused": True}, 4481136),
    ("mnasnet_100", "dca_cbam", {**MNASNET_STAGES, "block.base.reduction": 8, "block.unused": True}, 4557494),
    ("efficientnet_b0", None, {}, 5288548),
    ("tf_efficientnet_b0", None, {}, 5288548),
    ("mobilenetv3_small_100", None, {}, 2542856),
    ("mobilenetv3_large_100", None, {}, 5483032),
]


def configured(attention: str | None, settings_: dict[str, Any]) -> dict[str, Any] | None:
    if attention is None:
        return None
    config = groups.load("attention", attention)
    for key, value in settings_.items():
        node, *path = config, *key.split(".")
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
    return config


@pytest.mark.parametrize(("backbone", "attention", "settings_", "params"), TABLES)
def test_parameters_of_the_tables(backbone: str, attention: str | None, settings_: dict[str, Any], params: int) -> None:
    with torch.device("meta"):
        model = attn.create_model(backbone, configured(attention, settings_))
    assert sum(p.numel() for p in model.parameters()) == params


@settings(max_examples=10)
@given(
    position=st.sampled_from(["native", "preact", "end", "both"]),
    stages=st.sets(st.integers(1, 7), min_size=1),
    n=st.integers(1, 3),
    side=st.sampled_from([33, 48]),
)
def test_any_stages_at_any_position(position: str, stages: set[int], n: int, side: int) -> None:
    """Other stages are timm's; the chain runs from one chosen stage to the next."""
    chosen = sorted(stages)
    attention = {"block": partial(Record, stages=chosen), "position": position}
    model = attn.create_model("mobilenetv2_035", attention, 10).eval()
    plain = attn.create_model("mobilenetv2_035", None, 10).eval()
    plain.load_state_dict(model.state_dict())
    x = images(model, n, side)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    placed = records(model)
    assert sorted({r.site.stage for r in placed}) == chosen
    assert sorted(r.seen[0][1] or 0 for r in placed) == list(range(len(placed)))
