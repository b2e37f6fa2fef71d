"""AW-convolution: its equation in every form, its sizes, and its place in backbones and feature pyramids."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

import attn
from attn.attention import Site
from attn.models.fpn import GatedAWConv2d, GatedConv2d, add_attention
from attn.modules._layers import bin_average
from attn.modules.aw import AW, AWConv2d
from attn.modules.ba import BA
from attn.modules.cbam import CBAM
from attn.modules.se import SE


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def awake(module: nn.Module) -> nn.Module:
    """Random norms, so that A spans (0, 1) and differs between channels."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
            nn.init.normal_(m.running_mean, std=0.1)
    return module


def f1(layer: AWConv2d, x: torch.Tensor, ratios: tuple[int, int, int]) -> torch.Tensor:
    """A [N, C2, C1, h, w] by its definition, with running statistics."""
    c2, c1, height, width = layer.weight.shape
    r_c1, r_c2, r_hw = ratios
    rows, columns = height // r_hw, width // r_hw
    a = F.adaptive_avg_pool2d(x, (rows, columns))
    for block in (layer.squeeze, layer.excite):
        conv, norm, act = block
        a = torch.einsum("oc,nchw->nohw", conv.weight[:, :, 0, 0], a)
        a = F.batch_norm(a, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0, norm.eps)
        a = act(a)
    full = torch.empty(x.shape[0], c2, c1, height, width, dtype=x.dtype)
    for o in range(c2):
        for i in range(c1):
            for h in range(height):
                for w in range(width):
                    full[:, o, i, h, w] = a[:, o // r_c2 * (c1 // r_c1) + i // r_c1, h // r_hw, w // r_hw]
    return full


def by_definition(layer: AWConv2d, x: torch.Tensor, ratios: tuple[int, int, int]) -> torch.Tensor:
    """One convolution per sample, with its own filters K + A * K."""
    a = f1(layer, x, ratios)
    filters = layer.weight + a * layer.weight if layer.residual else a * layer.weight
    outputs = [
        F.conv2d(x[n : n + 1], filters[n], layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        for n in range(x.shape[0])
    ]
    return torch.cat(outputs)


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2)]),
    stride=st.sampled_from([1, 2, (2, 1)]),
    padding=st.sampled_from([0, 1, (1, 0)]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2, 4]),
    depthwise=st.booleans(),
    ratios=st.tuples(st.sampled_from([None, "all", 1, 2]), st.sampled_from([1, 2, "all"]), st.sampled_from([1, 3, "all"])),
    residual=st.booleans(),
    bias=st.booleans(),
    side=st.tuples(st.integers(5, 8), st.integers(5, 8)),
)
def test_every_form_is_the_definition(
    kernel, stride, padding, dilation, groups, depthwise, ratios, residual, bias, side
) -> None:
    channels = 8 if depthwise else 4
    conv = nn.Conv2d(8, channels, kernel, stride, padding, dilation, 8 if depthwise else groups, bias=bias).double()
    depth = conv.weight.shape[1]
    r_c1 = ratios[0] if ratios[0] in (None, "all") or depth % ratios[0] == 0 else 1
    r_hw = 1 if ratios[2] == 3 and kernel != (3, 3) else ratios[2]
    if r_hw == "all" and kernel[0] != kernel[1]:
        r_hw = 1
    options = {"reduction": 2, "r_c1": r_c1, "r_c2": ratios[1], "r_hw": r_hw, "residual": residual}
    layer = awake(AWConv2d(conv, **options).double()).eval()
    x = torch.randn(3, 8, *side, dtype=torch.float64)
    sizes = {None: depth, "all": depth}, {"all": channels}, {"all": kernel[0]}
    plain = [size.get(ratio, ratio) for size, ratio in zip(sizes, (r_c1, ratios[1], r_hw), strict=True)]
    expected = by_definition(layer, x, tuple(plain))
    forms = ["auto", "grouped"]
    if layer.map_shape[1] == 1:
        forms.append("taps")
        if layer.map_shape[2:] == (1, 1):
            forms.append("scale")
    for form in forms:
        same = AWConv2d(conv, **options, form=form).double().eval()
        same.load_state_dict(layer.state_dict())
        torch.testing.assert_close(same(x), expected, rtol=1e-10, atol=1e-10, msg=f"{form} differs")


