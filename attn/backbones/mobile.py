"""The blocks that timm's EfficientNet and MobileNetV3 classes share, and where attentions may stand in them.

Places in a block, in the order of its forward pass; `position` picks one:

    preact  between the norm behind the depthwise (or last expanding) convolution and its activation: BA-MobileNetV3
    native  behind that activation, where timm has, or would have, squeeze and excitation
    end     behind the last norm of the branch, before drop path and shortcut: DCANet's mobile networks
    both    native and end: SE- and CBAM-MobileNet of the AW paper

An attention at any position takes the place of the block's own. At `preact`, the block's own moves there where the attention
leaves it (BA needs two convolutions, and BA-MobileNetV3 has SE where there is but one).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import _efficientnet_blocks as timm_blocks
from torch import Tensor, nn

from attn.attention import Site, State, attend
from attn.backbones.family import Place, Slot
from attn.backbones.network import Network, Step, run_stage, stateless

POSITIONS = ("native", "preact", "end", "both")
CONVS = ("spatial", "pointwise")


@dataclass(frozen=True)
class Conv:
    """A convolution of a block, with its norm.

    Attributes:
        owner: the module that calls it.
        name: its attribute there.
        norm: the attribute, there, of the norm behind it (with timm's fused activation, if any).
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
        """Whether an activation that can be taken apart from the norm follows."""
        act = getattr(getattr(self.owner, self.norm), "act", None)
        return isinstance(act, nn.Module) and not isinstance(act, nn.Identity)


class DepthwiseSeparableConv(timm_blocks.DepthwiseSeparableConv):
    """timm's block with the slots `conv_dw`, `conv_pw` (conv) and `attn_pre`, `se`, `attn_end` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        x, (conv_state, block_state) = inputs
        feats, y = space_to_depth(self, x)

        y, conv_state = attend(self.conv_dw, (y,), conv_state)
        y, block_state = activate(self, (*feats, self.bn1(y)), block_state)
        feats = (*feats, antialias(self, y))
        y, block_state = attend(self.se, feats, block_state)

        y, conv_state = attend(self.conv_pw, (y,), conv_state)
        y, block_state = finish(self, (*feats, self.bn2(y)), block_state)
        if self.has_skip:
            y = self.drop_path(y) + x
        return y, (conv_state, block_state)

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        gated = [Conv(self, "conv_s2d", "bn_s2d")] if self.conv_s2d is not None else []
        return [*gated, Conv(self, "conv_dw", "bn1", self.aa)], [Conv(self, "conv_pw", "bn2")]


class InvertedResidual(timm_blocks.InvertedResidual):
    """timm's block with the slots `conv_pw`, `conv_dw`, `conv_pwl` (conv) and `attn_pre`, `se`, `attn_end` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        x, (conv_state, block_state) = inputs
        feats, y = space_to_depth(self, x)

        y, conv_state = attend(self.conv_pw, (y,), conv_state)
        y = self.bn1(y)
        feats = (*feats, y)
        y, conv_state = attend(self.conv_dw, (y,), conv_state)
        y, block_state = activate(self, (*feats, self.bn2(y)), block_state)
        feats = (*feats, antialias(self, y))
        y, block_state = attend(self.se, feats, block_state)

        y, conv_state = attend(self.conv_pwl, (y,), conv_state)
        y, block_state = finish(self, (*feats, self.bn3(y)), block_state)
        if self.has_skip:
            y = self.drop_path(y) + x
        return y, (conv_state, block_state)

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        gated = [Conv(self, "conv_s2d", "bn_s2d")] if self.conv_s2d is not None else []
        gated += [Conv(self, "conv_pw", "bn1"), Conv(self, "conv_dw", "bn2", self.aa)]
        return gated, [Conv(self, "conv_pwl", "bn3")]


class CondConvResidual(timm_blocks.CondConvResidual):
    """timm's block, whose convolutions depend on the sample, with the slots `attn_pre`, `se`, `attn_end` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        x, (conv_state, block_state) = inputs
        routing = torch.sigmoid(self.routing_fn(F.adaptive_avg_pool2d(x, 1).flatten(1)))

        f1 = self.bn1(self.conv_pw(x, routing))
        f2, block_state = activate(self, (x, f1, self.bn2(self.conv_dw(f1, routing))), block_state)
        y, block_state = attend(self.se, (x, f1, f2), block_state)

        y = self.bn3(self.conv_pwl(y, routing))
        y, block_state = finish(self, (x, f1, f2, y), block_state)
        if self.has_skip:
            y = self.drop_path(y) + x
        return y, (conv_state, block_state)

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        return [Conv(self, "conv_pw", "bn1"), Conv(self, "conv_dw", "bn2")], [Conv(self, "conv_pwl", "bn3")]


class EdgeResidual(timm_blocks.EdgeResidual):
    """timm's block (fused MBConv) with the slots `conv_exp`, `conv_pwl` (conv) and `attn_pre`, `se`, `attn_end` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        x, (conv_state, block_state) = inputs

        y, conv_state = attend(self.conv_exp, (x,), conv_state)
        y, block_state = activate(self, (x, self.bn1(y)), block_state)
        f1 = antialias(self, y)
        y, block_state = attend(self.se, (x, f1), block_state)

        y, conv_state = attend(self.conv_pwl, (y,), conv_state)
        y, block_state = finish(self, (x, f1, self.bn2(y)), block_state)
        if self.has_skip:
            y = self.drop_path(y) + x
        return y, (conv_state, block_state)

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        return [Conv(self, "conv_exp", "bn1", self.aa)], [Conv(self, "conv_pwl", "bn2")]


class UniversalInvertedResidual(timm_blocks.UniversalInvertedResidual):
    """timm's block of MobileNetV4, with the slots `conv` of its layers (conv) and `attn_pre`, `se`, `attn_end` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        x, (conv_state, block_state) = inputs
        gated, others = self.layers()
        y = x
        feats: tuple[Tensor, ...] = (x,)

        for layer in gated:
            y, conv_state = attend(layer.conv, (y,), conv_state)
            y = layer.bn(y)
            if layer is gated[-1]:
                y, block_state = activate(self, (*feats, y), block_state)
            y = antialias(layer, y)
            feats = (*feats, y)
        y, block_state = attend(self.se, feats, block_state)

        for layer in others:
            y, conv_state = attend(layer.conv, (y,), conv_state)
            y = layer.bn(y)
            feats = (*feats, y)
        y, block_state = finish(self, feats, block_state)
        y = self.layer_scale(y)
        if self.has_skip:
            y = self.drop_path(y) + x
        return y, (conv_state, block_state)

    def layers(self) -> tuple[list[Any], list[Any]]:
        """The layers that exist: up to the place of squeeze and excitation, and behind it."""
        gated, others = (self.dw_start, self.pw_exp, self.dw_mid), (self.pw_proj, self.dw_end)
        return [m for m in gated if not isinstance(m, nn.Identity)], [m for m in others if not isinstance(m, nn.Identity)]

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        gated, others = self.layers()
        return [Conv(m, "conv", "bn", m.aa) for m in gated], [Conv(m, "conv", "bn", m.aa) for m in others]


class ConvBnAct(timm_blocks.ConvBnAct):
    """timm's block of a single convolution: no slots, the state passes."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        x, state = inputs
        return super().forward(x), state

    def convs(self) -> tuple[list[Conv], list[Conv]]:
        return [], [Conv(self, "conv", "bn1", self.aa)]


class MobileAttention(timm_blocks.MobileAttention):
    """timm's self-attention block of MobileNetV4: no slots, the state passes."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
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


class MobileNetwork(Network):
    """The pass over stem and blocks; the first base of both classes' networks, before timm's."""

    conv_stem: nn.Module
    bn1: nn.Module
    blocks: nn.Sequential
    stage_ends: list[int]
    grad_checkpointing: bool

    def stem(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv_stem(x))

    def steps(self) -> list[Step]:
        stages: list[Step] = [partial(run_stage, stage, checkpointing=self.grad_checkpointing) for stage in self.blocks]
        return [stateless(self.stem), *stages]

    def taps(self) -> list[int]:
        return self.stage_ends

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        extra_blocks: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """As `Network.forward_intermediates`; with `extra_blocks`, `indices` count the stem and all stages."""
        taps = list(range(len(self.blocks) + 1)) if extra_blocks else self.taps()
        return self.collect(x, taps, indices, norm, stop_early, output_fmt, intermediates_only)


def space_to_depth(block: Any, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The features so far, and the input of the block's first convolution proper (EfficientNet-X strides before it)."""
    if block.conv_s2d is None:
        return (x,), x
    y = block.bn_s2d(block.conv_s2d(x))
    return (x, y), y


def antialias(layer: Any, x: Tensor) -> Tensor:
    """timm's low-pass filter, which strides in the convolution's stead, if there is one."""
    return x if layer.aa is None else layer.aa(x)


def activate(block: Any, feats: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
    """The `preact` place: the attention, then the activation that its norm gave up; nothing where none was put."""
    attention = getattr(block, "attn_pre", None)
    if attention is None:
        return feats[-1], state
    y, state = attend(attention, feats, state)
    return block.act_pre(y), state


def finish(block: Any, feats: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
    """The `end` place."""
    return attend(getattr(block, "attn_end", None), feats, state)


def places(model: Any, slot: Slot, where: str) -> Iterator[Place]:
    depth, stride = 0, stride_of(model.conv_stem)
    for number, stage in enumerate(model.blocks, start=1):
        position: dict[str, Any] = {}
        blocks: list[Any] = list(stage)
        for index, block in enumerate(blocks):
            position = {"stage": number, "block": index, "depth": depth}
            depth += 1
            gated, others = block.convs()
            # A block without a place for squeeze and excitation has no slots, but may stride.
            if slot == "conv" and gated:
                yield from conv_places([*gated, *others], where, stride, position)
            elif slot == "block" and gated:
                yield from block_places(block, where, stride, position)
            stride = strides(stride, [*gated, *others])[-1][1] if gated or others else stride
        if slot == "stage":
            width = next(width for block in reversed(blocks) if (width := block_width(block)))
            yield Place(Site(widths=(width,), stride=stride, **position), stage, "attn")


def conv_places(convs: list[Conv], kind: str, stride: int, position: dict[str, Any]) -> Iterator[Place]:
    for conv, (stride_here, _) in zip(convs, strides(stride, convs), strict=True):
        if conv.pointwise != (kind == "pointwise"):
            continue
        if not isinstance(conv.module, nn.Conv2d):
            raise ValueError(
                f"the {kind} convolution of stage {position['stage']}, block {position['block']} is a "
                f"{type(conv.module).__name__}, which cannot be replaced (conv slot)"
            )
        site = Site(
            widths=(conv.module.in_channels, conv.module.out_channels), conv=conv.module, stride=stride_here, **position
        )
        yield Place(site, conv.owner, conv.name, (conv.norm,) if conv.activated else ())


def block_places(block: Any, where: str, stride: int, position: dict[str, Any]) -> Iterator[Place]:
    gated, others = block.convs()
    first = [*gated, *others][0].module.in_channels
    widths = (first, *(conv.module.out_channels for conv in gated))
    native = not isinstance(block.se, nn.Identity)
    (before, behind), (_, end) = strides(stride, gated)[-1], strides(stride, [*gated, *others])[-1]
    if where == "preact":
        site = Site(widths=widths, native=native, stride=before, **position)
        fill = partial(split_norm, block, gated[-1])
        yield Place(site, block, "attn_pre", make_room=fill, leave=partial(move_own, block, gated[-1]) if native else None)
    if where in ("native", "both"):
        yield Place(Site(widths=widths, native=native, stride=behind, **position), block, "se")
    if where in ("end", "both"):
        widths = (*widths, *(conv.module.out_channels for conv in others))
        site = Site(widths=widths, native=native, stride=end, **position)
        yield Place(site, block, "attn_end", make_room=partial(strip, block) if where == "end" else None)


def strip(block: Any) -> None:
    """Takes the block's own attention away."""
    block.se = nn.Identity()


def move_own(block: Any, conv: Conv) -> None:
    """Puts the block's own attention before the activation.

    Raises:
        ValueError: as `split_norm`.
    """
    own = block.se
    split_norm(block, conv)
    block.attn_pre = own


def split_norm(block: Any, conv: Conv) -> None:
    """Takes the block's own attention away, and moves the activation behind `conv` out of its norm.

    Raises:
        ValueError: the two are one.
    """
    if not conv.activated:
        norm = getattr(conv.owner, conv.norm)
        raise ValueError(
            f"position='preact': {type(norm).__name__} has no activation of its own to go before; choose native or end"
        )
    strip(block)
    norm = getattr(conv.owner, conv.norm)
    block.act_pre, norm.act = norm.act, nn.Identity()


def strides(stride: int, convs: list[Conv]) -> list[tuple[int, int]]:
    """The total stride of each convolution's output, before and behind anti-aliasing, from that of the first one's input."""
    total = []
    for conv in convs:
        before = stride * conv.stride
        stride = before * stride_of(conv.aa)
        total.append((before, stride))
    return total


def stride_of(module: nn.Module | None) -> int:
    """The stride in one direction; of timm's mixed convolutions, that of each of them."""
    parts = () if module is None else module.modules()
    stride: Any = next((part.stride for part in parts if hasattr(part, "stride")), 1)
    return stride if isinstance(stride, int) else stride[0]


def block_width(block: Any) -> int | None:
    """Channels of a block's output; None for one that keeps those of its input."""
    _, others = block.convs()
    return others[-1].module.out_channels if others else None
