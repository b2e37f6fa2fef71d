"""A channel gate as one operator with what is next to it: batch norm, activation, gate, shortcut and ReLU in two or three passes over the
map, and two back.

`ops` is the interface: three differentiable operators, registered with torch. `reference` is their definition in plain PyTorch, for
any device and type. `cpu` is the same in C++ (cpu.cpp), for float32 and bfloat16 on the CPU, which `build` compiles in an
explicit step, `python -m attn.kernels.build`. `block` computes the gates of blocks with these operators, and with plain
modules wherever they do not apply.

`scaled_conv` is AW-convolution as one operator, in the same two forms: `scaled_conv_reference`, and `scaled_conv_cpu`
(scaled_conv.cpp), which is compiled with the other.
"""

from __future__ import annotations

from typing import Literal, get_args

Kernels = Literal["auto", "reference", "fused"]
BUILD = "python -m attn.kernels.build"


def form_here(kernels: str, device: str = "cpu") -> Literal["reference", "fused"]:
    """The form used on this machine for maps on a type of device: resolves `auto`.

    Raises:
        ValueError: as `fused_devices`.
    """
    devices = fused_devices(kernels)
    return "fused" if kernels == "fused" or device in devices else "reference"


def fused_devices(kernels: str) -> tuple[str, ...]:
    """Types of the devices on which blocks run fused, for a choice of form.

    Args:
        kernels: `reference`: none. `auto`: the CPU if the C++ form is built, else none. `fused`: the CPU; the C++ form must
            be built.

    Raises:
        ValueError: an unknown choice, or `fused` if the C++ form is not built.
    """
    from attn.kernels import cpu

    if kernels not in get_args(Kernels):
        raise ValueError(f"kernels={kernels!r}; choose from {', '.join(get_args(Kernels))}")
    if kernels == "reference":
        return ()
    built = cpu.library() is not None
    if kernels == "fused" and not built:
        raise ValueError(f"kernels={kernels}: the C++ form is not built here; build it with {BUILD}, or use kernels=auto")
    return ("cpu",) if built else ()
