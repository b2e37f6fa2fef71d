"""The end of a block as one operator: equal to the modules that it replaces, in any form, and with little memory."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_checks import arguments, compare, large_means_keep_the_variance, nan_passes
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import attn
from attn.attention import Gate, Site
from attn.kernels import cpu, form_here, ops, reference
from attn.models.create import fused_blocks, set_kernels
from attn.modules.dca import Printed
from attn.modules.srm import SRM

GATES = ["se", "eca", "srm", "fca", "ba", "ba_v2", "dca_se", "ge_theta_minus", "dreal"]
SE = {"_target_": "attn.modules.se.SE"}
SMALL = {"layers": (1, 2, 1, 1), "channels": (16, 32, 48, 64)}
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("compiled_kernels")


def model(name: Any, backbone: str = "resnet50", kernels: Any = "fused", **options: Any) -> nn.Module:
    """A small network whose norms are not as initialised."""
    torch.manual_seed(0)
    built = attn.create_model(backbone, name, 5, kernels=kernels, **{**SMALL, **options})
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return built.to(memory_format=torch.channels_last)


def both(name: Any, **options: Any) -> tuple[nn.Module, nn.Module]:
    fused = model(name, **options)
    plain = copy.deepcopy(fused)
    set_kernels(plain, "reference")
    return fused, plain


def images(n: int = 4, side: int = 48, seed: int = 0) -> Tensor:
    drawn = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=torch.channels_last)


def ran_fused(net: nn.Module, x: Tensor) -> int:
    """How many gates of a forward pass run fused."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        net(x)
    return sum(event.count for event in profile.key_averages() if event.key == "attn::scale")


