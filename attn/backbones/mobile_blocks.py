"""The blocks that timm's EfficientNet and MobileNetV3 classes share: timm's, with only the forwards overridden.

A forward maps ([N, C, H, W], state) to the block's output [N, C', H / stride, W / stride] and the state for the next block.
Before it calls an attention, it collects the outputs of its convolutions in `feats`, the block's input first.
The positions of attentions in a block are in `mobile_sockets`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import _efficientnet_blocks as timm_blocks
from torch import Tensor, nn

from attn.attention import Recorded, State, attend
from attn.kernels.block import gate_activated, gates_activated


@dataclass(frozen=True)
class Conv:
    """A convolution of a block, with its norm.

    Attributes:
        owner: the module that calls it.
        name: its attribute there.
        norm: the attribute, there, of the norm after it (with timm's fused activation, if any).
        aa: what follows, where timm moves the stride out of the convolution (anti-aliasing).
    """

    owner: Any
    name: str
    norm: str
    aa: nn.Module | None = None

    @property
    def module(self) -> Any:
        return getattr(self.owner, self.name)

    @property
    def stride(self) -> int:
        return stride_of(self.module)

    @property
    def pointwise(self) -> bool:
        return all(part.kernel_size in (1, (1, 1)) for part in self.module.modules() if hasattr(part, "kernel_size"))

    @property
    def activated(self) -> bool:
        """Whether an activation follows that can be separated from the norm."""
        act = getattr(getattr(self.owner, self.norm), "act", None)
        return isinstance(act, nn.Module) and not isinstance(act, nn.Identity)


class Fusing:
    """A block whose gates can run fused with the norms before them.

    `fused_on`: types of the devices on which they do, see `attn.kernels`.
    """

    fused_on: tuple[str, ...] = ()

    def runs_fused(self: Any, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether one of the block's gates runs fused for maps of a given device and type."""
        gated, others = self.convs()
        placed = [(getattr(self, "attn_end", None), conv) for conv in others[-1:]]
        for conv in gated[-1:]:
            placed.append((getattr(self, "attn_pre", None), conv))
            placed += [(self.se, conv)] if alone(self, conv.aa) else []
        return any(gates_activated(m, getattr(c.owner, c.norm), device, dtype, self.fused_on) for m, c in placed)


class DepthwiseSeparableConv(Fusing, timm_blocks.DepthwiseSeparableConv):
    """timm's block with the slots `conv_dw`, `conv_pw` (conv) and `attn_pre`, `se`, `attn_end` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        feats, y = space_to_depth(self, x)

        y, conv_state = attend(self.conv_dw, (y,), conv_state)
        y, feats, block_state = apply_gates(self, feats, y, self.bn1, self.aa, block_state)

        y, conv_state = attend(self.conv_pw, (y,), conv_state)
        y, block_state = apply_end(self, feats, y, self.bn2, block_state)
        if self.has_skip:
            y = self.drop_path(y) + x
        return y, (conv_state, block_state)

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        gated = [Conv(self, "conv_s2d", "bn_s2d")] if self.conv_s2d is not None else []
        return [*gated, Conv(self, "conv_dw", "bn1", self.aa)], [Conv(self, "conv_pw", "bn2")]


class InvertedResidual(Fusing, timm_blocks.InvertedResidual):
    """timm's block with the slots `conv_pw`, `conv_dw`, `conv_pwl` (conv) and `attn_pre`, `se`, `attn_end` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        feats, y = space_to_depth(self, x)

        y, conv_state = attend(self.conv_pw, (y,), conv_state)
        y = self.bn1(y)
        feats = (*feats, y)
        y, conv_state = attend(self.conv_dw, (y,), conv_state)
        y, feats, block_state = apply_gates(self, feats, y, self.bn2, self.aa, block_state)

        y, conv_state = attend(self.conv_pwl, (y,), conv_state)
        y, block_state = apply_end(self, feats, y, self.bn3, block_state)
        if self.has_skip:
            y = self.drop_path(y) + x
        return y, (conv_state, block_state)

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        gated = [Conv(self, "conv_s2d", "bn_s2d")] if self.conv_s2d is not None else []
        gated += [Conv(self, "conv_pw", "bn1"), Conv(self, "conv_dw", "bn2", self.aa)]
        return gated, [Conv(self, "conv_pwl", "bn3")]


class CondConvResidual(Fusing, timm_blocks.CondConvResidual):
    """timm's block, whose convolutions depend on the sample, with the slots `attn_pre`, `se`, `attn_end` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        routing = torch.sigmoid(self.routing_fn(F.adaptive_avg_pool2d(x, 1).flatten(1)))

        f1 = self.bn1(self.conv_pw(x, routing))
        y = self.conv_dw(f1, routing)
        y, feats, block_state = apply_gates(self, (x, f1), y, self.bn2, None, block_state)

        y, block_state = apply_end(self, feats, self.conv_pwl(y, routing), self.bn3, block_state)
        if self.has_skip:
            y = self.drop_path(y) + x
        return y, (conv_state, block_state)

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        return [Conv(self, "conv_pw", "bn1"), Conv(self, "conv_dw", "bn2")], [Conv(self, "conv_pwl", "bn3")]


class EdgeResidual(Fusing, timm_blocks.EdgeResidual):
    """timm's block (fused MBConv) with the slots `conv_exp`, `conv_pwl` (conv) and `attn_pre`, `se`, `attn_end` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs

        y, conv_state = attend(self.conv_exp, (x,), conv_state)
        y, feats, block_state = apply_gates(self, (x,), y, self.bn1, self.aa, block_state)

        y, conv_state = attend(self.conv_pwl, (y,), conv_state)
        y, block_state = apply_end(self, feats, y, self.bn2, block_state)
        if self.has_skip:
            y = self.drop_path(y) + x
        return y, (conv_state, block_state)

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        return [Conv(self, "conv_exp", "bn1", self.aa)], [Conv(self, "conv_pwl", "bn2")]


class UniversalInvertedResidual(Fusing, timm_blocks.UniversalInvertedResidual):
    """timm's block of MobileNetV4, with the slots `conv` of its layers (conv) and `attn_pre`, `se`, `attn_end` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        gated, others = self.layers()
        y = x
        feats: tuple[Tensor, ...] = (x,)

        for layer in gated:
            y, conv_state = attend(layer.conv, (y,), conv_state)
            if layer is gated[-1]:
                y, feats, block_state = apply_gates(self, feats, y, layer.bn, layer.aa, block_state)
            else:
                y = antialias(layer, layer.bn(y))
                feats = (*feats, y)
        if not gated:
            y, block_state = attend(self.se, feats, block_state)

        for layer in others:
            y, conv_state = attend(layer.conv, (y,), conv_state)
            if layer is others[-1]:
                y, block_state = apply_end(self, feats, y, layer.bn, block_state)
            else:
                y = layer.bn(y)
                feats = (*feats, y)
        y = self.layer_scale(y)
        if self.has_skip:
            y = self.drop_path(y) + x
        return y, (conv_state, block_state)

    def layers(self) -> tuple[list[Any], list[Any]]:
        """The existing layers: those before squeeze and excitation, and those after it."""
        gated, others = (self.dw_start, self.pw_exp, self.dw_mid), (self.pw_proj, self.dw_end)
        return [m for m in gated if not isinstance(m, nn.Identity)], [m for m in others if not isinstance(m, nn.Identity)]

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        gated, others = self.layers()
        return [Conv(m, "conv", "bn", m.aa) for m in gated], [Conv(m, "conv", "bn", m.aa) for m in others]


class ConvBnAct(timm_blocks.ConvBnAct):
    """timm's block of a single convolution: no slots, the state is passed on."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, state = inputs
        return super().forward(x), state

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        return [], [Conv(self, "conv", "bn1", self.aa)]


class MobileAttention(timm_blocks.MobileAttention):
    """timm's self-attention block of MobileNetV4: no slots, the state is passed on."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, state = inputs
        return super().forward(x), state

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        return [], []


BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    timm_blocks.DepthwiseSeparableConv: DepthwiseSeparableConv,
    timm_blocks.InvertedResidual: InvertedResidual,
    timm_blocks.CondConvResidual: CondConvResidual,
    timm_blocks.EdgeResidual: EdgeResidual,
    timm_blocks.UniversalInvertedResidual: UniversalInvertedResidual,
    timm_blocks.ConvBnAct: ConvBnAct,
    timm_blocks.MobileAttention: MobileAttention,
}


def space_to_depth(block: Any, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The features so far, and the input of the first regular convolution (EfficientNet-X has its stride before it)."""
    if block.conv_s2d is None:
        return (x,), x
    y = block.bn_s2d(block.conv_s2d(x))
    return (x, y), y


def antialias(layer: Any, x: Tensor) -> Tensor:
    """Applies timm's low-pass filter, which has the stride instead of the convolution, if there is one."""
    return x if layer.aa is None else layer.aa(x)


def alone(block: Any, aa: nn.Module | None) -> bool:
    """Whether nothing but the gate at the `native` position needs the map before it."""
    return (aa is None or isinstance(aa, nn.Identity)) and all(
        getattr(block, name, None) is None for name in ("attn_pre", "attn_end")
    )


def apply_gates(
    block: Any, feats: tuple[Tensor, ...], y: Tensor, norm: nn.Module, aa: nn.Module | None, state: Any
) -> tuple[Tensor, tuple[Tensor, ...], Any]:
    """The norm after a convolution, the `preact` position, anti-aliasing and the `native` position.

    Returns:
        The gated map; `feats` with the map before the `native` gate, unless they run fused: then nothing else needs it; the state.
    """
    fused = alone(block, aa) and gates_activated(block.se, norm, y.device, y.dtype, block.fused_on)
    if fused and not isinstance(state, Recorded):
        y, state = gate_activated(y, norm, block.se, feats, state, block.fused_on)
        return y, feats, state
    attention = getattr(block, "attn_pre", None)
    if attention is None:
        y = norm(y)
    else:
        y, state = gate_activated(y, norm, attention, feats, state, block.fused_on)
        y = block.act_pre(y)
    feats = (*feats, y if aa is None else aa(y))
    y, state = attend(block.se, feats, state)
    return y, feats, state


def apply_end(block: Any, feats: tuple[Tensor, ...], y: Tensor, norm: nn.Module, state: Any) -> tuple[Tensor, Any]:
    """The branch's last norm, and the `end` position: the attention after it, if there is one."""
    attention = getattr(block, "attn_end", None)
    if attention is None:
        return norm(y), state
    return gate_activated(y, norm, attention, feats, state, block.fused_on)


def stride_of(module: nn.Module | None) -> int:
    """The stride in one direction; for timm's mixed convolutions, the stride that all of them have."""
    parts = () if module is None else module.modules()
    stride: Any = next((part.stride for part in parts if hasattr(part, "stride")), 1)
    return stride if isinstance(stride, int) else stride[0]
