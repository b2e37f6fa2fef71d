"""CBAM, SK, GE, GC and DCA over them: sizes by the tables, results by the equations, chains, errors."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from formulas import batch_norm, randomised, sites
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Conv2dSame, SelectiveKernel
from torch import Tensor, nn

import attn
from attn.attention import Site
from attn.config import groups
from attn.models import flops
from attn.models.options import check_options
from attn.modules.ba import BA
from attn.modules.cbam import CBAM
from attn.modules.dca import DCA, Connection, Printed
from attn.modules.dca_cbam import DCACBAM
from attn.modules.dca_gc import DCAGC
from attn.modules.dca_sk import DCASK
from attn.modules.eca import ECA
from attn.modules.gc import GC
from attn.modules.ge import GETheta, GEThetaMinus, GEThetaPlus
from attn.modules.se import SE
from attn.modules.sk import SK

WIDTHS = (8, 8, 16, 16)  # of the four sites of the chains below; the second 8 -> 16 needs a size matching


site = sites(8)


def conv_site(width: int = 8, prev: int | None = None, conv: nn.Conv2d | None = None) -> Site:
    return site(width, prev, conv=nn.Conv2d(width, width, 3, padding=1, bias=False) if conv is None else conv)


def maps(widths: tuple[int, ...] = WIDTHS, side: int = 8, batch: int = 3) -> list[Tensor]:
    """Independent maps, one per site; the resolution halves where the width changes, as in a network."""
    sides = [side if w == widths[0] else side // 2 for w in widths]
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, w, s, s, generator=generator) for w, s in zip(widths, sides, strict=True)]


def chain(cls: Any, make_site: Any = site, **options: Any) -> nn.ModuleList:
    previous = (None, *WIDTHS[:-1])
    modules = [cls(make_site(w, p), **options) for w, p in zip(WIDTHS, previous, strict=True)]
    return nn.ModuleList(randomised(m, seed) for seed, m in enumerate(modules))


def run(modules: nn.ModuleList, inputs: list[Tensor]) -> list[Tensor]:
    state, outputs = None, []
    for module, x in zip(modules, inputs, strict=True):
        y, state = module((x, x), state)
        outputs.append(y)
    return outputs


def assert_equal(outputs: list[Tensor], expected: list[Tensor]) -> None:
    for i, (ours, theirs) in enumerate(zip(outputs, expected, strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, i=i: f"site {i}: {m}")


def layer_norm(norm: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / ((centred**2).mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def joined(connect: Any, own: Tensor, previous: Tensor) -> Tensor:
    """The direct connection as the authors write it: a 1x1 convolution of the two descriptors stacked as channels."""
    stacked = torch.stack((own, previous), 1)[:, :, None]
    bias = None if connect.bias is None else connect.bias.view(1)
    return F.relu(layer_norm(connect.norm, F.conv2d(stacked, connect.alpha_beta.view(1, 2, 1, 1), bias)[:, 0, 0]))


def fitted(match: Any, previous: Tensor) -> Tensor:
    """One or two fully connected layers, each with LayerNorm and ReLU."""
    if match is None:
        return previous
    for i in range(0, len(match), 3):
        previous = F.relu(layer_norm(match[i + 1], previous @ match[i].weight.T + match[i].bias))
    return previous


# ---- the modules by themselves ----


@pytest.mark.parametrize("pool", ["avg", "max", "avg+max"])
@pytest.mark.parametrize(("channel", "spatial", "shared"), [(1, 1, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0)])
def test_cbam_is_its_equations(pool, channel, spatial, shared):
    if not shared and pool != "avg+max":
        with pytest.raises(ValueError, match=r"shared=False.*avg\+max"):
            CBAM(site(), reduction=4, pool=pool, shared=False)
        return
    options = {"channel": bool(channel), "spatial": bool(spatial), "shared": bool(shared)}
    cbam: Any = randomised(CBAM(site(), reduction=4, pool=pool, **options))
    (x,) = maps((8,))
    y = x
    if channel:
        pools = {"avg": x.mean((2, 3)), "max": x.flatten(2).max(2).values}
        total = torch.zeros(())
        for i, name in enumerate(pool.split("+")):
            first, _, second = cbam.channel.mlps[0 if shared else i]
            hidden = F.relu(pools[name] @ first.weight.T + first.bias)
            total = total + hidden @ second.weight.T + second.bias
        y = torch.einsum("nchw,nc->nchw", y, 1 / (1 + torch.exp(-total)))
    if spatial:
        pooled = torch.cat((y.max(1, keepdim=True).values, y.mean(1, keepdim=True)), 1)
        weights = batch_norm(cbam.spatial.norm, F.conv2d(pooled, cbam.spatial.conv.weight, padding=3))
        y = y * (1 / (1 + torch.exp(-weights)))
    assert_equal([cbam.refine(x)], [y])


@pytest.mark.parametrize("stride", [1, 2])
def test_sk_is_timm_s_selective_kernel(stride):
    ours: Any = SK(conv_site(32, conv=nn.Conv2d(32, 32, 3, stride, 1, groups=4, bias=False)), min_width=8)
    theirs: Any = randomised(SelectiveKernel(32, 32, stride=stride, groups=4, rd_ratio=1 / 4, split_input=False))
    with torch.no_grad():
        for branch, path in zip(ours.branches, theirs.paths, strict=True):
            branch[0].load_state_dict(path.conv.state_dict())
            branch[1].load_state_dict(path.bn.state_dict())
        ours.fc1.weight.copy_(theirs.attn.fc_reduce.weight.flatten(1))
        ours.norm.load_state_dict(theirs.attn.bn.state_dict())
        ours.fc2.weight.copy_(theirs.attn.fc_select.weight.flatten(1))
    (x,) = maps((32,))
    assert_equal([ours.eval().refine(x)], [theirs(x)])


def test_sk_keeps_the_weights_of_the_convolution_that_it_replaces():
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    weight = conv.weight.clone()
    model = SK(conv_site(conv=conv), reduction=2, min_width=1)
    torch.testing.assert_close(model.branches[0][0].weight, weight)
    assert sum(p is conv.weight for p in model.parameters()) == 1


@pytest.mark.parametrize(("dilation", "groups"), [(1, 8), (2, 8), (2, 1)])
def test_sk_branches_of_a_depthwise_or_dilated_convolution(dilation, groups):
    conv = nn.Conv2d(8, 8, 5, 2, padding=2 * dilation, dilation=dilation, groups=groups, bias=False)
    model: Any = SK(conv_site(conv=conv), reduction=2, min_width=1, dilations=(1, 2, 3), act="relu6")
    assert [(b[0].dilation[0], b[0].groups) for b in model.branches] == [(dilation * d, groups) for d in (1, 2, 3)]
    assert all(isinstance(b[2], nn.ReLU6) for b in model.branches)
    (x,) = maps((8,), side=9)
    assert model.refine(x).shape == (3, 8, 5, 5)


def test_sk_pads_as_tensorflow_where_its_convolution_does():
    conv = Conv2dSame(8, 8, 3, stride=2)
    model: Any = SK(conv_site(conv=conv), reduction=2, min_width=1)
    assert isinstance(model.branches[1][0], Conv2dSame)
    assert model.refine(maps((8,), side=9)[0]).shape == (3, 8, 5, 5)


@pytest.mark.parametrize("side", [4, 8, 6])
def test_ge_is_its_equations(side):
    (x,) = maps((8,), side=side)
    assert_equal([GEThetaMinus(site()).refine(x)], [x / (1 + torch.exp(-x.mean((2, 3), keepdim=True)))])
    for cls in (GETheta, GEThetaPlus):
        options = {"reduction": 4} if cls is GEThetaPlus else {}
        ge: Any = randomised(cls(site(stride=8), input_size=32, **options))
        at_extent = F.adaptive_avg_pool2d(x, 4)  # 32 pixels at stride 8
        z = batch_norm(ge.norm, torch.einsum("nchw,chw->nc", at_extent, ge.gather.weight[:, 0]))
        if cls is GEThetaPlus:
            z = F.relu(z @ ge.fc1.weight.T + ge.fc1.bias) @ ge.fc2.weight.T + ge.fc2.bias
        assert_equal([ge.refine(x)], [x / (1 + torch.exp(-z))[:, :, None, None]])


def test_ge_extent_covers_maps_of_an_input_that_the_stride_does_not_divide():
    assert GETheta(site(stride=32), input_size=33).extent == 2


def gc_term(gc: Any, context: Tensor) -> Tensor:
    hidden = F.relu(layer_norm(gc.norm, context @ gc.fc1.weight.T + gc.fc1.bias))
    return hidden @ gc.fc2.weight.T + gc.fc2.bias


def gc_context(gc: Any, x: Tensor) -> Tensor:
    """Position by position."""
    logits = torch.einsum("nchw,c->nhw", x, gc.key.weight.flatten()) + gc.key.bias
    share = torch.exp(logits) / torch.exp(logits).sum((1, 2), keepdim=True)
    return sum(x[:, :, i, j] * share[:, None, i, j] for i in range(x.shape[2]) for j in range(x.shape[3]))


def test_gc_is_its_equation():
    gc: Any = randomised(GC(site(), reduction=4))
    (x,) = maps((8,))
    assert_equal([gc.refine(x)], [x + gc_term(gc, gc_context(gc, x))[:, :, None, None]])


def test_gc_starts_as_the_identity_unless_told_otherwise():
    (x,) = maps((8,))
    assert torch.equal(GC(site(), reduction=4).refine(x), x)
    assert not torch.equal(GC(site(), reduction=4, zero_init=False).refine(x), x)


def test_first_reduction_is_that_of_the_first_block_of_every_stage():
    build = partial(SE, reduction=4, first_reduction=2)
    hidden = [build(site(stage=s, block=b)).fc1.out_channels for s, b in ((1, 0), (1, 1), (2, 0), (2, 1))]
    assert hidden == [4, 2, 4, 2]


# ---- the connection ----


@given(values=st.lists(st.floats(-30, 30, width=32), min_size=8, max_size=8), seed=st.integers(0, 99))
def test_schemas_are_their_equations_and_finite_everywhere(values, seed):
    own, previous = torch.tensor(values)[:, None].chunk(2)
    own, previous = own.T, previous.T
    for schema in ("direct", "softmax", "weighted"):
        connect: Any = randomised(Connection(4, schema), seed)
        alpha, beta = connect.alpha_beta
        g, t = alpha * own, beta * previous
        if schema == "direct":
            f = g + t
        elif schema == "softmax":
            share = torch.stack((g, t)).softmax(0)
            f = share[0] * g + share[1] * t
        else:
            f = (g**2 + t**2) / (g + t)
        result = connect(own, previous)
        assert torch.isfinite(result).all()
        if schema == "weighted" and ((g + t).abs() < 0.3).any():
            continue  # near the pole the equation has no value to compare with
        expected = F.relu(F.layer_norm(f + connect.bias, (4,), connect.norm.weight, connect.norm.bias))
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-2)


def test_weighted_connection_has_finite_gradients_at_its_pole():
    connect = Connection(4, "weighted")
    with torch.no_grad():
        connect.alpha_beta.copy_(torch.tensor([1.0, -1.0]))
    own = torch.ones(2, 4, requires_grad=True)
    connect(own, torch.ones(2, 4)).sum().backward()
    assert torch.isfinite(own.grad).all()
    assert torch.isfinite(connect.alpha_beta.grad).all()


def test_connection_starts_as_the_networks_convolutions_do():
    torch.manual_seed(0)
    start = torch.stack([Connection(1).alpha_beta.detach() for _ in range(4000)])
    assert start.mean().abs() < 0.05
    assert abs(start.std() - 2**0.5) < 0.05


# ---- as printed ----

PLAIN: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "SE": (DCA, site, {"base": partial(SE, reduction=4)}),
    "GE": (DCA, site, {"base": GEThetaMinus}),
    "SK": (DCASK, conv_site, {"base": partial(SK, reduction=4, min_width=1)}),
    "GC": (DCAGC, site, {"base": partial(GC, reduction=4, zero_init=False)}),
    "CBAM": (DCACBAM, site, {"base": partial(CBAM, reduction=4)}),
}


@pytest.mark.parametrize("schema", ["direct", "weighted"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_printed_form_starts_as_the_plain_attention_exactly(name, schema):
    cls, make_site, options = PLAIN[name]
    previous = (None, *WIDTHS[:-1])
    modules: Any = [
        cls(make_site(w, p), **options, reduction=4, form="equations", connection=schema)
        for w, p in zip(WIDTHS, previous, strict=True)
    ]
    expected = [m.base.refine(x) for m, x in zip(modules, maps(), strict=True)]
    for ours, theirs in zip(run(modules, maps()), expected, strict=True):
        assert torch.equal(ours, theirs)
    joins = [j for m in modules for j in m.modules() if isinstance(j, Printed)]
    assert len(joins) == 3 * {"SK": 2, "CBAM": 2}.get(name, 1)
    assert all(type(j) is Printed and j.alpha_beta.tolist() == [1, 0] for j in joins)


@pytest.mark.parametrize("schema", ["direct", "softmax", "weighted"])
def test_the_printed_formulas_element_by_element(schema):
    connect = Printed(schema)
    own, previous = maps((8, 8))
    connect(own, previous).square().sum().backward()
    assert connect.alpha_beta.grad.abs().min() > 0, "alpha and beta learn from 1 and 0"
    alpha, beta = 1.5, -0.5
    connect.alpha_beta.data = torch.tensor([alpha, beta])
    own, previous = maps((8,))[0].flatten(1)[:, :40].double(), maps((8,))[0].flatten(1)[:, 40:80].double()
    result = connect.double()(own, previous)
    for n in range(own.shape[0]):
        for i in range(own.shape[1]):
            g, t = alpha * own[n, i].item(), beta * previous[n, i].item()
            if schema == "direct":
                value = g + t
            elif schema == "weighted":
                value = g**2 / (g + t) + t**2 / (g + t)
                if abs(g + t) < 0.2:
                    continue  # at the pole there is nothing to compare with
            else:
                value = (math.exp(g) * g + math.exp(t) * t) / (math.exp(g) + math.exp(t))
            assert result[n, i].item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_in_the_printed_form_descriptors_are_joined_and_nothing_follows(name):
    """alpha and beta set: every site's result is that of the plain attention for the join of its descriptors."""
    cls, make_site, options = PLAIN[name]
    first, second = (cls(make_site(8, p), **options, reduction=4, form="equations") for p in (None, 8))
    for join in [j for j in second.modules() if isinstance(j, Printed)]:
        join.alpha_beta.data = torch.tensor([0.5, 2.0])
    x, y = maps((8, 8))
    _, state = first.eval()((x, x), None)
    ours, _ = second.eval()((y, y), state)
    base: Any = second.base
    if name == "GC":
        expected = base.add(y, base.transform(0.5 * base.context(y) + 2 * state))
    elif name == "SK":
        branches = base.split(y)
        expected = base.select(branches, base.excite((0.5 * base.squeeze(branches) + 2 * state).sum(1)))
    elif name == "CBAM":
        own, before = base.channel.squeeze(y), base.channel.squeeze(state[0])
        z = y * base.channel.excite([0.5 * a + 2 * b for a, b in zip(own, before, strict=True)])[:, :, None, None]
        expected = z * base.spatial.excite(0.5 * base.spatial.squeeze(z) + 2 * base.spatial.squeeze(state[1]))
    else:
        expected = y * base.excite(0.5 * y.mean((2, 3)) + 2 * state)[:, :, None, None]
    assert_equal([ours], [expected])