def step(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, all gradients, all buffers."""
    torch.manual_seed(1)
    out = net(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    grads = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    return out.detach(), grads, torch.cat([b.flatten().double() for b in net.buffers()])


def as_exact(fused: nn.Module, plain: nn.Module, layout: torch.memory_format = torch.channels_last) -> None:
    """A step from the same start, in both forms and in float64.

    A value next to 0 may fall on ReLU's other side, in either form, and a single one moves gradients by more than rounding
    does. It seldom happens: gradients are compared on several draws, and on one at least it must not have.
    """
    exact = copy.deepcopy(plain).double()
    for seed in range(4):
        x = images(seed=seed).contiguous(memory_format=layout)
        for net in (fused, plain, exact):
            net.zero_grad()
        for one, other in zip(fused.buffers(), plain.buffers(), strict=True):
            one.copy_(other)
        ours, theirs, truth = step(fused, x), step(plain, x), step(exact, x.double())
        assert distance(ours[0], truth[0]) < max(2 * distance(theirs[0], truth[0]), 1e-5)
        assert distance(ours[2], truth[2]) < max(2 * distance(theirs[2], truth[2]), 1e-6)
        if distance(ours[1], truth[1]) < max(2 * distance(theirs[1], truth[1]), 1e-5):
            return
    raise AssertionError("gradients differ by more than rounding on every draw")


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


# --- The operators, against their definition and against finite differences.


@settings(max_examples=80)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layout=st.sampled_from(["channels_last", "contiguous", "permuted"]),
    act=st.sampled_from(reference.ACTS),
    running=st.booleans(),
    basis=st.booleans(),
    relu=st.booleans(),
    with_shortcut=st.booleans(),
    pool=st.booleans(),
)
def test_compiled_operators_are_their_definition(
    shape: Any,
    dtype: torch.dtype,
    layout: str,
    act: str,
    running: bool,
    basis: bool,
    relu: bool,
    with_shortcut: bool,
    pool: bool,
) -> None:
    a = arguments(shape, dtype, layout, basis)
    assert cpu.serves(a["y"])
    if running or a["y"].numel() > shape[1]:  # else there is no variance
        compare(cpu, a, act, running, relu, with_shortcut, pool)


class Gated:
    """A gate of mean and variance, as a function of what has a gradient."""

    def __init__(self, a: dict[str, Any], running: bool, act: str, relu: bool) -> None:
        self.a, self.act, self.relu = a, act, relu
        self.stats = (a["running_mean"], a["running_var"]) if running else (None, None)

    def __call__(self, y: Tensor, weight: Tensor, bias: Tensor, w: Tensor, *shortcut: Tensor) -> Tensor:
        basis = self.a["basis"]
        mean, variance, norm, _, *ends = ops.squeeze_map(y, weight, bias, *self.stats, basis, 1e-2, self.act)
        gate = (w * mean + (variance if self.act == "none" else 0)).sigmoid()
        return ops.scale_map(y, *ends, norm, gate, *(shortcut or (None,)), basis, self.act, self.relu)

    def inner(self, y: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return ops.norm_act_map(y, weight, bias, *self.stats, 1e-2, self.act, True)[:2]


@pytest.mark.parametrize("act", reference.ACTS)
@pytest.mark.parametrize("running", [False, True])
def test_gradients_are_those_of_finite_differences(act: str, running: bool) -> None:
    cases = [(False, False, False), (False, False, True)] + ([(True, True, True)] if act == "none" else [])
    for relu, with_shortcut, basis in cases:
        a = arguments((3, 4, 3, 2), torch.float64, "channels_last", basis)
        names = ["y", "weight", "bias", "weights"] + (["shortcut"] if with_shortcut else [])
        inputs, gated = [a[name].requires_grad_() for name in names], Gated(a, running, act, relu)
        assert torch.autograd.gradcheck(gated, inputs)
    assert torch.autograd.gradcheck(gated.inner, inputs[:3])


def test_a_second_derivative_is_refused() -> None:
    a = arguments((2, 3, 2, 2), torch.float32, "channels_last")
    y = a["y"].requires_grad_()
    out = ops.norm_act_map(y, a["weight"], a["bias"], None, None, 1e-5, "silu", False)[0]
    (first,) = torch.autograd.grad(out.square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_operators_are_what_torch_demands_of_one(layout: str) -> None:
    for act, basis in (("none", False), ("none", True), ("silu", False)):
        a = arguments((2, 6, 5, 4), torch.float32, layout, basis)
        y, weight, bias = (a[name].requires_grad_() for name in ("y", "weight", "bias"))
        given_ = (y, weight, bias, None, None, a["basis"], 1e-5, act)
        torch.library.opcheck(ops.squeeze, given_)
        torch.library.opcheck(ops.norm_act, (y, weight, bias, a["running_mean"], a["running_var"], 1e-5, act, True))
        mean, variance, norm, raw, through, link = (t.detach() for t in ops.squeeze(*given_))
        y = y.detach()
        weights, ends = a["weights"].requires_grad_(), (through.clone().requires_grad_(), link.clone().requires_grad_())
        closing = ((a["shortcut"].requires_grad_(), True), (None, False)) if act == "none" else ((None, False),)
        for shortcut, relu in closing:
            torch.library.opcheck(ops.scale, (y, *ends, norm, weights, shortcut, a["basis"], act, relu))
            back = (a["grad"], y.relu(), y, norm, a["weights"].detach(), a["basis"], act, relu)
            torch.library.opcheck(ops.scale_backward, back)
        rest = (a["grad"], torch.randn(5, 2, 6), y, norm, raw, mean, variance, a["basis"], True, act)
        torch.library.opcheck(ops.squeeze_backward, rest)
        torch.library.opcheck(ops.norm_act_backward, (a["grad"], mean, y, norm, True, act))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_not_a_number_passes_and_large_means_keep_the_variance(layout: torch.memory_format) -> None:
    for act in reference.ACTS:
        nan_passes(cpu, act, layout)
    large_means_keep_the_variance(cpu, layout)


def test_results_do_not_depend_on_threads() -> None:
    before, found = torch.get_num_threads(), []
    a = arguments((3, 16, 30, 30), torch.float32, "channels_last")
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            opened = cpu.squeeze(a["y"], a["weight"], a["bias"], None, None, None, 1e-5, "none")
            back = (a["grad"], a["shortcut"], a["y"], opened[2], a["weights"], None, "none", True)
            found.append([*opened, *(t[:3] for t in cpu.scale_backward(*back))])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


# --- The networks.


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("backbone", ["resnet50", "resnet18"])
@pytest.mark.parametrize("name", GATES)
def test_fused_blocks_are_their_modules(name: str, backbone: str, layout: torch.memory_format) -> None:
    fused, plain = (net.to(memory_format=layout) for net in both(name, backbone=backbone, drop_path_rate=0.2))
    x = images().contiguous(memory_format=layout)
    assert ran_fused(copy.deepcopy(fused), x) == 5
    assert ran_fused(copy.deepcopy(plain), x) == 0
    as_exact(fused, plain, layout)
    for net in (fused, plain):
        net.eval()
    with torch.no_grad():
        assert distance(fused(x), plain(x)) < 1e-5


@pytest.mark.parametrize(
    ("backbone", "name", "options"),
    [
        ("mobilenetv3_small_050", "se", {}),
        ("mobilenetv2_050", "eca", {}),
        ("efficientnet_b0", "fca", {}),
        ("efficientnet_b0", "ba", {}),
        ("regnetx_002", "se", {}),
        ("mobilenetv2_100", {"block": {"_target_": "attn.modules.se.SE"}, "position": "end"}, {}),
    ],
)
def test_gates_after_an_activation_are_their_modules(backbone: str, name: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    fused = attn.create_model(backbone, name, 5, kernels="fused", **options).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(fused)
    set_kernels(plain, "reference")
    assert ran_fused(copy.deepcopy(fused), images()) > 0
    assert fused_blocks(fused, torch.device("cpu"), torch.float32)[0] == ran_fused(copy.deepcopy(fused), images())
    as_exact(fused, plain)


def dca_by_equations(connection: str) -> dict[str, Any]:
    return {"block": {"_target_": "attn.modules.dca.DCA", "base": SE, "connection": connection, "form": "equations"}}


@pytest.mark.parametrize(
    "attention",
    [
        *(
            {"block": {"_target_": f"attn.modules.{bridge}", "q": q}}
            for bridge in ("ba.BA", "ba_v2.BAv2")
            for q in (1, 2, 4)
        ),
        *(dca_by_equations(connection) for connection in ("direct", "softmax", "weighted")),
    ],
    ids=lambda attention: "-".join(str(v) for v in attention["block"].values() if not isinstance(v, dict)),
)
def test_forms_that_reach_over_blocks_are_their_modules(attention: dict[str, Any]) -> None:
    fused, plain = both(attention)
    for module in fused.modules():
        if isinstance(module, Printed):
            nn.init.constant_(module.alpha_beta, 0.7)
    plain.load_state_dict(fused.state_dict())
    assert ran_fused(copy.deepcopy(fused), images()) == 5
    as_exact(fused, plain)


@pytest.mark.parametrize("name", ["se", "ba"])
def test_frozen_norms_train(name: str) -> None:
    fused, plain = both(name)
    for net in (fused, plain):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
    assert ran_fused(fused, images()) > 0
    before = {name: buffer.clone() for name, buffer in fused.named_buffers()}
    as_exact(fused, plain)
    for name, buffer in fused.named_buffers():
        assert ".se." in name or torch.equal(buffer, before[name]), name


def test_bf16_is_as_exact_as_that_of_the_modules() -> None:
    for name in ("se", "srm", "ba", "dca_se"):
        fused, plain = both(name)
        exact = copy.deepcopy(plain).double()
        truth = step(exact, images(8).double())
        with torch.autocast("cpu", torch.bfloat16):
            assert ran_fused(copy.deepcopy(fused), images(8)) > 0
            ours, theirs = step(fused, images(8)), step(plain, images(8))
        assert distance(ours[0], truth[0]) < 2 * distance(theirs[0], truth[0])
        assert distance(ours[1], truth[1]) < 2 * distance(theirs[1], truth[1])
    fused, plain = both("ba")
    with torch.no_grad():
        ours, theirs = fused.bfloat16().eval()(images().bfloat16()), plain.bfloat16().eval()(images().bfloat16())
    assert ours.dtype == torch.bfloat16
    assert distance(ours, theirs) < 0.05


def without_statistics(norm: nn.BatchNorm2d) -> None:
    norm.track_running_stats = False
    norm.running_mean = norm.running_var = None


def cumulative(norm: nn.BatchNorm2d) -> None:
    norm.momentum = None


def watched(norm: nn.BatchNorm2d) -> None:
    norm.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("change", [without_statistics, cumulative, watched])
def test_other_norms_run_as_themselves(change: Any) -> None:
    fused, plain = both("ba")
    for net in (fused, plain):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                change(module)
    assert ran_fused(copy.deepcopy(fused), images()) == 0
    for ours, theirs in zip(step(fused, images()), step(plain, images()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_run_as_themselves(dtype: torch.dtype) -> None:
    fused, plain = (net.to(dtype).eval() for net in both("se"))
    with torch.no_grad():
        assert torch.equal(fused(images().to(dtype)), plain(images().to(dtype)))


def test_float16_autocast_runs_as_itself() -> None:
    fused, plain = both("ba")
    with torch.autocast("cpu", torch.float16):
        assert ran_fused(copy.deepcopy(fused), images()) == 0
        for ours, theirs in zip(step(fused, images()), step(plain, images()), strict=True):
            assert torch.equal(ours, theirs)


def test_no_images_run_as_themselves() -> None:
    fused, plain = both("ba")
    for ours, theirs in zip(step(fused, images(0)), step(plain, images(0)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
@pytest.mark.parametrize("act", ["none", "silu"])
@pytest.mark.filterwarnings("ignore:var_mean")
def test_maps_without_values_have_no_gradients(act: str, shape: tuple[int, ...]) -> None:
    a = arguments(shape, torch.float32, "channels_last")
    inputs = [a[name].requires_grad_() for name in ("y", "weight", "bias")]
    gated = Gated(a, True, act, False)
    found = [gated(*inputs, a["weights"]), *gated.inner(*inputs)]
    grads = torch.autograd.grad([f.sum() for f in found], inputs)
    assert [g.shape for g in grads] == [i.shape for i in inputs]
    assert not any(g.any() for g in grads)


def test_permuted_images() -> None:
    fused, plain = both("ba")
    turned = images().permute(0, 1, 3, 2)
    assert not turned.is_contiguous(memory_format=reference.memory_format(turned))
    assert ran_fused(copy.deepcopy(fused), turned) == 5
    for ours, theirs in zip(step(fused, turned), step(plain, turned), strict=True):
        assert distance(ours, theirs) < 1e-4


def test_sync_batch_norm_runs_as_itself() -> None:
    fused, plain = both("ba")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fused).eval()
    assert ran_fused(converted, images()) == 0
    with torch.no_grad():
        torch.testing.assert_close(converted(images()), plain.eval()(images()))


class Louder(SRM):
    """Overrides how a map is scaled, and nothing for vectors."""

    def scale(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().scale(x, 2 * weights)


class Peak(Gate):
    """Its squeeze does not follow from mean and variance."""

    def __init__(self, site: Site) -> None:
        super().__init__()

    def squeeze(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))

    def excite(self, z: Tensor) -> Tensor:
        return z.sigmoid()


class Mine(Gate):
    """As in CONTRIBUTING.md."""

    def __init__(self, site: Site) -> None:
        super().__init__()

    def excite(self, z: Tensor) -> Tensor:
        return z.sigmoid()


@pytest.mark.parametrize(("gate", "fuses"), [(Louder, False), (Peak, False), (Mine, True)])
def test_gates_that_say_more_than_vectors_run_as_themselves(gate: type, fuses: bool) -> None:
    fused, plain = both({"block": gate})
    assert (ran_fused(copy.deepcopy(fused), images()) > 0) is fuses
    assert distance(step(fused, images())[0], step(plain, images())[0]) < 1e-5


@pytest.mark.parametrize(("name", "fuses"), [("none", 0), ("ba_fca", 0), ("cbam", 0), ("ba_ablation", 0)])
def test_attentions_that_need_maps_run_as_themselves(name: str, fuses: int) -> None:
    fused, plain = both(name)
    assert ran_fused(copy.deepcopy(fused), images()) == fuses
    assert torch.equal(step(fused, images())[1], step(plain, images())[1])


@pytest.mark.parametrize("options", [{"act_layer": "silu"}, {"aa_layer": "blurpool"}, {"drop_block_rate": 0.1}])
def test_variants_of_the_block(options: dict[str, Any]) -> None:
    from timm.layers import BlurPool2d

    options = {k: BlurPool2d if v == "blurpool" else v for k, v in options.items()}
    fused, plain = both("ba", **options)
    assert ran_fused(copy.deepcopy(fused), images()) > 0
    for ours, theirs in zip(step(fused, images(side=64)), step(plain, images(side=64)), strict=True):
        assert distance(ours, theirs) < 1e-4


def test_one_image_and_one_pixel() -> None:
    for name in ("se", "ba"):
        fused, plain = both(name)
        for ours, theirs in zip(step(fused, images(1, 64)), step(plain, images(1, 64)), strict=True):
            assert distance(ours, theirs) < 1e-4
        fused.zero_grad()
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            fused(images(1, 16))  # torch's own error, as without


class Saved:
    """A tensor that the graph keeps, as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_nothing_is_kept_that_the_plain_network_does_not_keep() -> None:
    def kept(net: nn.Module) -> int:
        own = {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers()]}
        saved: weakref.WeakSet[Saved] = weakref.WeakSet()

        def pack(tensor: Tensor) -> Saved:
            saved.add(holder := Saved(tensor))
            return holder

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
            out = net(images(4, 128))  # alive, and with it what its backward needs
        storages = {h.tensor.untyped_storage().data_ptr(): h.tensor.untyped_storage().nbytes() for h in saved}
        assert out.requires_grad
        return sum(size for address, size in storages.items() if address not in own)

    full = {"layers": (3, 4, 6, 3), "channels": (64, 128, 256, 512)}
    plain = kept(model(None, **full))
    for name in ("se", "eca", "ba", "ba_v2", "dca_se"):
        assert kept(model(name, **full)) <= 1.02 * plain
    assert kept(model("srm", **full)) <= 1.025 * plain  # a third vector per channel: the deviation
    assert kept(model("ba", kernels="reference", **full)) > 1.2 * plain


