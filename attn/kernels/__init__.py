"""A channel gate as one operator with what is next to it: batch norm, activation, gate, shortcut and ReLU in two or three passes over the
map, and two back.

`ops` is the interface: three differentiable operators, registered with torch. `reference` is their definition in plain PyTorch, for
any device and type. `cpu` is the same in C++ (cpu.cpp), for float32 and bfloat16 on the CPU, which `build` compiles in an
explicit step, `python -m attn.kernels.build`. `cuda` is the same in Triton, for float32, float16 and bfloat16 on a GPU. `block`
computes the gates of blocks with these operators, and with plain modules wherever they do not apply.

`scaled_conv` is AW-convolution as one operator, in the same three forms: `scaled_conv_reference`, `scaled_conv_cpu` (scaled_conv.cpp),
which is compiled with the other, and `cuda.scaled_conv`.
"""

from __future__ import annotations

from typing import Literal, get_args

Kernels = Literal["auto", "reference", "fused"]
BUILD = "python -m attn.kernels.build"


def form_here(kernels: str, device: str = "cpu") -> Literal["reference", "fused"]:
    """The form used on this machine for maps on a type of device: resolves `auto`.

    Raises:
        ValueError: an unknown choice, or `fused` where the device has no fused form here; it says what is missing.
    """
    expect_choice(kernels)
    lacks = None if kernels == "reference" else missing(device)
    if kernels == "fused" and lacks is not None:
        raise ValueError(f"kernels={kernels}: {lacks}, or use kernels=auto")
    return "reference" if kernels == "reference" or lacks is not None else "fused"


def fused_devices(kernels: str) -> tuple[str, ...]:
    """Types of the devices on which blocks run fused, for a choice of form.

    Args:
        kernels: `reference`: none. `auto`: the CPU if the C++ form is built, the GPU if there is one and Triton. `fused`: the
            same, but there must be one.

    Raises:
        ValueError: an unknown choice, or `fused` where no device has a fused form here.
    """
    expect_choice(kernels)
    if kernels == "reference":
        return ()
    found = tuple(device for device in ("cpu", "cuda") if missing(device) is None)
    if kernels == "fused" and not found:
        raise ValueError(f"kernels={kernels}: {missing('cpu')}, or use kernels=auto")
    return found


def missing(device: str) -> str | None:
    """Why blocks cannot run fused on a type of device here, and what helps; None if they can."""
    from attn.kernels import cpu
    from attn.kernels.cuda import form as cuda

    if device == "cpu":
        return None if cpu.library() is not None else f"the C++ form is not built here; build it with {BUILD}"
    return cuda.missing() if device == "cuda" else f"there is no fused form for {device}"


def expect_choice(kernels: str) -> None:
    if kernels not in get_args(Kernels):
        raise ValueError(f"kernels={kernels!r}; choose from {', '.join(get_args(Kernels))}")