@pytest.mark.parametrize("name", ["dca_se", "dca_ge", "dca_sk", "dca_gc", "dca_cbam"])
def test_the_printed_form_is_a_setting_of_every_config(name):
    slot = "conv" if name == "dca_sk" else "block"
    mapping = groups.load("attention", name)
    released = attn.create_model("resnet18", mapping)
    mapping[slot]["form"] = "equations"
    printed = attn.create_model("resnet18", mapping)
    assert not any(isinstance(m, Connection) for m in printed.modules())
    assert any(isinstance(m, Printed) for m in printed.modules())
    assert sum(p.numel() for p in printed.parameters()) != sum(p.numel() for p in released.parameters())


# ---- the chains ----


@pytest.mark.parametrize("matching", ["1fc", "2fc"])
@pytest.mark.parametrize("gate", ["se", "ge"])
def test_dca_over_gates_is_its_equations(gate, matching):
    base = partial(SE, reduction=4) if gate == "se" else GEThetaMinus
    modules: Any = chain(DCA, base=base, matching=matching, reduction=4)
    expected, handed = [], None
    for m, x in zip(modules, maps(), strict=True):
        own = z = x.mean((2, 3))
        if handed is not None:
            z = joined(m.connect, own, fitted(m.match, handed))
        if gate == "se":
            fc1, fc2 = m.base.fc1, m.base.fc2
            z = F.relu(z @ fc1.weight.flatten(1).T + fc1.bias) @ fc2.weight.flatten(1).T + fc2.bias
        weights = 1 / (1 + torch.exp(-z))
        handed = own * weights
        expected.append(x * weights[:, :, None, None])
    assert [m.match is None for m in modules] == [True, True, False, True]
    assert_equal(run(modules, maps()), expected)