@pytest.mark.parametrize("name", ["ba", "dca_se"])
def test_compiled_and_exported(name: str) -> None:
    fused, plain = both(name)
    torch._dynamo.reset()
    for ours, theirs in zip(
        step(torch.compile(fused, fullgraph=True, backend="aot_eager"), images()), step(plain, images()), strict=True
    ):
        assert distance(ours, theirs) < 1e-5
    fused.eval(), plain.eval()
    with torch.no_grad():
        exported = torch.export.export(fused, (images(),))
        assert any("attn.scale" in str(node.target) for node in exported.graph.nodes)
        assert distance(exported.module()(images()), plain(images())) < 1e-5


def test_checkpointing_changes_nothing() -> None:
    once, again = model("ba"), model("ba")
    again.set_grad_checkpointing(True)
    for ours, theirs in zip(step(again, images()), step(once, images()), strict=True):
        assert torch.equal(ours, theirs)


def test_moving_averages_and_state_dicts() -> None:
    fused, plain = both("dca_se")
    assert list(fused.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(fused.state_dict())
    average = ModelEmaV3(fused, decay=0.5)
    step(fused, images())
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.add_(1.0)
    average.update(fused)
    assert ran_fused(average.module, images()) > 0
    assert not torch.equal(average.module.eval()(images()), fused.eval()(images()))


def test_a_step_is_the_same_twice() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        for one, other in zip(step(model("ba"), images()), step(model("ba"), images()), strict=True):
            assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)


