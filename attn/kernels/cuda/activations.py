"""The activations of `attn.kernels.reference.ACTS` in Triton, by name: value and derivative at z. A NaN passes."""

import triton
import triton.language as tl


@triton.jit
def act_value(z, ACT: tl.constexpr):
    if ACT == "relu":
        z = tl.where(z < 0, 0.0, z)
    if ACT == "relu6":
        z = tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))
    if ACT == "hard_swish":
        z = z * tl.where(z < -3, 0.0, tl.where(z > 3, 6.0, z + 3)) / 6
    if ACT == "silu":
        z = z * tl.sigmoid(z)
    return z


@triton.jit
def act_slope(z, ACT: tl.constexpr):
    slope = tl.full(z.shape, 1.0, tl.float32)
    if ACT == "relu":
        slope = tl.where(z <= 0, 0.0, 1.0)
    if ACT == "relu6":
        slope = tl.where(z <= 0, 0.0, tl.where(z >= 6, 0.0, 1.0))
    if ACT == "hard_swish":
        slope = tl.where(z <= -3, 0.0, tl.where(z >= 3, 1.0, z / 3 + 0.5))
    if ACT == "silu":
        s = tl.sigmoid(z)
        slope = s * (1 + z * (1 - s))
    return slope
