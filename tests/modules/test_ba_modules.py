"""SE, ECA, BA and its variants: results by the equations, timm's weights, positions, errors."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from formulas import batch_norm, logistic, randomised, sites
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import attn
from attn.config import groups
from attn.models.options import check_options
from attn.modules.ba import BA
from attn.modules.ba_ablation import BAAblation
from attn.modules.ba_fca import BAFca
from attn.modules.ba_v2 import BAv2
from attn.modules.eca import ECA
from attn.modules.se import SE

WIDTHS = (24, 8, 12, 32)  # a block's input and the outputs of its three convolutions


site = sites(WIDTHS, stride=32)


def features(widths: tuple[int, ...] = WIDTHS, seed: int = 0) -> tuple[Tensor, ...]:
    """Maps of a block with stride 2: the first convolution's output is still large."""
    generator = torch.Generator().manual_seed(seed)
    sides = [8, 8] + [4] * (len(widths) - 2)
    return tuple(torch.randn(3, c, s, s, generator=generator) for c, s in zip(widths, sides, strict=True))


@given(reduction=st.sampled_from([1, 2, 4, 16]), bias=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=10)
def test_se_is_its_equation(reduction, bias, seed):
    module = randomised(SE(site(), reduction, bias), seed)
    x = features(seed=seed)[-1]
    y, state = module(features(seed=seed), None)
    z = torch.einsum("nchw->nc", x) / 16
    w1, w2 = module.fc1.weight.flatten(1), module.fc2.weight.flatten(1)
    hidden = (torch.einsum("nc,kc->nk", z, w1) + (module.fc1.bias if bias else 0)).clamp(min=0)
    weights = logistic(torch.einsum("nk,ck->nc", hidden, w2) + (module.fc2.bias if bias else 0))
    torch.testing.assert_close(y, torch.einsum("nchw,nc->nchw", x, weights), rtol=1e-4, atol=1e-5)
    assert state is None


@given(kernel=st.sampled_from([1, 3, 5, 7]), seed=st.integers(0, 9))
@settings(max_examples=10)
def test_eca_is_its_equation(kernel, seed):
    module = randomised(ECA(site(), kernel), seed)
    x = features(seed=seed)[-1]
    z, taps = x.mean((2, 3)), module.conv.weight.flatten()
    weights = torch.zeros_like(z)
    for c in range(z.shape[1]):
        for t in range(kernel):
            neighbour = c + t - kernel // 2
            if 0 <= neighbour < z.shape[1]:
                weights[:, c] += taps[t] * z[:, neighbour]
    torch.testing.assert_close(module.refine(x), x * logistic(weights)[:, :, None, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "kernel"), [(64, 3), (256, 5), (512, 5), (1024, 5), (2048, 7)])
def test_eca_kernel_follows_the_papers_rule(channels, kernel):
    assert ECA(site((channels, channels))).conv.weight.shape[-1] == kernel
    per_stage = ECA(site((channels, channels), stage=3), [3, 3, 5, 7])
    assert per_stage.conv.weight.shape[-1] == 5