def test_ddp() -> None:
    fused, _ = both("ba")
    alone, _ = both("ba")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(fused)
        for one, other in zip(step(wrapped, images()), step(alone, images()), strict=True):
            assert torch.equal(one, other)
    finally:
        torch.distributed.destroy_process_group()


# --- The choice, and the build.


def test_the_choice() -> None:
    assert attn.create_model("resnet18", "se").layer1[0].fused_on == ()
    assert form_here("auto") == form_here("fused") == "fused"
    assert form_here("auto", "meta") == form_here("reference") == "reference"
    with pytest.raises(ValueError, match="kernels=fused: there is no fused form for meta, or use kernels=auto"):
        form_here("fused", "meta")
    assert "cpu" in model("se", kernels="auto").layer1[0].fused_on
    assert model("se", kernels="reference").layer1[0].fused_on == ()
    with pytest.raises(ValueError, match="kernels='quick'; choose from auto, reference, fused"):
        attn.create_model("resnet18", "se", kernels="quick")


@pytest.mark.parametrize(
    ("name", "backbone", "expected"),
    [
        ("ba", "resnet50", (5, 5)),
        ("ba_fca", "resnet50", (0, 5)),
        (None, "resnet50", (0, 5)),
        ({"block": {"_target_": "attn.modules.se.SE", "stages": [2]}}, "resnet18", (2, 5)),
    ],
)
def test_fused_blocks_are_counted(name: Any, backbone: str, expected: tuple[int, int]) -> None:
    net, cpu_device = model(name, backbone), torch.device("cpu")
    assert fused_blocks(net, cpu_device, torch.float32) == fused_blocks(net, cpu_device, torch.bfloat16) == expected
    assert (ran_fused(net, images()) > 0) is (expected[0] > 0)
    for device, dtype in (("meta", torch.float32), ("cpu", torch.float16)):
        assert fused_blocks(net, torch.device(device), dtype)[0] == 0
    set_kernels(net, "reference")
    assert fused_blocks(net, cpu_device, torch.float32)[0] == 0
    other = attn.create_model("mobilenetv3_small_050", "cbam", kernels="fused")
    assert fused_blocks(other, cpu_device, torch.float32)[0] == 0


