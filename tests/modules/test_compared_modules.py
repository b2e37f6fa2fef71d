"""FcaNet, SRM, SGE, BAM, AA, EA, SASA, DIANet, DREAL: sizes by the tables, results by the equations, errors."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from formulas import batch_norm, logistic, randomised, sites
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import attn
from attn.attention import Site
from attn.config import groups
from attn.models.auxiliary import extra_loss, objectives
from attn.models.options import check_options
from attn.modules.aa import AA
from attn.modules.bam import BAM
from attn.modules.dia import DIA
from attn.modules.dreal import DREAL, observe
from attn.modules.ea import EA
from attn.modules.fca import DCT, Fca
from attn.modules.sasa import SASA
from attn.modules.se import SE
from attn.modules.sge import SGE
from attn.modules.srm import SRM

site = sites(32, stage=2)


def conv_site(width: int = 16, stride: int = 1, **fields: Any) -> Site:
    return site(width, conv=nn.Conv2d(8, width, 3, stride, 1, bias=False), **fields)


def count(backbone: str, name: str, **options: Any) -> int:
    config = groups.load("attention", name)
    (slot,) = {"block", "conv", "stage"} & config.keys()
    config[slot] |= options
    with torch.device("meta"):
        return sum(p.numel() for p in attn.create_model(backbone, config).parameters())


@pytest.mark.parametrize(
    ("name", "options", "resnet50", "resnet101"),
    [
        ("fca", {}, 28_071_976, 49_292_328),
        ("srm", {}, 25_617_448, 44_679_208),
        ("sge", {}, 25_559_080, 44_553_384),
        ("bam", {}, 25_915_099, 44_907_227),
        ("aa", {}, 25_813_872, 45_391_208),
        ("ea", {}, 25_815_816, 45_403_080),
        ("dia", {}, 28_358_052, 47_350_180),
        ("dreal", {"bias": False}, 28_120_425, 49_358_185),
    ],
)
def test_sizes_of_the_tables(name, options, resnet50, resnet101):
    assert count("resnet50", name, **options) == resnet50
    assert count("resnet101", name, **options) == resnet101


def test_sasa_has_the_size_of_the_table():
    assert count("resnet50", "sasa") == 18_015_504


def test_cifar_bam_has_the_size_of_the_table():
    config = groups.load("attention", "bam")
    with torch.device("meta"):
        model = attn.create_model("cifar_resnet50", config, 100)
    assert sum(p.numel() for p in model.parameters()) == 24_063_319


# FcaNet


@given(size=st.sampled_from([7, 8, 14]), channels=st.sampled_from([16, 20, 32]), seed=st.integers(0, 9))
@settings(max_examples=8)
def test_dct_is_its_equation(size, channels, seed):
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(seed))
    us, vs = (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2), (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2)
    expected = torch.zeros(2, channels)
    for c in range(channels):
        u, v = us[c * 16 // channels] * (size // 7), vs[c * 16 // channels] * (size // 7)
        for i in range(size):
            for j in range(size):
                row = math.cos(math.pi * u * (i + 0.5) / size) * (math.sqrt(2) if u else 1) / math.sqrt(size)
                column = math.cos(math.pi * v * (j + 0.5) / size) * (math.sqrt(2) if v else 1) / math.sqrt(size)
                expected[:, c] += x[:, c, i, j] * row * column
    torch.testing.assert_close(DCT(channels, size)(x), expected, rtol=1e-4, atol=1e-4)


def test_fca_is_se_over_the_dct_and_takes_any_size():
    module = randomised(Fca(site(stride=16), 4))  # 14 x 14 at 224
    for side in (14, 28, 7, 5):
        x = torch.randn(2, 32, side, side)
        z = DCT(32, 14)(F.adaptive_avg_pool2d(x, 14))
        weights = logistic((z @ module.fc1.weight.T).clamp(min=0) @ module.fc2.weight.T)
        torch.testing.assert_close(module.refine(x), x * weights[:, :, None, None], rtol=1e-4, atol=1e-4)
    assert set(module.state_dict()) == {"fc1.weight", "fc2.weight"}
    ones = torch.ones(1, 32, 14, 14)
    torch.testing.assert_close(module.squeeze(ones)[0, :2], torch.full((2,), 14.0))  # frequency 0: S times the average


# SRM, SGE, BAM


@given(side=st.integers(1, 6), seed=st.integers(0, 9))
@settings(max_examples=10)
def test_srm_is_its_equation(side, seed):
    module = randomised(SRM(site()), seed)
    x = torch.randn(2, 32, side, side, generator=torch.Generator().manual_seed(seed))
    pixels = x.flatten(2)
    mean = pixels.sum(2) / side**2
    std = (((pixels - mean[..., None]) ** 2).sum(2) / side**2 + 1e-5).sqrt()
    weights = logistic(batch_norm(module.norm, module.style[:, 0] * mean + module.style[:, 1] * std))
    torch.testing.assert_close(module.refine(x), x * weights[:, :, None, None], rtol=1e-3, atol=1e-4)


@given(groups=st.sampled_from([1, 4, 32]), unbiased=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=10)
def test_sge_is_its_equation(groups, unbiased, seed):
    module = randomised(SGE(site(), groups, unbiased), seed)
    x = torch.randn(2, 32, 4, 3, generator=torch.Generator().manual_seed(seed))
    expected = torch.empty_like(x)
    for n in range(2):
        for g in range(groups):
            part = slice(g * 32 // groups, (g + 1) * 32 // groups)
            vectors = x[n, part].flatten(1)  # [C / G, pixels]
            likeness = vectors.mean(1) @ vectors
            deviation = likeness - likeness.mean()
            std = (deviation.square().sum() / (11 if unbiased else 12)).sqrt()
            weights = logistic(deviation / (std + 1e-5) * module.weight[g, 0, 0] + module.bias[g, 0, 0])
            expected[n, part] = x[n, part] * weights.reshape(4, 3)
    torch.testing.assert_close(module.refine(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("unbiased", [False, True])
def test_sge_and_srm_have_gradients_on_maps_of_one_pixel(unbiased):
    for module in (SGE(site(), 8, unbiased), SRM(site())):
        x = torch.randn(2, 32, 1, 1, requires_grad=True)
        module.refine(x).sum().backward()
        assert torch.isfinite(x.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize("combine", ["sum", "product"])
def test_bam_is_its_equation(combine):
    module = randomised(BAM(site(), 4, 2, combine))
    x = torch.randn(2, 32, 6, 6)
    first, norm, _, second = module.channel
    channel = batch_norm(norm, x.mean((2, 3)) @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    spatial = x
    for i, padding in ((0, 0), (3, 2), (6, 2)):
        conv, norm = module.spatial[i], module.spatial[i + 1]
        y = F.conv2d(spatial, conv.weight, conv.bias, padding=padding, dilation=2 if padding else 1)
        spatial = batch_norm(norm, y).clamp(min=0)
    spatial = torch.einsum("nchw,oc->nohw", spatial, module.spatial[9].weight.flatten(1)) + module.spatial[9].bias
    channel = channel[:, :, None, None]
    weights = logistic(channel + spatial if combine == "sum" else channel * spatial)
    torch.testing.assert_close(module.refine(x), x * (1 + weights), rtol=1e-3, atol=1e-3)


def test_bam_stands_after_every_stage_but_the_last():
    sites = [site(stage=s) for s in (1, 2, 3, 4)]
    assert [m is not None for m in BAM.place(sites)] == [True, True, True, False]
    assert [m is not None for m in BAM.place(sites, stages=[4])] == [False, False, False, True]


# AA, EA, SASA


def attended(module: AA, x: Tensor, logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Multi-head attention with relative positions, pixel by pixel: the output channels, and the logits."""
    n, _, height, width = x.shape
    heads, dk = module.heads, module.keys // module.heads
    qkv = torch.einsum("nchw,oc->nohw", x, module.qkv.weight.flatten(1))
    q, k, v = qkv[:, : module.keys], qkv[:, module.keys : 2 * module.keys], qkv[:, 2 * module.keys :]
    pixels = [(y, x_) for y in range(height) for x_ in range(width)]
    middle = module.extent - 1
    if logits is None:
        logits = torch.zeros(n, heads, len(pixels), len(pixels))
        for h in range(heads):
            for i, (yi, xi) in enumerate(pixels):
                query = q[:, h * dk : (h + 1) * dk, yi, xi] / math.sqrt(dk)
                for j, (yj, xj) in enumerate(pixels):
                    key = k[:, h * dk : (h + 1) * dk, yj, xj]
                    if module.rows is not None:
                        dy = max(-middle, min(middle, yj - yi))
                        dx = max(-middle, min(middle, xj - xi))
                        key = key + module.rows[dy + middle] + module.columns[dx + middle]
                    logits[:, h, i, j] = (query * key).sum(1)
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    values = v.flatten(2).unflatten(1, (heads, -1))
    out = torch.einsum("nhij,nhdj->nhdi", weights, values).flatten(1, 2).unflatten(2, (height, width))
    return torch.einsum("nchw,oc->nohw", out, module.out.weight.flatten(1)), logits