@pytest.mark.parametrize("base", [ECA, partial(GETheta, input_size=64), partial(GEThetaPlus, input_size=64, reduction=4)])
def test_dca_takes_any_gate(base):
    modules: Any = chain(DCA, base=base, reduction=4)
    first, *others = run(modules, maps())
    torch.testing.assert_close(first, modules[0].base.refine(maps()[0]))
    for module, x, y in zip(list(modules)[1:], maps()[1:], others, strict=True):
        assert not torch.allclose(y, module.base.refine(x))


@pytest.mark.parametrize("hand_on", ["descriptor", "weights"])
@pytest.mark.parametrize("matching", ["1fc", "2fc"])
def test_dca_sk_is_its_equations(hand_on, matching):
    base = partial(SK, reduction=4, min_width=1)
    modules: Any = chain(DCASK, conv_site, base=base, matching=matching, reduction=4, hand_on=hand_on)
    expected, handed = [], None
    for m, x in zip(modules, maps(), strict=True):
        u = [
            F.relu(batch_norm(b[1], F.conv2d(x, b[0].weight, padding=d, dilation=d)))
            for d, b in enumerate(m.base.branches, 1)
        ]
        own = z = [b.mean((2, 3)) for b in u]
        if handed is not None:
            matches = m.matches or (None, None)
            z = [joined(m.connects[i], own[i], fitted(matches[i], handed[i])) for i in range(2)]
        hidden = F.relu(batch_norm(m.base.norm, (z[0] + z[1]) @ m.base.fc1.weight.T))
        e = torch.exp(hidden @ m.base.fc2.weight.T).chunk(2, 1)
        weights = [e[i] / (e[0] + e[1]) for i in range(2)]
        expected.append(sum(u[i] * weights[i][:, :, None, None] for i in range(2)))
        handed = weights if hand_on == "weights" else [(u[i] * weights[i][:, :, None, None]).mean((2, 3)) for i in range(2)]
    assert_equal(run(modules, maps()), expected)


