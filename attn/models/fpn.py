"""Attention in feature pyramids: AW, SE, CBAM and their combinations on the convolutions of an FPN.

As in AW-convolution (arXiv 2108.08205, table 2): AW replaces every lateral 1x1 and every 3x3 output
convolution; SE or CBAM refine the input of each of them. The pyramid's own code and parameter names do not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor, nn

from attn.attention import Attention, Site
from attn.models import spec
from attn.modules._layers import conv_settings
from attn.modules.aw import AW, AWConv2d, plan


class GatedConv2d(nn.Conv2d):
    """A convolution whose input an attention refines first; it replaces `conv` and keeps its parameters."""

    def __init__(self, conv: nn.Conv2d, gate: Attention) -> None:
        super().__init__(**conv_settings(conv), device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.gate.refine(x))


class GatedAWConv2d(AWConv2d):
    """An AW-convolution whose input an attention refines first."""

    def __init__(self, conv: nn.Conv2d, gate: Attention, **options: Any) -> None:
        super().__init__(conv, **options)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.gate.refine(x))


def add_attention(
    fpn: nn.Module,
    attention: str | Mapping[str, Any],
    laterals: str = "lateral_convs",
    outputs: str = "fpn_convs",
    strides: Sequence[int] | None = None,
) -> None:
    """Adds an attention to the lateral and output convolutions of a feature pyramid, in place.

    The parameters of a convolution keep their names (`lateral_convs.0.conv.weight`), so weights of the plain pyramid can be
    loaded; those of the attention are new: `squeeze` and `excite` for AW, `gate` for the input's attention. A bias is not
    weighted.

    AW's batch norms get a 1x1 map per image on the laterals: with two images per device, convert to SyncBN; with one they
    use the running statistics (see `AWConv2d`).

    Args:
        fpn: any module with two lists of convolutions, or of modules that hold one convolution each, highest
            resolution first. If there are more outputs than laterals (extra levels), the others are not changed.
        attention: a name of `attn.list_attentions()` or a mapping as in `configs/attention/*.yaml`. Its `conv` slot may hold
            AW, its `block` slot an attention that needs one feature map and no state (SE, ECA, SRM, SGE, GE, GC, CBAM ...);
            `stages` selects levels, from 1.
        laterals: attribute with the list of 1x1 convolutions; by default MMDetection's name; torchvision: `inner_blocks`.
        outputs: attribute with the list of 3x3 convolutions; by default MMDetection's name; torchvision: `layer_blocks`.
        strides: input pixels per pixel of each level, for attentions that need the map's size; by default 4, 8, 16, ...

    Raises:
        ValueError: the lists or their convolutions are not found, or the attention does not fit a pyramid.
    """
    wanted = spec.resolve_attention(attention)
    label = attention if isinstance(attention, str) else "attention"
    try:
        _check(wanted)
        lateral_convs, output_convs = _convolutions(fpn, laterals), _convolutions(fpn, outputs)
        if len(output_convs) < len(lateral_convs):
            raise ValueError(f"{len(output_convs)} {outputs} for {len(lateral_convs)} {laterals}")
        if strides is not None and len(strides) != len(lateral_convs):
            raise ValueError(f"strides={list(strides)} needs one entry for each of {len(lateral_convs)} {laterals}")
        steps = strides if strides is not None else [4 * 2**level for level in range(len(lateral_convs))]
        for convs in (lateral_convs, output_convs[: len(lateral_convs)]):
            _fill(convs, wanted, steps)
    except ValueError as error:
        raise ValueError(f"fpn={type(fpn).__name__} attention={label}: {error}") from error


def _check(wanted: spec.AttentionSpec) -> None:
    """Checks that the attention fits a pyramid.

    Raises:
        ValueError: it does not.
    """
    if wanted.stage is not None:
        raise ValueError("a pyramid has no stage to end (stage slot); use the block or conv slot")
    if wanted.block is None and wanted.conv is None:
        raise ValueError("it fills neither the block nor the conv slot")
    if wanted.conv is not None and wanted.conv.func is not AW:
        raise ValueError(f"{_name(wanted.conv)} cannot replace the convolutions of a pyramid; AW can")
    if wanted.block is not None and wanted.block.func.forward is not Attention.forward:  # type: ignore[attr-defined]
        raise ValueError(f"{_name(wanted.block)} needs the features or the state of a block, which a pyramid does not have")


def _name(attention: partial[Attention]) -> str:
    return attention.func.__name__


def _convolutions(fpn: nn.Module, attribute: str) -> list[tuple[nn.Module, str]]:
    """The convolution of every entry of a list: the module that holds it, and its name there."""
    entries = getattr(fpn, attribute, None)
    if not isinstance(entries, (nn.ModuleList, nn.Sequential)):
        raise ValueError(f"it has no list {attribute!r}; name the lists of its convolutions with laterals= and outputs=")
    found = []
    for i, entry in enumerate(entries):
        convs = [name for name, module in entry.named_modules() if isinstance(module, nn.Conv2d)]
        if len(convs) != 1:
            raise ValueError(f"{attribute}[{i}] holds {len(convs)} convolutions; there must be one in each")
        path = f"{i}.{convs[0]}".rstrip(".")
        owner, _, name = path.rpartition(".")
        conv = entries.get_submodule(path)
        if type(conv).forward is not nn.Conv2d.forward:
            raise ValueError(f"{attribute}[{i}] holds a {type(conv).__name__}, which is not a plain nn.Conv2d")
        found.append((entries.get_submodule(owner), name))
    return found


def _fill(convs: Sequence[tuple[nn.Module, str]], wanted: spec.AttentionSpec, strides: Sequence[int]) -> None:
    """Replaces one convolution per level."""
    modules: list[nn.Conv2d] = [getattr(owner, name) for owner, name in convs]
    sites = [
        Site(widths=(conv.in_channels,), stage=level, block=0, depth=level - 1, stride=stride)
        for level, (conv, stride) in enumerate(zip(modules, strides, strict=True), start=1)
    ]
    weighed, gates = (_options(attention, sites) for attention in (wanted.conv, wanted.block))
    for site, conv, (owner, name), aw, block in zip(sites, modules, convs, weighed, gates, strict=True):
        gate = None
        if wanted.block is not None and block is not None:
            gate = wanted.block.func.place([site], **block)[0]  # type: ignore[attr-defined]
        new: nn.Module = conv
        if aw is not None:
            new = AWConv2d(conv, **aw) if gate is None else GatedAWConv2d(conv, gate, **aw)
        elif gate is not None:
            new = GatedConv2d(conv, gate)
        setattr(owner, name, new.train(conv.training))


def _options(attention: partial[Attention] | None, sites: Sequence[Site]) -> Sequence[Mapping[str, Any] | None]:
    """The attention's options at every level; None if there is no attention or it does not use the level."""
    if attention is None:
        return [None] * len(sites)
    options = dict(attention.keywords)
    stages, levels = options.get("stages"), [site.stage for site in sites]
    missing = [stage for stage in stages or [] if stage not in levels]
    if missing:
        raise ValueError(f"stages={stages}: no level {missing[0]} here; choose from {levels}")
    if attention.func is AW:
        choice = {name: options.pop(name) for name in signature(plan).parameters if name in options}
        return [None if ratios is None else {**options, **ratios} for ratios in plan(sites, **choice)]
    options.pop("stages", None)
    return [options if stages is None or site.stage in stages else None for site in sites]
