"""Runs the Triton kernels on the CPU, in Triton's interpreter: `TRITON_INTERPRET=1 python tests/kernels/interpreted.py`.

A process of its own: Triton reads TRITON_INTERPRET when it is imported. The interpreter rounds float32 to bfloat16 by cutting
it off, so bfloat16 is checked on a GPU only (test_cuda.py).
"""

from __future__ import annotations

import time

import conv_checks
import numpy as np
import torch
from operator_checks import arguments, compare, large_means_keep_the_variance, nan_passes

from attn.kernels import ops, reference
from attn.kernels.cuda import form, scaled_conv

LAYOUTS = ("channels_last", "contiguous", "permuted")
SHAPES = ((3, 3, 1, 1), (1, 5, 3, 3), (2, 6, 7, 1))


def operators() -> None:
    """Every activation and setting, on 1x1 maps, odd sizes, one image, tiles and parts that do not divide the map."""
    for tile, programs in ((2048, 1024), (32, 4)):  # as on a GPU; and so small that a program has several tiles and parts
        form.TILE, form.PROGRAMS, form.BLOCK = tile, programs, min(128, tile // 8)
        for number, act in enumerate(("none", "none", *reference.ACTS)):
            flags = {name: bool(number >> bit & 1) for bit, name in enumerate(("relu", "running", "pool"))}
            a = arguments(SHAPES[number % 3], torch.float32, LAYOUTS[(number + tile) % 3], basis=number % 2 == 0)
            compare(form, a, act, with_shortcut=number != 1, **flags)
    half = arguments((2, 3, 3, 5), torch.float16, "channels_last")
    compare(form, half, relu=True, with_shortcut=True)
    compare(form, half, "silu", pool=True)


def values() -> None:
    for layout, acts in ((torch.channels_last, ("none", "relu6")), (torch.contiguous_format, ("relu", "hard_swish"))):
        for act in acts:
            nan_passes(form, act, layout)
        large_means_keep_the_variance(form, layout)


def registration() -> None:
    """The operators with these kernels in them are what torch demands of one, and have the gradients of finite differences."""
    ops.FORMS["cpu"] = form
    a = arguments((2, 3, 3, 2), torch.float32, "channels_last")
    y, weight, bias = (a[name].requires_grad_() for name in ("y", "weight", "bias"))
    torch.library.opcheck(ops.norm_act, (y, weight, bias, None, None, 1e-5, "silu", True))
    mean, _, norm, _, *ends = ops.squeeze(y, weight, bias, None, None, None, 1e-5, "none")
    out = ops.scale(y, *ends, norm, mean.sigmoid(), a["shortcut"], None, "none", True)
    ours = torch.autograd.grad(out, (y, weight, bias), a["grad"])
    z = torch.nn.functional.batch_norm(y, None, None, weight, bias, True, 0.1, 1e-5)
    plain = (z * z.mean((2, 3), keepdim=True).sigmoid() + a["shortcut"]).relu()
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-5)
    for one, other in zip(ours, torch.autograd.grad(plain, (y, weight, bias), a["grad"]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def convolution() -> None:
    for number, case in enumerate(conv_checks.CASES):
        layout = torch.contiguous_format if number % 2 else torch.channels_last
        conv_checks.compare(scaled_conv, case, 1 + number % 2, layout)
    scaled_conv.PROGRAMS = 1  # a program takes all samples
    conv_checks.compare(scaled_conv, conv_checks.CASES[1], 3)


if __name__ == "__main__":
    with np.errstate(all="ignore"):  # of the lanes beyond the edge
        for check in (values, operators, registration, convolution):
            check()
            print(f"{check.__name__}: equal in {time.process_time():.1f} s", flush=True)