@pytest.mark.parametrize("matching", ["1fc", "2fc"])
def test_dca_gc_is_its_equation(matching):
    modules: Any = chain(DCAGC, base=partial(GC, reduction=4), matching=matching, reduction=4)
    expected, term = [], None
    for m, x in zip(modules, maps(), strict=True):
        context = gc_context(m.base, x)
        if term is not None:
            if isinstance(m.match, nn.Linear):
                term = term @ m.match.weight.T + m.match.bias
            elif m.match is not None:
                first, norm, _, last = m.match
                term = F.relu(layer_norm(norm, term @ first.weight.T + first.bias)) @ last.weight.T + last.bias
            context = context + m.weight * term
        term = gc_term(m.base, context)
        expected.append(x + term[:, :, None, None])
    assert_equal(run(modules, maps()), expected)


def test_dca_gc_starts_as_gc():
    base = partial(GC, reduction=4, zero_init=False)
    first, second = DCAGC(site(), base, reduction=4), DCAGC(site(prev=8), base, reduction=4)
    x, y = maps((8, 8))
    _, term = first((x, x), None)
    refined, _ = second((y, y), term)
    torch.testing.assert_close(refined, second.base.refine(y))


def mean_or_max(x: Tensor, pool: str, ratio: int) -> Tensor:
    windows = x.unflatten(3, (-1, ratio)).unflatten(2, (-1, ratio))
    return windows.mean((3, 5)) if pool == "avg" else windows.amax((3, 5))