@given(
    widths=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    gate=st.sampled_from(["sigmoid", "hard_sigmoid"]),
    act=st.sampled_from(["relu", "silu"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=20)
def test_ba_is_its_equation(widths, gate, act, seed):
    widths = (5, *widths, 32)
    module = randomised(BA(site(widths), 8, act=act, gate=gate), seed)
    feats = features(widths, seed)
    total = 0
    for bridge, f in zip(module.bridges, feats[1:], strict=True):
        total = total + batch_norm(bridge[1], torch.einsum("nchw,kc->nk", f, bridge[0].weight) / f[0, 0].numel())
    hidden = total.clamp(min=0) if act == "relu" else total * logistic(total)
    expanded = torch.einsum("nk,ck->nc", hidden, module.expand.weight)
    weights = logistic(expanded) if gate == "sigmoid" else ((expanded + 3) / 6).clamp(0, 1)
    y, _ = module(feats, None)
    torch.testing.assert_close(y, feats[-1] * weights[:, :, None, None], rtol=1e-3, atol=1e-4)


@given(widths=st.lists(st.integers(1, 20), min_size=2, max_size=4), seed=st.integers(0, 9))
@settings(max_examples=20)
def test_ba_v2_is_its_equation(widths, seed):
    widths = (5, *widths, 32)
    module = randomised(BAv2(site(widths), 8), seed)
    feats = features(widths, seed)
    selected = module.select.bias
    for i, f in enumerate(feats[1:]):
        selected = selected + module.select.weight[0, i] * f.mean((2, 3)) @ module.bridges[i].weight.T
    weights = logistic(batch_norm(module.norm, selected).clamp(min=0) @ module.expand.weight.T)
    y, _ = module(feats, None)
    torch.testing.assert_close(y, feats[-1] * weights[:, :, None, None], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("q", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("cls", [BA, BAv2])
def test_q_layers_before_are_bridged_across_blocks(cls, q):
    """Eq. 10 by a list of all convolutions of the network: the sum from layer n - q to layer n."""
    blocks = [(6, 8, 16), (16, 8, 8, 32), (32, 12, 32), (32, 16, 16, 64)]
    sites = [site(widths, block=i, depth=i) for i, widths in enumerate(blocks)]
    modules = [randomised(m, i) for i, m in enumerate(cls.place(sites, q=q, reduction=4))]
    layers, state = [], None
    for seed, (module, widths) in enumerate(zip(modules, blocks, strict=True)):
        feats = features(widths, seed)
        layers += feats[1:]
        n = len(layers) - 1
        bridged = layers[max(0, n - q) : n + 1]
        assert len(module.bridges) == len(bridged)
        total = module.select.bias if cls is BAv2 else 0
        for i, f in enumerate(bridged):
            z = f.flatten(2).mean(2)
            if cls is BAv2:
                total = total + module.select.weight[0, i] * (z @ module.bridges[i].weight.T)
            else:
                total = total + batch_norm(module.bridges[i][1], z @ module.bridges[i][0].weight.T)
        hidden = (batch_norm(module.norm, total) if cls is BAv2 else total).clamp(min=0)
        weights = logistic(hidden @ module.expand.weight.T)
        y, state = module(feats, state)
        torch.testing.assert_close(y, feats[-1] * weights[:, :, None, None], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attention", ["ba", "ba_v2", "ba_fca"])
@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        "densenet121",
        "efficientnet_b0",
        "mobilenetv3_small_100",
        "regnety_002",
        "convnext_atto",
        "shufflenet_v2_x0_5",
        "pvt_v2_b0",
        "cifar_preresnet110",
        "cifar_efficientnet_b0",
    ],
)
def test_q_for_every_family(backbone, attention):
    """Every block also bridges the block before it, every bridge learns, and q of the block's own size is q=None."""
    mapping = groups.load("attention", attention)
    mapping["block"] |= {"q": 5, "reduction": 2}
    torch.manual_seed(0)
    options = {"growth_rate": 16, "block_config": (2, 2, 2, 2)} if backbone == "densenet121" else {}
    model = attn.create_model(backbone, mapping, 10, **options)
    modules = [m for m in model.modules() if isinstance(m, BA | BAv2)]
    counts = [len(m.bridges) for m in modules]
    assert counts == sorted(counts)
    assert counts[-1] == 6
    for m in model.modules():
        if hasattr(m, "zero_init_last") and callable(m.zero_init_last):
            for name in ("bn2", "bn3"):
                if getattr(m, name, None) is not None:
                    torch.nn.init.ones_(getattr(m, name).weight)
    model(torch.randn(3, 3, 64, 64)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_q_of_the_blocks_own_convolutions_is_plain_bridge_attention():
    torch.manual_seed(0)
    for q, same in ((2, True), (1, False)):
        plain, other = (attn.create_model("resnet50", {"block": partial(BA, q=reach)}, 10).eval() for reach in (None, q))
        assert ([*plain.state_dict()] == [*other.state_dict()]) == same
        if same:
            other.load_state_dict(plain.state_dict())
            x = torch.randn(2, 3, 64, 64)
            assert torch.equal(plain(x), other(x))


def test_ba_fca_pools_by_frequency():
    module = randomised(BAFca(site(stride=16), input_size=128, reduction=8))
    feats = tuple(torch.randn(2, c, s, s) for c, s in zip(WIDTHS, (16, 16, 8, 8), strict=True))
    us, vs = (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2), (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2)
    total = 0
    for bridge, f in zip(module.bridges, feats[1:], strict=True):
        f = F.avg_pool2d(f, f.shape[2] // 8)
        z = torch.zeros(f.shape[:2])
        for c in range(f.shape[1]):
            u, v = us[c * 16 // f.shape[1]], vs[c * 16 // f.shape[1]]
            for y in range(8):
                for x in range(8):
                    basis = math.cos(math.pi * u * (y + 0.5) / 8) * math.cos(math.pi * v * (x + 0.5) / 8) / 8
                    z[:, c] += f[:, c, y, x] * basis * 2 ** (((u > 0) + (v > 0)) / 2)
        total = total + batch_norm(bridge[1], z @ bridge[0].weight.T)
    weights = logistic(total.clamp(min=0) @ module.expand.weight.T)
    refined, _ = module(feats, None)
    torch.testing.assert_close(refined, feats[-1] * weights[:, :, None, None], rtol=1e-3, atol=1e-4)


TABLE_1 = [
    ("att", "prev,conv3", 29_157_064),
    ("conv", "prev,conv3", 29_157_064),
    ("conv", "prev,end", 29_157_064),
    ("conv", "curr,conv1", 28_390_120),
    ("conv", "curr,conv2", 28_390_120),
    ("conv", "curr,conv1&2", 28_706_376),
]


def ablation(vector: str, position: str) -> dict[str, Any]:
    config = groups.load("attention", "ba_ablation")
    config["block"] |= {"vector": vector, "position": position}
    return config


@pytest.mark.parametrize(("vector", "position", "parameters"), TABLE_1)
def test_sizes_of_table_1(vector, position, parameters):
    with torch.device("meta"):
        model = attn.create_model("resnet50", ablation(vector, position))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("vector", "position", "parameters"), TABLE_1)
def test_ablation_is_its_definition(vector, position, parameters):
    second = (32, 6, 10, 24)
    modules = [
        randomised(BAAblation(site(), vector, position, 4), 1),
        randomised(BAAblation(site(second, depth=1, prev=WIDTHS), vector, position, 4), 2),
    ]
    blocks = [features(seed=1), features(second, seed=2)]
    state, previous = None, {}
    for i, (module, feats) in enumerate(zip(modules, blocks, strict=True)):
        own = feats[-1].mean((2, 3))
        others = {
            "prev,conv3": [previous[vector]] if i else [],
            "prev,end": [feats[0].mean((2, 3))] if i else [],
            "curr,conv1": [feats[1].mean((2, 3))],
            "curr,conv2": [feats[2].mean((2, 3))],
            "curr,conv1&2": [feats[1].mean((2, 3)), feats[2].mean((2, 3))],
        }[position]
        total = 0
        for bridge, z in zip(module.bridges, [own, *others], strict=True):
            total = total + batch_norm(bridge[1], z @ bridge[0].weight.T)
        weights = logistic(total.clamp(min=0) @ module.expand.weight.T)
        y, state = module(feats, state)
        torch.testing.assert_close(y, feats[-1] * weights[:, :, None, None], rtol=1e-3, atol=1e-4)
        previous = {"conv": own, "att": weights}


def test_every_variant_of_table_1_learns():
    for vector, position, _ in TABLE_1:
        model = attn.create_model("resnet50", ablation(vector, position), 10, layers=(1, 1, 1, 1), channels=(16, 16, 32, 32))
        model.train()
        model(torch.randn(2, 3, 64, 64)).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("theirs", "backbone", "attention"),
    [("seresnet50", "resnet50", "se"), ("ecaresnet26t", "resnet26t", "eca"), ("ecaresnet50d", "resnet50d", "eca")],
)
def test_timms_weights_load_and_give_timms_outputs(theirs, backbone, attention):
    torch.manual_seed(0)
    reference = timm.create_model(theirs, num_classes=10, zero_init_last=False).eval()
    model = attn.create_model(backbone, attention, 10).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = reference(x)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        for parameter in model.layer2[0].se.parameters():
            parameter.add_(1.0)
        assert (model(x) - expected).norm() > 1e-3 * expected.norm()  # the attention is in use


def test_a_site_with_one_convolution_keeps_what_the_backbone_has():
    model = attn.create_model("efficientnet_b0", "ba", 10)
    assert type(model.blocks[0][0].se).__name__ == "SqueezeExcite"
    assert isinstance(model.blocks[1][0].se, BA)
    assert len(model.blocks[1][0].se.bridges) == 2
    placed = BA.place([site((8, 8)), site(block=1, depth=1), site((8, 8), block=2, depth=2)])
    assert [module is None for module in placed] == [True, False, True]
    sites = [site((8, 8)), site((8, 8, 8), block=1, depth=1), site(block=2, depth=2)]
    placed = BAAblation.place(sites, position="curr,conv2", reduction=4)
    assert [module is None for module in placed] == [True, True, False]
    placed = BAAblation.place(sites, position="prev,end", reduction=4)
    assert [len(module.bridges) for module in placed] == [1, 2, 2]


def test_stages_and_unused_layers():
    placed = BA.place([site(), site(block=1, depth=1), site(stage=2, depth=2)], stages=[2])
    assert [module is None for module in placed] == [True, True, False]
    with torch.device("meta"):
        assert BA(site(), unused=True).unused.weight.shape == (2, 4)
        assert BA(site(block=1), unused=True).unused is None
        assert BA(site(), reduction=4, reduction_of="input").expand.weight.shape == (32, 6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BA.place([site((8, 8))]), "needs at least two convolutions to bridge"),
        (lambda: BAv2.place([site((8, 8))]), "needs at least two convolutions to bridge"),
        (lambda: BA.place([site()], stages=[3]), "no stage 3"),
        (lambda: BA.place([site()], q=0), "q=0 must be 1 or more convolutions before the last"),
        (lambda: BA(site(), reduction=64), "reduction=64 must lie between 1 and the 32 channels"),
        (lambda: check_options(BA, {"reduction_of": "output"}), "reduction_of='output'; choose from refined, input"),
        (lambda: BA(site(), act="rely"), "act='rely' is not an activation"),
        (lambda: BAv2(site(), gate="sgmoid"), "gate='sgmoid' is not an activation"),
        (lambda: check_options(BAAblation, {"vector": "map"}), "vector='map'; choose from conv, att"),
        (lambda: check_options(BAAblation, {"position": "next"}), "position='next'; choose from"),
        (lambda: BAAblation(site(), "att", "curr,conv1"), "vector=att goes with position=prev,conv3 only"),
        (lambda: BAAblation.place([site((8, 8, 8))], position="curr,conv2"), "bridges convolutions before the last"),
        (lambda: ECA(site(), 4), "kernel_size=4 must be odd"),
        (lambda: ECA(site(stage=5), [3, 5, 5, 7]), "no entry for stage 5"),
        (lambda: SE(site(), 33), "reduction=33"),
        (lambda: BAFca(site(), input_size=0), "input_size=0"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()
