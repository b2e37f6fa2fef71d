"""The Triton form on a GPU: `python -m pytest -m cuda`."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import conv_checks
import pytest
import torch
from commands import NARROW, call
from operator_checks import arguments, compare, large_means_keep_the_variance, nan_passes
from torch import Tensor, nn

import attn
from attn.kernels import ops, reference
from attn.kernels.cuda import form, scaled_conv
from attn.models.create import fused_blocks, set_kernels

pytestmark = pytest.mark.cuda
DEVICE = "cuda"
SMALL = {"layers": (1, 2, 1, 1), "channels": (16, 32, 48, 64)}
# One pixel, odd sizes, one image, more than one tile and part.
SHAPES = [(3, 5, 1, 1), (1, 40, 7, 9), (4, 130, 30, 31), (9, 64, 14, 14)]


@pytest.fixture(autouse=True)
def exact_products() -> Any:
    """No TF32, which would hide errors."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("dtype", form.DTYPES)
def test_operators_are_their_definition(dtype: torch.dtype) -> None:
    layouts = ("channels_last", "contiguous", "permuted")
    for number, (shape, act, layout) in enumerate(product(SHAPES, reference.ACTS, layouts)):
        flags = {name: bool(number >> bit & 1) for bit, name in enumerate(("running", "pool", "relu", "with_shortcut"))}
        compare(form, arguments(shape, dtype, layout, number % 2 == 0, DEVICE), act, **flags)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_not_a_number_passes_and_large_means_keep_the_variance(layout: torch.memory_format) -> None:
    for act in reference.ACTS:
        nan_passes(form, act, layout, DEVICE)
    large_means_keep_the_variance(form, layout, DEVICE)


def test_operators_are_what_torch_demands_of_one() -> None:
    a = arguments((2, 6, 5, 4), torch.float32, "channels_last", device=DEVICE)
    y, weight, bias = (a[name].requires_grad_() for name in ("y", "weight", "bias"))
    torch.library.opcheck(ops.norm_act, (y, weight, bias, None, None, 1e-5, "silu", True))
    torch.library.opcheck(ops.squeeze, (y, weight, bias, None, None, None, 1e-5, "none"))
    _, _, norm, _, *ends = (t.detach() for t in ops.squeeze(y, weight, bias, None, None, None, 1e-5, "none"))
    ends = [end.clone().requires_grad_() for end in ends]
    weights, shortcut = a["weights"].requires_grad_(), a["shortcut"].requires_grad_()
    torch.library.opcheck(ops.scale, (y.detach(), *ends, norm, weights, shortcut, None, "none", True))


@pytest.mark.parametrize("case", conv_checks.CASES)
def test_convolutions_are_their_definition(case: tuple) -> None:
    for layout, samples in ((torch.channels_last, 5), (torch.contiguous_format, 1)):
        conv_checks.compare(scaled_conv, case, samples, layout, device=DEVICE)
        for dtype in (torch.float16, torch.bfloat16):
            tolerance = 2 * torch.finfo(dtype).eps
            conv_checks.compare(scaled_conv, case, samples, layout, dtype, DEVICE, tolerance)


# --- Networks.


def both(name: str, backbone: str = "resnet50") -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    fused = attn.create_model(backbone, name, 5, kernels="fused", **(SMALL if "resnet" in backbone else {})).to(DEVICE)
    for module in fused.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    fused = fused.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(fused)
    set_kernels(plain, "reference")
    return fused, plain


def step(net: nn.Module, amp: torch.dtype | None = None, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Output, all gradients, all buffers, as float64."""
    torch.manual_seed(1)
    x = torch.randn(8, 3, 64, 64, device=DEVICE).to(dtype, memory_format=torch.channels_last)
    net.zero_grad()
    with torch.autocast(DEVICE, amp, enabled=amp is not None):
        out = net(x)
    (out.double() * torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out)).sum().backward()
    grads = torch.cat([p.grad.flatten().double() for p in net.parameters() if p.grad is not None])
    return [out.detach().double(), grads, torch.cat([b.flatten().double() for b in net.buffers()])]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("name", "backbone"),
    [*((name, "resnet50") for name in ("se", "eca", "srm", "fca", "ba", "dca_se", "aw")), ("se", "mobilenetv3_small_050")],
)
def test_fused_blocks_are_their_modules(name: str, backbone: str) -> None:
    for amp in (None, torch.bfloat16, torch.float16):
        fused, plain = both(name, backbone)
        counted, _ = fused_blocks(fused, torch.device(DEVICE), amp or torch.float32)
        assert counted > 0
        exact = copy.deepcopy(plain).double()
        ours, theirs, truth = step(fused, amp), step(plain, amp), step(exact, dtype=torch.float64)
        for mine, other, true in zip(ours, theirs, truth, strict=True):
            assert distance(mine, true) < max(2 * distance(other, true), 1e-5)
        with torch.no_grad():
            x = torch.randn(2, 3, 64, 64, device=DEVICE)
            torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("amp", [None, torch.float16, torch.bfloat16])
def test_a_step_is_the_same_twice(amp: torch.dtype | None) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        first, second = step(both("ba")[0], amp), step(both("ba")[0], amp)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_compiled_networks_and_recomputed_activations() -> None:
    fused, plain = both("ba")
    torch._dynamo.reset()
    for ours, theirs in zip(step(torch.compile(fused, fullgraph=True)), step(plain), strict=True):
        assert distance(ours, theirs) < 1e-4
    once, again = both("ba")[0], both("ba")[0]
    again.set_grad_checkpointing(True)
    for ours, theirs in zip(step(again), step(once), strict=True):
        assert distance(ours, theirs) < 1e-5


def test_a_run(tmp_path: Any) -> None:
    run = [*NARROW, "device=cuda", "schedule.amp=fp16", "attention=ba", "deterministic=true", f"run_dir={tmp_path / 'run'}"]
    done = call(["train.py", *run, "kernels=auto"])
    assert done.returncode == 0, done.stderr
    assert "kernels=fused: 4 of 4 blocks are fused on cuda" in done.stdout + done.stderr
    refused = call(["train.py", *run, "kernels=reference", "resume=auto", "schedule.epochs=2"])
    assert refused.returncode == 2
    evaluated = call(["eval.py", f"checkpoint={tmp_path / 'run' / 'last.pt'}", "device=cuda"])
    assert "plain modules" not in evaluated.stderr
    assert evaluated.returncode == 0, evaluated.stderr
