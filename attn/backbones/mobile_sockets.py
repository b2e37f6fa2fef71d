"""Where attentions can be placed in the blocks of `mobile_blocks`.

Positions in a block, in the order of its forward pass; `position` selects one:

    preact    between the norm after the depthwise (or last expanding) convolution and its activation: BA-MobileNetV3
    expanded  preact in the blocks that expand first, native in the others: the MobileNetV3 that BA-Net compares with
    native    after that activation, where timm has, or would have, squeeze and excitation
    end       after the last norm of the branch, before drop path and shortcut: DCANet's mobile networks
    both      native and end: SE- and CBAM-MobileNet of the AW paper

An attention at any position replaces the block's own. At `preact`, if the attention does not use a site, the block's own is
moved there (BA needs two convolutions, and BA-MobileNetV3 has SE where there is only one).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from attn.attention import Site
from attn.backbones.family import Slot, Socket
from attn.backbones.mobile_blocks import Conv, stride_of

POSITIONS = ("native", "preact", "expanded", "end", "both")
CONVS = ("spatial", "pointwise")


def sockets(model: Any, slot: Slot, where: str) -> Iterator[Socket]:
    depth, stride = 0, stride_of(model.conv_stem)
    for number, stage in enumerate(model.blocks, start=1):
        position: dict[str, Any] = {}
        blocks: list[Any] = list(stage)
        for index, block in enumerate(blocks):
            position = {"stage": number, "block": index, "depth": depth}
            depth += 1
            gated, others = block.convs()
            # A block without a position for squeeze and excitation has no slots, but may have a stride.
            if slot == "conv" and gated:
                yield from conv_places([*gated, *others], where, stride, position)
            elif slot == "block" and gated:
                yield from block_places(block, where, stride, position)
            stride = strides(stride, [*gated, *others])[-1][1] if gated or others else stride
        if slot == "stage":
            width = next(width for block in reversed(blocks) if (width := block_width(block)))
            yield Socket(Site(widths=(width,), stride=stride, **position), stage, "attn")


def conv_places(convs: list[Conv], kind: str, stride: int, position: dict[str, Any]) -> Iterator[Socket]:
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
        yield Socket(site, conv.owner, conv.name, (conv.norm,) if conv.activated else ())


def block_places(block: Any, where: str, stride: int, position: dict[str, Any]) -> Iterator[Socket]:
    gated, others = block.convs()
    first = [*gated, *others][0].module.in_channels
    widths = (first, *(conv.module.out_channels for conv in gated))
    native = not isinstance(block.se, nn.Identity)
    if where == "expanded":
        where = "preact" if len(gated) > 1 else "native"
    (before, after), (_, end) = strides(stride, gated)[-1], strides(stride, [*gated, *others])[-1]
    if where == "preact":
        site = Site(widths=widths, native=native, stride=before, **position)
        fill = partial(split_norm, block, gated[-1])
        yield Socket(site, block, "attn_pre", make_room=fill, leave=partial(move_own, block, gated[-1]) if native else None)
    if where in ("native", "both"):
        yield Socket(Site(widths=widths, native=native, stride=after, **position), block, "se")
    if where in ("end", "both"):
        widths = (*widths, *(conv.module.out_channels for conv in others))
        site = Site(widths=widths, native=native, stride=end, **position)
        yield Socket(site, block, "attn_end", make_room=partial(strip, block) if where == "end" else None)


def strip(block: Any) -> None:
    """Removes the block's own attention."""
    block.se = nn.Identity()


def move_own(block: Any, conv: Conv) -> None:
    """Moves the block's own attention before the activation.

    Raises:
        ValueError: as `split_norm`.
    """
    own = block.se
    split_norm(block, conv)
    block.attn_pre = own


def split_norm(block: Any, conv: Conv) -> None:
    """Removes the block's own attention, and moves the activation after `conv` out of its norm.

    Raises:
        ValueError: the norm and the activation cannot be separated.
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
    """The total stride of each convolution's output, before and after anti-aliasing, given that of the first one's input."""
    total = []
    for conv in convs:
        before = stride * conv.stride
        stride = before * stride_of(conv.aa)
        total.append((before, stride))
    return total


def block_width(block: Any) -> int | None:
    """Channels of a block's output; None if it keeps those of its input."""
    _, others = block.convs()
    return others[-1].module.out_channels if others else None