def scaled(module: nn.Module) -> nn.Module:
    """Smaller weights, for logits whose softmax is not one-hot."""
    for parameter in randomised(module).parameters():
        parameter.data.mul_(0.3)
    return module


@pytest.mark.parametrize(("relative", "side"), [(True, 4), (True, 6), (False, 4)])
def test_aa_is_its_equation(relative, side):
    module = scaled(AA(conv_site(), heads=2, min_head=3, value_ratio=0.25, relative=relative, input_size=32))
    x = torch.randn(2, 8, side, side - 1)
    y = module.refine(x)
    assert (module.keys, module.values, y.shape) == (6, 4, (2, 16, side, side - 1))
    torch.testing.assert_close(y[:, :12], F.conv2d(x, module.conv.weight, padding=1))
    torch.testing.assert_close(y[:, 12:], attended(module, x)[0], rtol=1e-3, atol=1e-4)


def test_aa_pools_where_the_convolution_strides_and_where_asked():
    x = torch.randn(2, 8, 7, 7)
    pooled = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    module = scaled(AA(conv_site(stride=2), heads=2, min_head=2, input_size=32))
    torch.testing.assert_close(module.refine(x)[:, 14:], attended(module, pooled)[0], rtol=1e-3, atol=1e-4)
    module = scaled(AA(conv_site(), heads=2, min_head=2, input_size=64, downsample=[2]))
    expected = F.interpolate(attended(module, pooled)[0], size=(7, 7), mode="bilinear")
    assert module.extent == 4
    torch.testing.assert_close(module.refine(x)[:, 14:], expected, rtol=1e-3, atol=1e-4)