@pytest.mark.parametrize("form", ["grouped", "taps"])
def test_gradients_of_the_forms_agree(form: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, 2, 1).double()
    layer = awake(AWConv2d(conv, 2).double())
    other = AWConv2d(copy.deepcopy(conv), 2, form=form).double()
    other.load_state_dict(layer.state_dict())
    layer.eval(), other.eval()
    x = torch.randn(3, 8, 7, 7, dtype=torch.float64, requires_grad=True)
    y, pull = by_definition(layer, x, (8, 1, 1)), torch.randn(3, 8, 4, 4, dtype=torch.float64)
    parameters = list(layer.parameters())
    expected = torch.autograd.grad((y * pull).sum(), [x, *parameters])
    got = torch.autograd.grad((other(x) * pull).sum(), [x, *other.parameters()])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_auto_takes_the_form_with_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name in ("by_groups", "by_taps"):
        form = getattr(AWConv2d, name)
        monkeypatch.setattr(AWConv2d, name, lambda *args, name=name, form=form: used.append(name) or form(*args))
    layer = AWConv2d(nn.Conv2d(64, 64, 3, 2, 1, bias=False))
    for side in (16, 15, 14):  # 64, 64 and 49 output pixels against 64 channels
        layer(torch.randn(2, 64, side, side))
    AWConv2d(nn.Conv2d(64, 64, 3, 2, 1, groups=4))(torch.randn(2, 64, 14, 14))
    AWConv2d(nn.Conv2d(64, 64, 1))(torch.randn(2, 64, 2, 2))
    assert used == ["by_groups", "by_groups", "by_taps", "by_groups"]


@pytest.mark.parametrize(
    ("backbone", "attention", "params", "printed"),
    [
        ("resnet50", "aw", 25_722_240, 25.72),
        ("resnet101", "aw", 44_862_880, None),  # the paper prints 44.95, 33 of 23 blocks counted in stage 3
        ("resnet50", "aw_se", 28_253_232, 28.25),
        ("resnet101", "aw_se", 49_640_592, None),
        ("resnet50", "aw_cbam", 28_254_832, 28.25),
        ("resnet101", "aw_cbam", 49_643_892, None),
    ],
)
def test_sizes(backbone: str, attention: str, params: int, printed: float | None) -> None:
    with torch.device("meta"):
        assert size(attn.create_model(backbone, attention)) == params
    assert printed is None or round(params / 1e6, 2) == printed


def test_sizes_of_aw_cbam_in_the_paper() -> None:
    """(MaxPool) and (Spatial) print the same 28.25 M."""
    sizes = []
    for options in ({"spatial": False}, {"pool": "avg"}):
        with torch.device("meta"):
            model = attn.create_model("resnet50", {"conv": AW, "block": partial(CBAM, **options)})
        sizes.append(size(model))
    assert sizes == [28_253_232, 28_254_832]


def test_size_on_the_pointwise_convolutions_of_mobilenet() -> None:
    """All 13 of them, hidden width C2 / 16: the paper's +0.45 M."""
    widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    with torch.device("meta"):
        convs = [nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths)]
        assert len(convs) == 13
        assert sum(size(AWConv2d(conv)) - size(conv) for conv in convs) == 448_744


@pytest.mark.parametrize(
    ("first", "blocks", "added"), [(1, [1, 3, 5, 7, 9, 11, 13], 246_392), (2, [2, 4, 6, 8, 10, 12], 202_352)]
)
def test_every_second_depthwise_separable_convolution_of_mobilenet(first: int, blocks: list[int], added: int) -> None:
    """As the paper's text says; it does not say which of each pair."""
    with torch.device("meta"):
        plain = attn.create_model("mobilenetv1_100")
        model = attn.create_model("mobilenetv1_100", {"conv": partial(AW, every=2, first=first), "convs": "pointwise"})
    separable = [block for stage in model.blocks for block in stage]
    assert [i for i, block in enumerate(separable, start=1) if isinstance(block.conv_pw, AW)] == blocks
    assert not any(isinstance(block.conv_dw, AW) for block in separable)
    assert size(model) - size(plain) == added


