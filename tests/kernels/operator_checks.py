"""The operators in one form against their definition, on any device."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attn.kernels import layout as layouts
from attn.kernels import reference


def arguments(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, basis: bool = False, device: str = "cpu"
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    n, c, h, w = shape

    def draw() -> Tensor:
        x = torch.randn(n, c, h, w, generator=g).to(device, dtype)
        if layout == "channels_last":
            return x.contiguous(memory_format=torch.channels_last)
        return x.transpose(2, 3).contiguous().transpose(2, 3) if layout == "permuted" else x

    wide = layouts.wide(draw())
    vectors = {name: torch.randn(c, generator=g).to(device, wide) for name in ("weight", "bias", "running_mean")}
    vectors["running_var"] = torch.rand(c, generator=g).to(device, wide) + 0.5
    vectors["weights"] = torch.rand(n, c, generator=g).to(device, wide) + 0.1
    vectors["basis"] = torch.randn(c, h, w, generator=g).to(device, wide) if basis else None
    return {"y": draw() + 3, "shortcut": draw(), "grad": draw(), **vectors}


def close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    """Maps within rounding of their type, vectors within that of sums over a map."""
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        tight = {"atol": 3e-5 * scale, "rtol": 2e-5}
        loose = {torch.bfloat16: {"atol": 0.06, "rtol": 0.02}, torch.float16: {"atol": 0.01, "rtol": 0.003}}
        torch.testing.assert_close(one, other, **loose.get(one.dtype, tight))


def compare(
    form: ModuleType,
    a: dict[str, Any],
    act: str = "none",
    running: bool = False,
    relu: bool = False,
    with_shortcut: bool = False,
    pool: bool = False,
) -> None:
    """All operators of a form, forward and backward, against `attn.kernels.reference`.

    Args:
        a: as from `arguments`.
        act: of the operators; with one there is neither ReLU nor shortcut.
        running: whether there are running statistics.
    """
    y, norm_of = a["y"], [a["weight"], a["bias"], *((a["running_mean"], a["running_var"]) if running else (None, None))]
    with_shortcut, relu = (with_shortcut, relu) if act == "none" else (False, False)
    opened = reference.squeeze(y, *norm_of, a["basis"], 1e-2, act)
    close(form.squeeze(y, *norm_of, a["basis"], 1e-2, act), opened)
    _, variance, norm, raw = opened
    settings_of = (norm, a["weights"], a["shortcut"] if with_shortcut else None, act, relu)
    out = reference.scale(y, *settings_of)
    ours = form.scale(y, *settings_of)
    close((ours,), (out,))
    assert ours.is_contiguous(memory_format=layouts.memory_format(y))
    back = (a["grad"], out, y, norm, a["weights"], a["basis"], act, relu)
    masked, link, dweights = reference.scale_backward(*back)
    ours_masked, ours_link, ours_dweights = form.scale_backward(*back)
    rows = 5 if act != "none" else 3  # the others are not used
    close((ours_masked, ours_link[:rows], ours_dweights), (masked, link[:rows], dweights))
    g = torch.Generator().manual_seed(1)
    dmean, dvariance = (torch.randn(shape, generator=g).to(y.device) for shape in (y.shape[:2], variance.shape))
    rest = (masked if relu else a["grad"], link, y, norm, raw, dmean, dvariance, a["basis"], not running, act)
    close(form.squeeze_backward(*rest), reference.squeeze_backward(*rest))
    inner = (y, *norm_of, 1e-2, act, pool)
    close(form.norm_act(*inner), reference.norm_act(*inner))
    inner_back = (a["grad"], dmean if pool else None, y, norm, not running, act)
    close(form.norm_act_backward(*inner_back), reference.norm_act_backward(*inner_back))


def nan_passes(form: ModuleType, act: str, layout: torch.memory_format, device: str = "cpu") -> None:
    y = torch.randn(2, 3, 4, 4, device=device)
    y[0, 1, 2, 2] = float("nan")
    ones, zeros = torch.ones(3, device=device), torch.zeros(3, device=device)
    frozen, laid = (ones, zeros, zeros, ones), y.contiguous(memory_format=layout)
    mean, _, norm, _ = form.squeeze(laid, ones, zeros, None, None, None, 1e-5, act)
    assert norm[0].isnan().tolist() == [False, True, False]
    assert mean.isnan().any(0).tolist() == [False, True, False]
    assert torch.equal(form.norm_act(laid, *frozen, 1e-5, act, False)[0].isnan(), y.isnan())
    _, _, norm, _ = form.squeeze(laid, *frozen, None, 1e-5, act)
    out = form.scale(laid, norm, torch.ones(2, 3, device=device), None, act, act == "none")
    assert torch.equal(out.isnan(), y.isnan())


def large_means_keep_the_variance(form: ModuleType, layout: torch.memory_format, device: str = "cpu") -> None:
    y = torch.randn(4, 8, 30, 30, generator=torch.Generator().manual_seed(0)).to(device) + 1000
    laid, ones, zeros = y.contiguous(memory_format=layout), torch.ones(8, device=device), torch.zeros(8, device=device)
    _, variance, norm, _ = form.squeeze(laid, ones, zeros, None, None, None, 0.0, "none")
    torch.testing.assert_close(norm[4].double(), y.double().var((0, 2, 3)), rtol=1e-5, atol=0)
    spread = y.double().var((2, 3), correction=0) / y.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance.double(), spread, rtol=1e-5, atol=0)