def test_aa_takes_the_last_three_stages():
    sites = [conv_site(stage=s) for s in (1, 2, 3, 4)]
    assert [m is not None for m in AA.place(sites)] == [False, True, True, True]


@pytest.mark.parametrize("beta", [1.0, 0.4, 0.0])
def test_ea_is_its_equation(beta):
    sites = [conv_site(stage=2, stride=s, depth=i) for i, s in enumerate((1, 1))]
    options = {"heads": 2, "min_head": 3, "downsample": [], "input_size": 32, "beta": beta, "mix": 0.3}
    first, second = (scaled(m) for m in EA.place(sites, **options))
    assert (first.evolution, first.evolves, second.evolves) == (None, False, True)
    x1, x2 = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    y1, state = first((x1,), None)
    expected, logits = attended(first, x1)
    torch.testing.assert_close(y1[:, -first.values :], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state, logits, rtol=1e-3, atol=1e-4)
    mixed = 0.7 * attended(second, x2)[1] + 0.3 * logits
    if beta:
        convolved = F.conv2d(mixed, second.evolution.weight, second.evolution.bias, padding=1)
        mixed = (1 - beta) * mixed + beta * convolved.clamp(min=0)
    y2, state = second((x2,), state)
    torch.testing.assert_close(state, mixed, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(y2[:, -second.values :], attended(second, x2, mixed)[0], rtol=1e-3, atol=1e-4)


def test_ea_evolves_while_the_maps_keep_their_size():
    sites = [site(16, conv=nn.Conv2d(8, 16, 3, 1, 1), stage=s, stride=2 ** (s + 1)) for s in (1, 2, 2, 3, 3, 4)]
    evolves = [None if m is None else m.evolves for m in EA.place(sites)]
    assert evolves == [None, False, True, True, True, False]  # stage 2 works at half the resolution: that of stage 3
    evolves = [None if m is None else m.evolves for m in EA.place(sites, downsample=[])]
    assert evolves == [None, False, True, False, True, False]


@pytest.mark.parametrize(("stride", "dilation", "side"), [(1, 1, 5), (2, 1, 5), (1, 2, 6)])
def test_sasa_is_its_equation(stride, dilation, side):
    conv = nn.Conv2d(8, 16, 3, stride, dilation, dilation)
    module = scaled(SASA(site(16, conv=conv), kernel_size=3, heads=2))
    x = torch.randn(2, 8, side, side)
    q, k, v = torch.einsum("nchw,oc->nohw", x, module.qkv.weight.flatten(1)).chunk(3, 1)
    expected = torch.zeros(2, 16, side, side)
    for h in range(2):
        part = slice(8 * h, 8 * h + 8)
        for y in range(side):
            for x_ in range(side):
                logits, values = [], []
                for i in range(3):
                    for j in range(3):
                        yy, xx = y + (i - 1) * dilation, x_ + (j - 1) * dilation
                        inside = 0 <= yy < side and 0 <= xx < side
                        key = k[:, part, yy, xx] if inside else torch.zeros(2, 8)
                        embedding = torch.cat((module.rows[:, i], module.columns[:, j]))
                        logits.append((q[:, part, y, x_] * (key + embedding)).sum(1))
                        values.append(v[:, part, yy, xx] if inside else torch.zeros(2, 8))
                weights = torch.stack(logits).softmax(0)
                expected[:, part, y, x_] = torch.einsum("kn,knc->nc", weights, torch.stack(values))
    if stride == 2:
        padded = F.pad(expected, (0, 1, 0, 1), value=float("nan"))
        expected = padded.unfold(2, 2, 2).unfold(3, 2, 2).nanmean((4, 5))
    torch.testing.assert_close(module.refine(x), expected, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert module.refine(x).shape[2:] == conv(x).shape[2:]


# DIANet


def test_dia_is_its_equation():
    places = [(1, 16), (1, 16), (2, 16), (2, 24)]
    modules = DIA.place([site(w, stage=s, depth=i) for i, (s, w) in enumerate(places)], reduction=4)
    assert [m.cell is not None for m in modules] == [True, False, True, True]  # a new stage, a new width
    for seed, module in enumerate(modules):
        randomised(module, seed)
    state, cell, h, c = None, None, None, None
    for module, (_, width) in zip(modules, places, strict=True):
        x = torch.randn(2, width, 4, 4)
        if module.cell is not None:
            cell, h, c = module.cell, torch.zeros(2, width), torch.zeros(2, width)
        z = x.mean((2, 3))
        gates = cell.x2(cell.x1(z).relu()) + cell.h2(cell.h1(h).relu())
        i, f, g, o = (gates[:, n * width : (n + 1) * width] for n in range(4))
        c = logistic(f) * c + logistic(i) * torch.tanh(g)
        h = logistic(o) * logistic(c)
        y, state = module((x,), state)
        torch.testing.assert_close(y, x * h[:, :, None, None], rtol=1e-4, atol=1e-5)


def test_dia_shares_a_cell_under_one_name():
    model = attn.create_model("resnet18", "dia", 10)
    keys = [key for key in model.state_dict() if ".cell." in key]
    assert len(keys) == 4 * 8
    assert {key.split(".cell.")[0] for key in keys} == {f"layer{s}.0.se" for s in (1, 2, 3, 4)}


def test_dia_learns_its_cell_from_every_block():
    torch.manual_seed(0)
    first, second = DIA.place([site(depth=0), site(depth=1, block=1)], reduction=2)
    assert not list(second.parameters())
    _, (h, c, parameters) = first((torch.randn(2, 32, 4, 4),), None)
    y, _ = second((torch.randn(2, 32, 4, 4),), (h.detach(), c.detach(), parameters))
    y.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in first.cell.parameters())


# DREAL


def tiny(name: str = "dreal", **options: Any) -> nn.Module:
    config = groups.load("attention", name)
    config["block"] |= options
    torch.manual_seed(0)
    return attn.create_model("resnet18", config, 5, channels=(16, 16, 24, 32), zero_init_last=False)


def test_dreal_runs_as_se():
    model, plain = tiny().eval(), tiny("se").eval()
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys
    assert all(".view." in key or ".critic." in key for key in missing.unexpected_keys)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    assert objectives(model) == [DREAL.objective]
    assert objectives(plain) == []
    assert extra_loss(plain, x, torch.tensor([0, 1]), plain(x)).item() == 0


def test_dreal_levels_the_site_that_is_tried():
    model = tiny().train()
    x, tried = torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 7, 5])
    descriptors, levelled = observe(model, x, tried)
    sites = [m for m in model.modules() if isinstance(m, DREAL)]
    assert [z.shape for z in descriptors] == [(4, s.fc2.out_channels) for s in sites]

    class Levelled(SE):
        def refine(self, x: Tensor) -> Tensor:
            w = self.excite(x.mean((2, 3)))
            return x * torch.where((tried == self.number)[:, None], w.mean(1, keepdim=True), w)[:, :, None, None]

    expected = copy.deepcopy(model)
    for number, module in enumerate(m for m in expected.modules() if isinstance(m, DREAL)):
        module.__class__, module.number = Levelled, number
    with torch.no_grad():
        torch.testing.assert_close(levelled, expected(x))
        assert not torch.allclose(levelled, observe(model, x, None)[1])