@pytest.mark.parametrize("r_c2", ["all", [1, 2, 4, "all"], [1, 1, 2, 2, 4, 4, "all", 8]])
def test_ratios_of_every_layer(r_c2) -> None:
    """Equation 2 through a whole network: one ratio, one per stage, or one per convolution."""
    torch.manual_seed(0)
    options = {"r_c1": 1 if r_c2 == "all" else None, "r_c2": r_c2, "r_hw": "all"}
    model = attn.create_model("resnet18", {"conv": partial(AW, **options)}, num_classes=3)
    layers = [m for m in model.modules() if isinstance(m, AW)]
    assert len(layers) == 8
    per_layer = r_c2 if isinstance(r_c2, list) and len(r_c2) == 8 else [r for r in r_c2 for _ in range(2)]
    for layer, ratio in zip(layers, ["all"] * 8 if r_c2 == "all" else per_layer, strict=True):
        filters = 1 if ratio == "all" else layer.out_channels // ratio
        assert layer.map_shape == (filters, layer.in_channels if r_c2 == "all" else 1, 1, 1)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    layer, x = awake(layers[-1]).double().eval(), torch.randn(2, layers[-1].in_channels, 3, 3, dtype=torch.float64)
    a = layer.filter_scale(x)
    for o in range(0, layer.out_channels, 37):
        same = o // layer.ratios[0] * layer.ratios[0]
        assert torch.equal(a[:, o], a[:, same])


def test_keeps_the_convolution() -> None:
    """The weights of the plain network load: only A's are new."""
    torch.manual_seed(0)
    plain = attn.create_model("resnet18", num_classes=3)
    model = attn.create_model("resnet18", "aw", num_classes=3)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".squeeze." in key or ".excite." in key for key in missing)
    conv = model.layer2[1].conv1
    assert isinstance(conv, AW)
    assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride) == (128, 128, (3, 3), (1, 1))


def test_every_parameter_learns_and_eval_ignores_the_batch() -> None:
    torch.manual_seed(0)
    model = attn.create_model("resnet18", "aw", num_classes=3, zero_init_last=False)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    model.eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["grouped", "taps", "scale"])
def test_compile_export_copy_and_autocast(form: str) -> None:
    torch.manual_seed(0)
    options = {"form": form, "r_hw": 3} if form == "scale" else {"form": form}
    layer = awake(AWConv2d(nn.Conv2d(8, 8, 3, padding=1), 2, **options)).eval()
    x = torch.randn(3, 8, 6, 6)
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), y)
        torch.testing.assert_close(copy.deepcopy(layer)(x), y)
        torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), y)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(layer(x).float(), y, rtol=0.05, atol=0.05)
            assert layer(x).dtype == torch.bfloat16
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    torch.testing.assert_close(exported.module()(x[:2]), layer(x[:2]))


def test_one_image_of_one_pixel_trains_on_running_statistics() -> None:
    layer = awake(AWConv2d(nn.Conv2d(8, 8, 1), 2))
    x = torch.randn(1, 8, 5, 5)
    before = copy.deepcopy(dict(layer.named_buffers()))
    y = layer(x)
    torch.testing.assert_close(y, layer.eval()(x))
    assert all(torch.equal(before[name], buffer) for name, buffer in layer.named_buffers())
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_deterministic_pooling_is_the_same(bins: tuple[int, int], height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width)
    torch.use_deterministic_algorithms(True)
    try:
        pooled = bin_average(x, bins)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(x, bins))