def test_without_the_build_the_reference_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, plain = both("ba")
    expected = step(copy.deepcopy(plain), images())[0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu.library.cache_clear()
    try:
        assert "cpu" not in model("se", kernels="auto").layer1[0].fused_on
        with pytest.raises(ValueError, match=r"python -m attn\.kernels\.build"):
            attn.create_model("resnet18", "se", kernels="fused")
        assert distance(step(fused, images())[0], expected) < 1e-5  # one that was made on another machine
        assert list(tmp_path.iterdir()) == []
    finally:
        cpu.library.cache_clear()
        monkeypatch.undo()


def run_build(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "attn.kernels.build", *arguments],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(folder), **env},
        capture_output=True,
        text=True,
    )


def test_the_build_says_what_it_did(tmp_path: Path) -> None:
    first, second = run_build(tmp_path), run_build(tmp_path)
    assert first.returncode == second.returncode == 0
    assert first.stdout.startswith("kernels: built ")
    assert second.stdout.rstrip().endswith("exists already")
    assert len(list((tmp_path / "attn").iterdir())) == 1
    missing = run_build(tmp_path / "other", CXX="no-such-compiler")
    assert missing.returncode == 1
    assert missing.stderr.startswith("kernels: not built, no C++ compiler found (no-such-compiler)")
    assert run_build(tmp_path / "other", "--optional", CXX="no-such-compiler").returncode == 0
    failing = run_build(tmp_path / "other", CXX="false")
    assert failing.stderr == "kernels: not built, false failed: exit status 1; the reference form is used\n"
    assert list((tmp_path / "other").rglob("*.so")) == []


def test_a_traced_pass_of_fused_blocks_hands_out_their_weights() -> None:
    fused, plain = (net.eval() for net in both("ba"))
    x = images(2)
    with torch.no_grad():
        assert ran_fused(fused, x) > 0
        seen = [net.trace(x) for net in (fused, plain)]
        torch.testing.assert_close(seen[0].output, fused.forward_features(x), rtol=1e-3, atol=1e-4)
        for one, other in zip(*(trace.passages for trace in seen), strict=True):
            weights = [
                p.calls[-1].module.reading(p.calls[-1].feats, p.calls[-1].state).weights["channel"] for p in (one, other)
            ]
            torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