@pytest.mark.parametrize("connect", ["both", "channel", "spatial"])
@pytest.mark.parametrize("match_on", ["map", "pooled"])
@pytest.mark.parametrize(("matching", "spatial_matching"), [("1fc", "avg"), ("2fc", "max")])
@pytest.mark.parametrize("pool", ["avg+max", "avg"])
def test_dca_cbam_is_its_equations(connect, match_on, matching, spatial_matching, pool):
    modules: Any = chain(
        DCACBAM,
        base=partial(CBAM, reduction=4, pool=pool),
        connect=connect,
        matching=matching,
        reduction=4,
        match_on=match_on,
        spatial_matching=spatial_matching,
        matching_bias=True,
    )

    def fit(m: Any, t: Tensor) -> Tensor:
        for i in range(0, 0 if m.match is None else len(m.match), 3):
            t = F.relu(batch_norm(m.match[i + 1], F.conv2d(t, m.match[i].weight, m.match[i].bias)))
        return t

    def pools(x: Tensor) -> list[Tensor]:
        return [x.mean((2, 3)), x.flatten(2).max(2).values][: len(pool.split("+"))]

    expected: list[Tensor] = []
    channel_map = spatial_map = None
    for m, x in zip(modules, maps(), strict=True):
        z = pools(x)
        if connect != "spatial" and channel_map is not None:
            if match_on == "map":
                earlier = pools(fit(m, channel_map))
            else:
                earlier = [fit(m, p[:, :, None, None])[:, :, 0, 0] for p in pools(channel_map)]
            z = [joined(m.connect, own, p) for own, p in zip(z, earlier, strict=True)]
        first, _, second = m.base.channel.mlps[0]
        total = sum(F.relu(p @ first.weight.T + first.bias) @ second.weight.T + second.bias for p in z)
        channel_map = x * torch.sigmoid(total)[:, :, None, None]
        pooled = torch.stack((channel_map.max(1).values, channel_map.mean(1)), 1)
        if connect != "channel" and spatial_map is not None:
            resized = mean_or_max(spatial_map, spatial_matching, spatial_map.shape[2] // x.shape[2])
            p1, p2 = m.connect_spatial.p1, m.connect_spatial.p2
            previous = torch.stack((resized.max(1).values, resized.mean(1)), 1)
            pooled = F.relu(batch_norm(m.connect_spatial.norm, p1 * pooled + p2 * previous))
        weights = batch_norm(m.base.spatial.norm, F.conv2d(pooled, m.base.spatial.conv.weight, padding=3))
        spatial_map = channel_map * torch.sigmoid(weights)
        expected.append(spatial_map)
    assert_equal(run(modules, maps()), expected)


def spatial_gradients(zero_init: bool) -> list[float]:
    torch.manual_seed(0)
    base = partial(CBAM, reduction=4)
    modules = nn.ModuleList(DCACBAM(site(prev=p), base, zero_init=zero_init) for p in (None, 8))
    sum(y.square().sum() for y in run(modules, maps((8, 8)))).backward()
    second: Any = modules[1]
    parts = (second.base.spatial.conv.weight, second.connect_spatial.p2, second.connect_spatial.norm.weight)
    return [p.grad.abs().max().item() for p in parts]


def test_the_spatial_connection_learns_and_dies_under_the_authors_initialisation():
    assert min(spatial_gradients(zero_init=False)) > 0
    assert max(spatial_gradients(zero_init=True)) == 0


CHAINS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dca_se": (DCA, site, {"base": partial(SE, reduction=4), "reduction": 4}),
    "dca_ge": (DCA, site, {"base": GEThetaMinus, "reduction": 4}),
    "dca_sk": (DCASK, conv_site, {"base": partial(SK, reduction=4), "reduction": 4}),
    "dca_gc": (DCAGC, site, {"base": partial(GC, reduction=4), "reduction": 4}),
    "dca_cbam": (DCACBAM, site, {"base": partial(CBAM, reduction=4), "reduction": 4}),
    "dca_se, printed": (DCA, site, {"base": partial(SE, reduction=4), "reduction": 4, "form": "equations"}),
    "dca_gc, printed": (DCAGC, site, {"base": partial(GC, reduction=4), "reduction": 4, "form": "equations"}),
    "dca_cbam, printed": (DCACBAM, site, {"base": partial(CBAM, reduction=4), "reduction": 4, "form": "equations"}),
    "dca_cbam, pooled first": (DCACBAM, site, {"base": partial(CBAM, reduction=4), "match_on": "pooled"}),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_train_even_on_single_values_and_only_unused_parameters_get_no_gradient(name):
    cls, make_site, options = CHAINS[name]
    for unused in (False, True):
        modules = chain(cls, make_site, **options, unused=unused).train()
        sum(y.square().sum() for y in run(modules, maps())).backward()
        without = {n for n, p in modules.named_parameters() if p.grad is None}
        assert all(n.startswith("0.") for n in without)
        assert bool(without) == unused
        # SK's branches end with the BatchNorm of the block that they replace, which needs two values.
        height = 2 if name == "dca_sk" else 1
        ones = [m[:1, :, :height, :1] for m in maps()]
        assert all(torch.isfinite(y).all() for y in run(modules, ones))


@pytest.mark.parametrize("name", CHAINS)
def test_chains_keep_bfloat16_maps_and_do_not_mix_images(name):
    cls, make_site, options = CHAINS[name]
    modules = chain(cls, make_site, **options)
    whole, alone = run(modules, maps()), run(modules, [m[:1] for m in maps()])
    assert_equal([y[:1] for y in whole], alone)
    with torch.autocast("cpu", torch.bfloat16):
        assert {y.dtype for y in run(modules, [m.bfloat16() for m in maps()])} == {torch.bfloat16}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_have_the_gradients_of_finite_differences(name):
    """In double precision, from the last map to the first site's parameters: through all states."""
    cls, make_site, options = CHAINS[name]
    modules = chain(cls, make_site, **options).double()
    first = [p for n, p in modules.named_parameters() if n.startswith("0.")]
    inputs = [m.double() for m in maps(side=4, batch=2)]

    def last(*parameters: Tensor) -> Tensor:
        return torch.tanh(run(modules, inputs)[-1])

    if first:
        assert torch.autograd.gradcheck(last, first, fast_mode=True)
    else:  # GE-theta-minus
        x = inputs[0].requires_grad_()
        assert torch.autograd.gradcheck(lambda x: run(modules, [x, *inputs[1:]])[-1], (x,), fast_mode=True)


# ---- sizes ----


def resnet(backbone: str, name: str, options: dict[str, Any]) -> nn.Module:
    config = groups.load("attention", name)
    (slot,) = {"conv", "block"} & config.keys()
    base = options.pop("base", {})
    config[slot] |= options
    if base:
        config[slot]["base"] |= base
    with torch.device("meta"):
        return attn.create_model(backbone, config)


OWN = {"unused": True}
MILLIONS = [
    ("resnet50", "se", {}, 28088024),
    ("resnet50", "sk", {"min_width": 1}, 37118080),
    ("resnet50", "sk", {"min_width": 1, "groups": [None, 32], "dilations": [1, 1]}, 26154496),
    ("resnet50", "ge_theta_minus", {}, 25557032),
    ("resnet50", "ge_theta", {}, 31106600),
    ("resnet50", "ge_theta_plus", {}, 33637592),
    ("resnet50", "cbam", {}, 28089624),
    # BA2M's CIFAR ResNet-50 of 28768836, with the stem (9408 instead of 1728) and classifier of ImageNet.
    ("resnet50", "cbam", {"shared": False}, 28768836 + 9408 - 1728 + 2049 * 1000 - 2049 * 100),
    ("resnet50", "gc", {}, 28105032),
    ("resnet50", "gc", {"stages": [2, 3, 4]}, 28078773),
    ("resnet50", "dca_se", OWN, 28651736),
    ("resnet50", "dca_se", {**OWN, "connection": "softmax"}, 28651736),
    ("resnet50", "dca_se", {**OWN, "connection": "weighted"}, 28651736),
    ("resnet50", "dca_se", {**OWN, "matching": "1fc"}, 30898696),
    ("resnet50", "dca_se", {**OWN, "reduction": 8, "base": {"first_reduction": 8}}, 29870232),
    ("resnet50", "dca_se", {**OWN, "reduction": 4, "base": {"first_reduction": 4}}, 32307224),
    ("resnet50", "dca_sk", OWN, 37482720),
    ("resnet50", "dca_ge", OWN, 26120744),
    ("resnet50", "dca_ge", {**OWN, "matching": "1fc"}, 28367704),
    ("resnet50", "dca_cbam", {**OWN, "matching_bias": True}, 30900376),
    ("resnet50", "dca_cbam", {**OWN, "matching_bias": True, "connect": "channel"}, 30900280),
    ("resnet50", "dca_cbam", {**OWN, "connect": "spatial"}, 28089720),
    ("resnet50", "dca_cbam", {**OWN, "connect": "spatial", "spatial_matching": "max"}, 28089720),
    ("resnet50", "dca_gc", OWN, 28630824),
    ("resnet101", "se", {}, 49326872),
    ("resnet101", "dca_se", OWN, 49925451),
    ("resnet101", "gc", {}, 49363481),
    ("resnet152", "se", {}, 66821848),
    ("resnet152", "dca_se", OWN, 67451198),
]


@pytest.mark.parametrize(("backbone", "name", "options", "params"), MILLIONS)
def test_networks_have_the_parameters_of_the_tables(backbone, name, options, params):
    assert flops.parameters(resnet(backbone, name, dict(options))) == params


def test_sk_of_a_resnext_has_the_size_of_timm_s_sknet():
    with torch.device("meta"):
        theirs = flops.parameters(attn.create_model("skresnext50_32x4d"))
    assert flops.parameters(resnet("resnext50_32x4d", "sk", {})) == theirs


OPERATIONS = [
    ("sk", {"min_width": 1}, "5.98"),
    ("ge_theta_minus", {}, "4.13"),
    ("cbam", {}, "4.14"),
    ("gc", {}, "4.13"),
    ("dca_se", {}, "4.13"),
    ("dca_sk", {}, "5.98"),
    ("dca_cbam", {}, "5.40"),
    ("dca_cbam", {"match_on": "pooled"}, "4.16"),
]


@pytest.mark.parametrize(("name", "options", "printed"), OPERATIONS)
def test_networks_cost_what_the_authors_code_costs(name, options, printed):
    assert f"{flops.count(resnet('resnet50', name, dict(options))).ptflops / 1e9:.2f}" == printed


# Stacks of the mobile networks: blocks, output channels, expansion; and the input channels of the first.
MOBILENET_V2 = (32, [(1, 16, 1), (2, 24, 6), (3, 32, 6), (4, 64, 6), (3, 96, 6), (3, 160, 6), (1, 320, 6)])
MNASNET = (16, [(3, 24, 3), (3, 40, 3), (3, 80, 6), (2, 96, 6), (4, 192, 6), (1, 320, 6)])


def mobile_sites(network: Any, slot: str) -> list[Site]:
    """Sites as a mobile backbone gives them: after the last convolution (end), or the depthwise convolution (conv)."""
    width, stacks = network
    sites: list[Site] = []
    for stage, (blocks, out, expansion) in enumerate(stacks, start=1):
        for block in range(blocks):
            h = width * expansion
            conv = nn.Conv2d(h, h, 3, padding=1, groups=h, bias=False) if slot == "conv" else None
            widths = (h, h) if slot == "conv" else (width, h, h, out)
            prev = sites[-1].widths if sites else None
            sites.append(Site(widths, stage, block, len(sites), 1, prev, False, conv))
            width = out
    return sites


SE8, CBAM8 = partial(SE, reduction=8), partial(CBAM, reduction=8)
SK8 = partial(SK, reduction=8, min_width=1, act="relu6")
MOBILE: list[tuple[Any, Any, int, int]] = [
    (MOBILENET_V2, SE8, 3504872, 3563492),
    (MOBILENET_V2, CBAM8, 3504872, 3565192),
    (MOBILENET_V2, partial(DCA, base=SE8, matching="1fc", bias=False, unused=True), 3504872, 3645086),
    (MOBILENET_V2, partial(DCA, base=GEThetaMinus, matching="1fc", unused=True), 3504872, 3586483),
    (MOBILENET_V2, partial(DCACBAM, base=CBAM8, unused=True), 3504872, 3646176),
    (MOBILENET_V2, SK8, 3504872, 5277248),
    (MOBILENET_V2, partial(DCASK, base=SK8, matching="2fc", reduction=8, hand_on="weights", unused=True), 3504872, 5911786),
    (MNASNET, SE, 4383312, 4421688),
    (MNASNET, CBAM, 4383312, 4423288),
    (MNASNET, partial(DCA, base=partial(SE, first_reduction=8), reduction=8, unused=True), 4383312, 4478586),
    (MNASNET, partial(DCA, base=SE, unused=True), 4383312, 4443074),
    (MNASNET, partial(DCA, base=GEThetaMinus, matching="1fc", unused=True), 4383312, 4481136),
    (MNASNET, partial(DCACBAM, base=CBAM8, unused=True), 4383312, 4557494),
]


@pytest.mark.parametrize(("network", "build", "plain", "params"), MOBILE)
def test_mobile_networks_would_have_the_parameters_of_the_table(network, build, plain, params):
    slot = "conv" if getattr(build, "func", build) in (SK, DCASK) else "block"
    with torch.device("meta"):
        sites = mobile_sites(network, slot)
        added = sum(flops.parameters(build(s)) for s in sites)
        # SK takes the convolution with it, and brings the normalisation that it replaces.
        replaced = sum(s.conv.weight.numel() + 2 * s.width for s in sites if s.conv is not None)
    assert plain + added - replaced == params


# ---- what cannot be ----

BAD: list[tuple[Any, str]] = [
    (lambda: SE(site(), first_reduction=99), "reduction=99 must lie between"),
    (lambda: CBAM(site(), reduction=16), "CBAM: reduction=16 must lie between 1 and the 8"),
    (lambda: check_options(CBAM, {"pool": "min"}), "pool='min'; choose from avg, max"),
    (lambda: CBAM(site(), reduction=4, channel=False, spatial=False), "leave nothing"),
    (lambda: CBAM(site(), reduction=4, kernel_size=4), "kernel_size=4 must be odd"),
    (lambda: SK(site(), reduction=4), "conv slot"),
    (lambda: SK(conv_site(), reduction=4, dilations=(2, 3)), "the first is the convolution itself"),
    (lambda: SK(conv_site(), reduction=4, dilations=(1,)), "two branches or more"),
    (lambda: SK(conv_site(), reduction=4, dilations=(1, 0)), "must be 1 or more"),
    (lambda: SK(conv_site(), reduction=4, groups=(None, 3)), "groups=3 must divide"),
    (lambda: SK(conv_site(), reduction=4, groups=(None, 2, 2)), "one entry per branch"),
    (lambda: SK(conv_site(), reduction=4, act="rleu"), "act='rleu'"),
    (lambda: GC(site(), reduction=0), "GC: reduction=0 must lie between"),
    (lambda: GETheta(site(), input_size=0), "input_size=0"),
    (lambda: GEThetaPlus(site(), reduction=9), "GE: reduction=9"),
    (lambda: check_options(DCA, {"base": GEThetaMinus, "connection": "sum"}), "connection='sum'; choose from direct"),
    (lambda: check_options(DCA, {"base": GEThetaMinus, "form": "printed"}), "form='printed'; choose from released"),
    (lambda: DCAGC(site(), partial(GC, reduction=4), reduction=4, connection="softmax"), "'softmax' of GC.*form=equations"),
    (lambda: check_options(DCA, {"base": GEThetaMinus, "matching": "3fc"}), "matching='3fc'; choose from 1fc, 2fc"),
    (lambda: DCA(site(), GEThetaMinus, reduction=99), "DCA size matching: reduction=99"),
    (lambda: DCA(site(), partial(CBAM, reduction=4)), "not CBAM; use dca_cbam"),
    (lambda: DCA(Site((8, 8, 8), 1, 0, 0, 4), partial(BA, reduction=4)), "not BA"),
    (lambda: DCASK(conv_site(), GEThetaMinus), "dca_sk connects SK, not GEThetaMinus"),
    (lambda: check_options(DCASK, {"base": SK, "hand_on": "map"}), "hand_on='map'"),
    (lambda: DCAGC(site(), GEThetaMinus), "dca_gc connects GC"),
    (lambda: DCACBAM(site(), GEThetaMinus), "dca_cbam connects CBAM"),
    (lambda: DCACBAM(site(), partial(CBAM, reduction=4, spatial=False)), r"needs the spatial attention.*base.spatial=False"),
    (lambda: check_options(DCACBAM, {"base": CBAM, "connect": "all"}), "connect='all'"),
    (lambda: check_options(DCACBAM, {"base": CBAM, "match_on": "maps"}), "match_on='maps'"),
    (lambda: check_options(DCACBAM, {"base": CBAM, "spatial_matching": "min"}), "spatial_matching='min'"),
]


@pytest.mark.parametrize(("build", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_settings_get_one_clear_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_sk_is_refused_in_the_block_slot_of_a_network():
    with pytest.raises(ValueError, match=r"backbone=resnet18.*conv slot"):
        attn.create_model("resnet18", {"block": SK})


def test_connections_go_on_where_stages_are_left_out():
    """A chain over chosen stages starts at its own first block, which needs no size matching."""
    model: Any = resnet("resnet50", "dca_gc", {"stages": [2, 4]})
    assert model.layer2[0].se.weight is None
    assert model.layer4[0].se.match[0].in_features == 512