@pytest.mark.parametrize(
    ("conv", "options", "message"),
    [
        (nn.Conv2d(8, 8, 3), {"r_c1": 3}, "r_c1=3 does not divide the 8"),
        (nn.Conv2d(8, 8, 3, groups=4), {"r_c1": 8}, "r_c1=8 does not divide the 2"),
        (nn.Conv2d(8, 8, 3), {"r_c2": 5}, "r_c2=5 does not divide the 8"),
        (nn.Conv2d(8, 8, 3), {"r_hw": 2}, "r_hw=2 does not divide the 3"),
        (nn.Conv2d(8, 8, 3), {"r_c2": 0}, "r_c2=0"),
        (nn.Conv2d(8, 8, 3), {"r_c2": "each"}, "r_c2=each does not divide the 8.*choose all or a divisor"),
        (nn.Conv2d(8, 8, 3), {"reduction": 16}, "reduction=16 must lie between 1 and the 8"),
        (nn.Conv2d(8, 8, 3), {"form": "fast", "reduction": 2}, "form='fast' does not exist"),
        (nn.Conv2d(8, 8, 3), {"form": "scale", "reduction": 2}, "choose from auto, grouped, taps"),
        (nn.Conv2d(8, 8, 3), {"form": "taps", "r_c1": 2}, "choose from auto, grouped"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), {}, "padding_mode=reflect"),
        (nn.Conv2d(8, 8, 3, padding="same"), {}, "padding=same"),
        (Conv2dSame(8, 8, 3, stride=2), {}, "Conv2dSame"),
    ],
)
def test_refuses(conv: nn.Conv2d, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AWConv2d(conv, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_c2": [1, 2]}, "r_c2=.1, 2. has 2 entries; .* each of the 4 stages, or one for each of the 8 convolutions"),
        ({"every": 0}, "every=0"),
        ({"every": 2, "first": 9}, "first=9: no block is left; the last is number 8"),
        ({"stages": [5]}, "no stage 5"),
        ({"every": 1.5}, "every=1.5 must be an integer"),
    ],
)
def test_refuses_choices(options: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        attn.create_model("resnet18", {"conv": partial(AW, **options)})


def test_only_in_the_conv_slot() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="use it in the conv slot"):
        attn.create_model("resnet18", {"block": AW})


class MiniFPN(nn.Module):
    """The layout of MMDetection's FPN: a convolution inside each entry, one extra output."""

    class ConvModule(nn.Module):
        def __init__(self, *args: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(*args)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32, 64), channels: int = 16) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(self.ConvModule(width, channels, 1) for width in widths)
        self.fpn_convs = nn.ModuleList(self.ConvModule(channels, channels, 3, 1, 1) for _ in widths)
        self.fpn_convs.append(self.ConvModule(channels, channels, 3, 2, 1))

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        inner = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(inner) - 1, 0, -1):
            inner[i - 1] = inner[i - 1] + F.interpolate(inner[i], size=inner[i - 1].shape[2:])
        out = [conv(x) for conv, x in zip(self.fpn_convs[:4], inner, strict=True)]
        return [*out, self.fpn_convs[4](out[-1])]


