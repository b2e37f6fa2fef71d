"""The convolution whose filters are scaled per sample: equal to its definition, in any form, and without filters in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import attn
from attn.kernels import cpu, scaled_conv, scaled_conv_cpu, scaled_conv_reference
from attn.kernels.reference import memory_format
from attn.models.create import fused_blocks, set_kernels
from attn.modules.aw import AWConv2d

pytestmark = pytest.mark.usefixtures("compiled_kernels")
CPU = torch.device("cpu")


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())


def layer(conv: nn.Conv2d, **options: Any) -> AWConv2d:
    """With norms that make A differ between samples, filters and taps."""
    built = AWConv2d(conv, 4, **options)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    built.fused_on = ("cpu",)
    return built


def plain(fused: AWConv2d) -> AWConv2d:
    other = copy.deepcopy(fused)
    other.fused_on = ()
    return other


def step(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    out = net(x)
    pull = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * pull).sum(), [x, *net.parameters()])]


def as_exact(fused: AWConv2d, x: Tensor) -> None:
    """Against float64 the error is no larger than twice that of the definition."""
    other = plain(fused)
    exact = copy.deepcopy(other).double()
    for ours, theirs, truth in zip(step(fused, x), step(other, x), step(exact, x.double()), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert distance(ours, truth) < max(2 * distance(theirs, truth), 1e-6)
        assert distance(ours, theirs) < (1e-5 if x.dtype == ours.dtype and not torch.is_autocast_enabled("cpu") else 0.05)


convolutions = given(
    channels=st.tuples(st.sampled_from([16, 48, 80]), st.sampled_from([16, 64, 112])),
    kernel=st.sampled_from([(3, 3), (1, 3), (2, 2), (5, 5)]),
    stride=st.sampled_from([1, 2, (3, 1)]),
    padding=st.sampled_from([0, 1, (2, 0)]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 3]),
    shape=st.tuples(st.integers(1, 3), st.integers(9, 14), st.integers(9, 14)),
    layouts=st.tuples(st.booleans(), st.booleans()),
)


def operands(channels, kernel, stride, padding, dilation, groups, shape, layouts) -> tuple[Any, ...]:
    """What the operator takes, in float32."""
    torch.manual_seed(0)
    c1, c2 = (c * groups for c in channels)
    conv = nn.Conv2d(c1, c2, kernel, stride, padding, dilation, groups)
    layout, layout_of_weight = (torch.channels_last if last else torch.contiguous_format for last in layouts)
    x = torch.randn(shape[0], c1, *shape[1:]).contiguous(memory_format=layout)
    weight = conv.weight.detach().contiguous(memory_format=layout_of_weight)
    scale = 1 + torch.rand(shape[0], c2, *kernel)
    return x, weight, scale, conv.stride, conv.padding, conv.dilation, groups


def results(form: ModuleType, grad: Tensor, given: tuple[Any, ...]) -> list[Tensor]:
    """The output, and the gradients of input, filters and scale."""
    return [form.scaled_conv(*given), *form.scaled_conv_backward(grad, *given, True)]


def in_types(given: tuple[Any, ...], dtype: torch.dtype, of_scale: torch.dtype) -> tuple[Any, ...]:
    x, weight, scale, *rest = given
    return x.to(dtype), weight.to(dtype), scale.to(of_scale), *rest


def exact(grad: Tensor, given: tuple[Any, ...]) -> list[Tensor]:
    """`results` of the definition in float64.

    Of contiguous maps: with one image, groups and channels_last, torch 2.13 gets the filters' gradient in float64 wrong.
    """
    operands = in_types(given, torch.float64, torch.float64)
    contiguous = (*(t.contiguous() for t in operands[:3]), *operands[3:])
    return results(scaled_conv_reference, grad.double().contiguous(), contiguous)


@settings(max_examples=30)
@convolutions
def test_the_compiled_operator_is_its_definition(**problem) -> None:
    given = operands(**problem)
    x, weight, *_, groups = given
    assert scaled_conv_cpu.serves(x, weight, groups)
    grad = torch.randn_like(scaled_conv_reference.scaled_conv(*given))
    theirs = results(scaled_conv_reference, grad, given)
    for one, other, true in zip(results(scaled_conv_cpu, grad, given), theirs, exact(grad, given), strict=True):
        assert memory_format(one) == memory_format(other)
        assert distance(one, true) < 1e-6
    assert scaled_conv_cpu.scaled_conv_backward(grad, *given, False)[0].numel() == 0


@pytest.mark.parametrize("multiplies", [True, False], ids=["products of bfloat16", "widened"])
@settings(max_examples=30)
@convolutions
def test_in_bfloat16_it_is_as_exact_as_its_definition(multiplies: bool, **problem) -> None:
    given = in_types(operands(**problem), torch.bfloat16, torch.float32)
    grad = torch.randn_like(scaled_conv_reference.scaled_conv(*given))
    theirs = results(scaled_conv_reference, grad, given)
    with pytest.MonkeyPatch.context() as patch:
        if not multiplies:
            patch.setattr(scaled_conv_cpu, "multiplies_bf16", lambda: False)
        ours = results(scaled_conv_cpu, grad, given)
    for one, other, true in zip(ours, theirs, exact(grad, given), strict=True):
        assert one.dtype == other.dtype
        assert memory_format(one) == memory_format(other)
        assert distance(one, true) < max(2 * distance(other, true), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_pass(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(2, 32, 5, 7), torch.randn(2, 16, 5, 7)
    x[0, 3, 2, 2], x[1, 4, 4, 6] = float("nan"), float("inf")
    # Not at the border: the definition would multiply it by padding.
    grad[0, 5, 2, 4], grad[1, 6, 3, 3] = float("-inf"), float("nan")
    given = (x, torch.randn(16, 32, 3, 3), 1 + torch.rand(2, 16, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    given = in_types(given, dtype, torch.float32)
    grad = grad.to(dtype)
    for one, true in zip(results(scaled_conv_cpu, grad, given), exact(grad, given), strict=True):
        assert torch.equal(one.isnan(), true.isnan())
        assert torch.equal(one.isposinf(), true.isposinf())
        assert torch.equal(one.isneginf(), true.isneginf())
        assert one.isfinite().any()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 32, 12, 12), {}),
        ((3, 64, 7, 7), {"stride": 2}),
        ((1, 32, 9, 8), {"dilation": 2, "bias": False}),
        ((2, 64, 6, 6), {"groups": 4}),
    ],
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_step_is_as_exact_as_that_of_the_definition(shape: Any, options: dict, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    fused = layer(nn.Conv2d(shape[1], 64, 3, padding=1, **options)).to(memory_format=layout)
    assert fused.runs_fused(CPU, torch.float32)
    x = torch.randn(shape).contiguous(memory_format=layout)
    as_exact(fused, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(x).dtype == torch.bfloat16
        as_exact(fused, x)


@pytest.mark.parametrize("options", [{"r_c2": 2}, {"r_c2": "all"}, {"residual": False}, {"r_hw": 3, "r_c2": 4}])
def test_ratios_run_fused_too(options: dict) -> None:
    torch.manual_seed(0)
    fused = layer(nn.Conv2d(32, 32, 3, padding=1), **options)
    assert fused.runs_fused(CPU, torch.float32) is (options.get("r_hw") != 3)  # one value a filter scales its output
    as_exact(fused, torch.randn(2, 32, 6, 6))


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 5, 4, dtype=torch.float64), torch.randn(6, 2, 3, 3, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, weight, torch.rand(2, 6, 3, 3, dtype=torch.float64))]
    assert torch.autograd.gradcheck(lambda *t: scaled_conv.convolve(*t, (2, 1), (1, 1), (1, 1), 2), inputs)


@pytest.mark.parametrize(
    ("layout", "dtype"), [(torch.channels_last, torch.float32), (torch.contiguous_format, torch.float64)]
)
def test_registered_as_torch_requires(layout: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(2, 16, 6, 5, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(32, 16, 3, 3, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    scale = torch.rand(2, 32, 3, 3, dtype=dtype, requires_grad=True)
    given = (x, weight, scale, [2, 2], [1, 1], [1, 1], 1)
    torch.library.opcheck(torch.ops.attn.scaled_conv, given)
    grad = torch.randn_like(scaled_conv.scaled_conv(*given).detach())
    detached = [t.detach() for t in given[:3]]
    torch.library.opcheck(torch.ops.attn.scaled_conv_backward, (grad, *detached, *given[3:], True))


def test_compiled_exported_and_copied() -> None:
    torch.manual_seed(0)
    fused = layer(nn.Conv2d(32, 32, 3, padding=1))
    x = torch.randn(3, 32, 6, 6)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(step(compiled, x), step(copy.deepcopy(fused), x), strict=True):
        assert distance(ours, theirs) < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        mixed = [step(net, x.contiguous(memory_format=torch.channels_last)) for net in (compiled, fused)]
    for ours, theirs in zip(*mixed, strict=True):
        assert distance(ours, theirs) < 0.02
    fused.eval()
    exported = torch.export.export(fused, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    assert any("attn.scaled_conv" in str(node.target) for node in exported.graph.nodes)
    with torch.no_grad():
        for n in (2, 3):
            torch.testing.assert_close(exported.module()(x[:n]), plain(fused)(x[:n]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, scale = torch.randn(5, 80, 9, 9), torch.randn(48, 80, 3, 3), torch.rand(5, 48, 3, 3)
    given = in_types((x, weight, scale, (1, 1), (1, 1), (1, 1), 1), dtype, torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            y = scaled_conv_cpu.scaled_conv(*given)
            found.append((y, *scaled_conv_cpu.scaled_conv_backward(y, *given, True)))
    finally:
        torch.set_num_threads(before)
    for one, two, again in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, again)


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Of all that a forward pass keeps for its backward."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()  # alive, and with it what its backward needs
    assert out.requires_grad
    return sum(storages.values())


def test_no_samples_filters_are_kept() -> None:
    x, weight = torch.randn(8, 64, 8, 8, requires_grad=True), torch.randn(64, 64, 3, 3, requires_grad=True)
    scale = torch.rand(8, 64, 3, 3, requires_grad=True)
    given = (x, weight, scale, (1, 1), (1, 1), (1, 1), 1)
    assert kept_bytes(lambda: scaled_conv.convolve(*given)) == x.nbytes + weight.nbytes + scale.nbytes
    net = layer(nn.Conv2d(64, 64, 3, padding=1))
    assert kept_bytes(lambda: plain(net)(x)) - kept_bytes(lambda: net(x)) > 7 * weight.nbytes


@pytest.mark.parametrize(
    ("conv", "options", "dtype"),
    [
        (nn.Conv2d(32, 24, 3), {}, torch.float32),  # 24 is no multiple of 16
        (nn.Conv2d(32, 32, 3, groups=32), {"reduction": 4}, torch.float32),
        (nn.Conv2d(32, 32, 3), {"r_c1": 1}, torch.float32),
        (nn.Conv2d(32, 32, 3), {"form": "taps"}, torch.float32),
        (nn.Conv2d(32, 32, 3), {}, torch.float64),
    ],
)
def test_others_run_as_their_definition(conv: nn.Conv2d, options: dict, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    fused = AWConv2d(copy.deepcopy(conv), **{"reduction": 4, **options}).to(dtype)
    fused.fused_on = ("cpu",)
    assert not fused.runs_fused(CPU, dtype)
    x = torch.randn(2, 32, 5, 5, dtype=dtype)
    for ours, theirs in zip(step(fused, x), step(plain(fused), x), strict=True):
        assert torch.equal(ours, theirs)


def test_the_definition_serves_where_it_is_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = layer(nn.Conv2d(16, 16, 3, padding=1))
    small, large = torch.randn(2, 16, 5, 5), torch.randn(2, 16, 8, 8)  # 25 and 64 pixels for 16 channels
    channels_last = large.contiguous(memory_format=torch.channels_last)
    assert [fused.gains(x, torch.float32) for x in (small, large, channels_last)] == [True, False, True]
    for multiplies in (True, False):
        monkeypatch.setattr(scaled_conv_cpu, "multiplies_bf16", lambda multiplies=multiplies: multiplies)
        assert [fused.gains(x, torch.bfloat16) for x in (small, large, channels_last)] == [True, False, multiplies]
        assert not any(fused.gains(channels_last[:1], dtype) for dtype in (torch.float32, torch.bfloat16))
    for ours, theirs in zip(step(fused, large), step(plain(fused), large), strict=True):
        assert torch.equal(ours, theirs)


def test_a_network_counts_them_and_can_be_switched() -> None:
    net = attn.create_model("resnet18", "aw", 5, kernels="fused")
    assert fused_blocks(net, CPU, torch.float32) == (8, 16)
    assert fused_blocks(net, torch.device("cuda"), torch.float32)[0] == 0
    x = torch.randn(2, 3, 32, 32)
    other = copy.deepcopy(net)
    set_kernels(other, "reference")
    assert fused_blocks(other, CPU, torch.float32)[0] == 0
    assert list(net.state_dict()) == list(other.state_dict())
    assert distance(net(x), other(x)) < 1e-4


def test_without_the_build_the_definition_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = layer(nn.Conv2d(32, 32, 3))
    x = torch.randn(2, 32, 5, 5)
    expected = step(plain(fused), x)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu.library.cache_clear()
    try:
        for ours, theirs in zip(step(fused, x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    finally:
        cpu.library.cache_clear()


def test_an_empty_batch_is_empty() -> None:
    fused = layer(nn.Conv2d(32, 32, 3)).eval()
    assert fused(torch.randn(0, 32, 5, 5)).shape == (0, 32, 3, 3)