@pytest.mark.parametrize("soft", [False, True])
def test_dreal_objective_is_its_definition(soft):
    model = tiny(critic_width=8, actor_weight=0.5, critic_weight=2.0)
    model.train()
    x, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    logits = model(x)
    torch.manual_seed(7)
    loss = extra_loss(model, x, F.one_hot(targets, 5).float() if soft else targets, logits)

    sites = [m for m in model.modules() if isinstance(m, DREAL)]
    torch.manual_seed(7)
    tried = torch.randint(len(sites), (4,))
    descriptors, _ = observe(model, x, None)
    _, levelled = observe(model, x, tried)
    cell, head = sites[0].critic.cell, sites[0].critic.score
    h = c = torch.zeros(4, 8)
    scores = torch.zeros(4, len(sites))
    for k, (module, z) in enumerate(zip(sites, descriptors, strict=True)):
        seen = module.excite(z) * module.view.weight
        groups = [[i for i in range(seen.shape[1]) if i * 8 // seen.shape[1] == g] for g in range(8)]
        inputs = torch.stack([seen[:, group].mean(1) for group in groups], 1)
        gates = inputs @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
        i, f, g, o = gates.chunk(4, 1)
        c = logistic(f) * c + logistic(i) * g.tanh()
        h = logistic(o) * c.tanh()
        scores[:, k] = logistic(h @ head.weight.T + head.bias)[:, 0]
    expected = 0
    for n in range(4):
        better = logits[n].softmax(0)[targets[n]] > levelled[n].softmax(0)[targets[n]]
        expected = expected + (scores[n, tried[n]] - float(better)) ** 2 / 4
    torch.testing.assert_close(loss, 2.0 * expected - 0.5 * scores.mean())


def test_dreal_objective_is_pure_and_each_part_reaches_its_own():
    model = tiny().train()
    x, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    logits = model(x).detach()
    before = copy.deepcopy(model.state_dict())
    extra_loss(model, x, targets, logits).backward()
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if ".se." in name}

    for part, other in (("actor_weight", (".critic.", ".view.")), ("critic_weight", (".fc1.", ".fc2."))):
        alone = tiny(**{part: 0.0}).train()
        extra_loss(alone, x, targets, logits).backward()
        for name, parameter in alone.named_parameters():
            if ".se." in name:
                mine = any(key in name for key in other)
                assert mine == bool(parameter.grad.abs().sum() > 0), name


def test_the_critic_of_dreal_learns_to_predict_the_reward():
    model = tiny(actor_weight=0.0)
    model.train()
    x, targets = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    logits = model(x).detach()
    critic = [p for name, p in model.named_parameters() if ".critic." in name or ".view." in name]
    optimizer = torch.optim.Adam(critic, lr=0.02)
    losses = []
    for _ in range(30):
        torch.manual_seed(3)
        loss = extra_loss(model, x, targets, logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_dreal_follows_mixed_precision():
    model = tiny().train()
    x = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        loss = extra_loss(model, x, torch.tensor([0, 1, 2, 3]), logits)
    assert loss.dtype == torch.float32
    loss.backward()


# Errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Fca(site(), 33), "reduction=33"),
        (lambda: Fca(site(), input_size=0), "input_size=0"),
        (lambda: DCT(16, 5), "fewer than the 7 frequencies"),
        (lambda: SGE(site(), 5), "groups=5 does not divide the 32 channels"),
        (lambda: check_options(BAM, {"combine": "max"}), "combine='max'; choose from sum, product"),
        (lambda: BAM(site(), dilation=0), "dilation=0"),
        (lambda: BAM(site(), 64), "reduction=64"),
        (lambda: BAM.place([site()], stages=[9]), "no stage 9"),
        (lambda: AA(site()), "use it in the conv slot"),
        (lambda: AA(conv_site(), heads=0), "must be positive"),
        (lambda: AA(conv_site(), heads=16), "leave none of 16 channels"),
        (lambda: AA(site(conv=nn.Conv2d(32, 32, 3, padding=1, groups=4))), "has 4 groups"),
        (lambda: AA(site(conv=nn.Conv2d(32, 32, 3))), "zero padding of half the kernel"),
        (lambda: EA(conv_site(), mix=1.5), "mix=1.5 must lie between 0 and 1"),
        (lambda: EA.place([conv_site()], stages=[9]), "no stage 9"),
        (lambda: SASA(conv_site(), kernel_size=4), "kernel_size=4 must be odd"),
        (lambda: SASA(conv_site(), heads=3), "does not divide the 16 channels"),
        (lambda: SASA(site(conv=nn.Conv2d(32, 32, 3, padding=1, groups=32))), "has 32 groups"),
        (lambda: DIA(site(), 33), "reduction=33"),
        (lambda: DREAL(site(), critic_width=0), "critic_width=0"),
        (lambda: DREAL(site(), actor_weight=-1), "must not be negative"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()