def pyramid_maps(n: int = 2) -> list[torch.Tensor]:
    return [torch.randn(n, 8 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]


SE_2 = partial(SE, reduction=2)
AW_2 = partial(AW, reduction=2)


@pytest.mark.parametrize("gate", [None, SE_2, partial(CBAM, reduction=2)])
@pytest.mark.parametrize("aw", [None, AW_2])
def test_fpn_by_hand(gate, aw) -> None:
    """Gate before every lateral and (after the top-down sum) every output; AW in place of each convolution."""
    if gate is None and aw is None:
        return
    torch.manual_seed(0)
    fpn = MiniFPN()
    plain = copy.deepcopy(fpn.state_dict())
    add_attention(fpn, {"block": gate, "conv": aw})
    awake(fpn).eval()
    assert {k: v.shape for k, v in fpn.state_dict().items() if k in plain} == {k: v.shape for k, v in plain.items()}
    fpn.load_state_dict(plain, strict=False)
    maps = pyramid_maps()

    def apply(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x if gate is None else conv.gate.refine(x)
        if aw is None:
            return F.conv2d(x, conv.weight, conv.bias, padding=conv.padding)
        return by_definition(conv, x, (conv.in_channels, 1, 1))

    inner = [apply(entry.conv, x) for entry, x in zip(fpn.lateral_convs, maps, strict=True)]
    for i in (3, 2, 1):
        inner[i - 1] = inner[i - 1] + F.interpolate(inner[i], size=inner[i - 1].shape[2:])
    expected = [apply(entry.conv, x) for entry, x in zip(fpn.fpn_convs[:4], inner, strict=True)]
    extra = fpn.fpn_convs[4].conv
    assert type(extra) is nn.Conv2d
    for got, want in zip(fpn(maps), [*expected, extra(expected[-1])], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["aw", "se", "cbam", "aw_se", "aw_cbam"])
def test_fpn_of_torchvision(attention: str) -> None:
    """Every parameter learns, by names alone, with two images per device and with one."""
    torch.manual_seed(0)
    fpn = FeaturePyramidNetwork([16, 32], 32)
    plain = set(fpn.state_dict())
    add_attention(fpn, attention, laterals="inner_blocks", outputs="layer_blocks")
    assert plain < set(fpn.state_dict())
    kind = {"aw": AWConv2d, "se": GatedConv2d, "cbam": GatedConv2d}.get(attention, GatedAWConv2d)
    assert sum(isinstance(m, kind) for m in fpn.modules()) == 4
    for n in (2, 1):
        fpn.zero_grad()
        maps = {"0": torch.randn(n, 16, 8, 8), "1": torch.randn(n, 32, 4, 4)}
        sum(y.square().sum() for y in fpn(maps).values()).backward()
        for name, parameter in fpn.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    fpn.eval()
    with torch.no_grad():
        whole, one = fpn(maps), fpn({k: m[:1] for k, m in maps.items()})
    for key in whole:
        torch.testing.assert_close(whole[key][:1], one[key])
    pickle.loads(pickle.dumps(copy.deepcopy(fpn)))


def test_fpn_levels() -> None:
    fpn = MiniFPN()
    add_attention(fpn, {"block": partial(SE, reduction=2, stages=[2]), "conv": partial(AW, reduction=2, stages=[2, 4])})
    kinds = [type(entry.conv) for entry in fpn.lateral_convs]
    assert kinds == [nn.Conv2d, GatedAWConv2d, nn.Conv2d, AWConv2d]
    fpn(pyramid_maps())
    fpn = MiniFPN()
    add_attention(fpn, {"conv": partial(AW, reduction=2, every=2, first=2, r_c2=[2, "all"])})
    layers = [entry.conv for entry in fpn.lateral_convs]
    assert [type(layer) for layer in layers] == [nn.Conv2d, AWConv2d] * 2
    assert [layer.map_shape[0] for layer in layers[1::2]] == [layers[1].out_channels // 2, 1]


@pytest.mark.parametrize(
    ("attention", "options", "message"),
    [
        ("ba2m", {}, "a pyramid has no stage to end"),
        (None, {}, "fills neither the block nor the conv slot"),
        ({"block": BA}, {}, "BA needs the features or the state of a block"),
        ({"conv": SE}, {}, "SE cannot replace the convolutions"),
        ({"conv": partial(AW, stages=[5])}, {}, "no level 5 here"),
        ({"block": SE_2}, {"laterals": "inner_blocks"}, "no list 'inner_blocks'"),
        ({"block": SE_2}, {"strides": [4, 8]}, "one entry for each of 4"),
        ({"block": SE_2}, {"laterals": "fpn_convs", "outputs": "lateral_convs"}, "4 lateral_convs for 5 fpn_convs"),
        ({"conv": partial(AW, reduction=64)}, {}, "reduction=64"),
    ],
)
def test_fpn_refuses(attention, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_attention(MiniFPN(), attention, **options)


def test_site_keeps_the_widths_for_other_slots() -> None:
    """The block slot of a model whose convolutions are AW sees the widths of the plain one."""
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    layer = AW(Site((8, 8), 1, 0, 0, 4, conv=conv), 2)
    assert layer.weight is conv.weight
    model = attn.create_model("resnet50", {"conv": AW, "block": BA}, num_classes=2)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
