"""The protocol that every attention and every backbone keeps: `Site`, `Attention`, `Gate`, `Reading`, `attend`.

A backbone offers *sites* in three *slots*:

    block   the end of a residual branch, or the squeeze-and-excitation position of a mobile block
    conv    in place of a block's convolution
    stage   one more step at the end of a stage

and calls the module placed there through `attend(module, feats, state)`. State is passed from site to site as an argument
and a return value, one per slot; nothing is stored on modules. A caller that wants to see the calls of `attend` gets them
the same way: it passes a `Recorded` state, and finds them in the one that comes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """The position of an attention: everything that is known about it when the network is built.

    Attributes:
        widths: channels of the features that the site receives, in the order in which `forward` gets them. In a `block` slot
            the first is the block's input and the others are the outputs of its convolutions; in a `conv` slot they are the
            convolution's input and output; in a `stage` slot only the stage's output. The last one is refined.
        stage: number of the stage, from 1.
        block: index of the block in its stage, from 0.
        depth: index of the block in the network, from 0.
        stride: input pixels per pixel of the refined map, in one direction.
        prev: `widths` of the site before this one, whose state is passed to this one; `None` at the first.
        native: whether the backbone itself has an attention here (MobileNetV3, EfficientNet, RegNetY).
        conv: in a `conv` slot, the convolution to be replaced.
    """

    widths: tuple[int, ...]
    stage: int
    block: int
    depth: int
    stride: int
    prev: tuple[int, ...] | None = None
    native: bool = False
    conv: nn.Conv2d | None = None

    @property
    def width(self) -> int:
        """Channels of the map to be refined."""
        return self.widths[-1]


@dataclass(frozen=True)
class Reading:
    """What an attention computes for a batch: the weights, and what they are computed from.

    Attributes:
        weights: by what they weight. `channel` [N, C]; `spatial` [N, 1, H, W], or one map per group of channels; `joint`
            [N, C, H, W]; `branch` [N, M, C], of M branches; `filter` [N, C, C_in or 1, h, w], of a convolution's filters;
            `image` [N].
        descriptors: the pooled features, each [N, C_i]; empty if it pools none.
        bridged: of a bridge attention, the squeezed descriptors whose sum gives the weights, each [N, c], after their norm
            where they have one; else empty.
    """

    weights: Mapping[str, Tensor]
    descriptors: tuple[Tensor, ...] = ()
    bridged: tuple[Tensor, ...] = ()


class Attention(nn.Module):
    """Base of every attention. A subclass takes a `Site` and its own options, and overrides `refine` or `forward`.

    `takes_norm_act`: an attention in the `conv` slot sets it when it ends with its own normalisation and activation; the
    block's are then removed.
    """

    takes_norm_act: bool = False

    def refine(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to the same shape. Override this if the attention needs only one feature map."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither refine nor forward")

    def forward(self, feats: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        """Refines the last of `feats`.

        Args:
            feats: maps [N, C_i, H_i, W_i], one per entry of `Site.widths`.
            state: what the previous site of the same slot returned; `None` at the first.

        Returns:
            The refined map, and the state for the next site.
        """
        return self.refine(feats[-1]), state

    def reading(self, feats: tuple[Tensor, ...], state: Any) -> Reading | None:
        """What `forward` computes for the same arguments, to be looked at; None from an attention without weights to hand
        out.

        Self-attention between positions (AA, SASA, EA) has none: its weights belong to pairs of positions.
        """
        return None

    def connections(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The scalars alpha and beta by which it joins its own descriptors and those of the previous site, by the name of
        the join.

        Empty at a site that joins nothing: in other attentions than DCA, and at the first site.
        """
        return {}

    def unused_parameters(self) -> list[str]:
        """Names of this module's parameters that no forward pass uses; nested attentions report their own.

        Training on several ranks ignores them, and raises an error for any other parameter without a gradient.
        """
        return []

    def folded(self) -> Attention:
        """What takes this module's place in a network for inference (`attn.fuse`): the same function in evaluation mode.

        Override this if a part of the forward pass depends on the parameters alone, and can be computed once. Batch norms
        after a convolution or a linear layer need nothing: they are found. By default the module itself.
        """
        return self

    def objective_parameters(self) -> list[str]:
        """Names of this module's parameters that get a gradient only from its own objective (`attn.models.auxiliary`).

        Training without objectives, such as a detector's, ignores them.
        """
        return []

    @classmethod
    def place(cls, sites: Sequence[Site], *, stages: Sequence[int] | None = None, **options: Any) -> list[Attention | None]:
        """Chooses sites, builds their modules, and returns one entry per site; `None` leaves a site as the backbone made it.

        Args:
            sites: the sites of one slot, in the order of the forward pass.
            stages: numbers of the stages to fill, from 1; None for `default_stages`.
            options: passed to `build`.

        Raises:
            ValueError: a stage in `stages` does not exist, or the constructor rejects a site.
        """
        wanted = cls.default_stages(sorted({site.stage for site in sites})) if stages is None else stages
        built = iter(cls.build(select(sites, wanted), **options))
        return [next(built) if site.stage in wanted else None for site in sites]

    @classmethod
    def build(cls, sites: Sequence[Site], **options: Any) -> list[Attention | None]:
        """The module of each chosen site, or None. Override this to share a module, or to leave sites out.

        Args:
            sites: each with `prev` set to the widths of the one before it.
            options: passed to the constructor.

        Raises:
            ValueError: the constructor rejects a site.
        """
        return [cls(site, **options) for site in sites]

    @classmethod
    def default_stages(cls, present: Sequence[int]) -> Sequence[int]:
        """The stages to fill if none are given; by default all that are `present` (numbers in order, from 1)."""
        return present


class Gate(Attention):
    """Squeeze, excite, scale: the three steps that BA and DCA build on.

    `excite` takes only descriptors [N, C] and returns weights of the same shape. So the end of a block can be computed at
    once, without storing the unweighted map (`attn.kernels`). In this case `weigh` is called with what `squeeze_moments`
    computes from the features' means and variances; `forward`, `refine`, `squeeze` and `scale` are not called. If a subclass
    overrides one of these four, it is always run by `forward`, unless it, or a subclass of it, also overrides the
    counterpart.

    `sources`: the features that it pools, as a slice of `feats`.
    """

    sources: slice = slice(-1, None)
    pools_alone: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.pools_alone = all(issubclass(_definer(cls, vector), _definer(cls, full)) for full, vector in COUNTERPARTS)

    def squeeze(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to descriptors [N, C]; by default global average pooling."""
        return x.mean((2, 3))

    def squeeze_moments(self, mean: Tensor, variance: Tensor | None) -> Tensor:
        """`squeeze` from the mean and the variance over H W of a map, both [N, C].

        The mean has the type of the map, the variance is float32. Only the last feature has a variance, and only where no
        activation comes between norm and gate.
        """
        return mean

    def basis(self, height: int, width: int) -> Tensor | None:
        """[C, H, W]: the weights with which `squeeze` sums the last feature over H W; None for the mean.

        `squeeze_moments` then gets this sum in place of that feature's mean.
        """
        return None

    def weigh(self, descriptors: Sequence[Tensor], state: Any) -> tuple[Tensor, Any]:
        """The channel weights [N, C] of the last feature from the descriptors of `sources`, and the next site's state."""
        return self.excite(descriptors[-1]), state

    def takes_moments(self) -> bool:
        """Whether `squeeze_moments` and `weigh` together give the same result as `forward`."""
        return self.pools_alone

    def takes_means(self) -> bool:
        """Whether `squeeze_moments` does without the variance; unknown, so False, of a class that overrides it."""
        return _definer(type(self), "squeeze_moments") is Gate

    def excite(self, z: Tensor) -> Tensor:
        """Maps descriptors [N, C] to channel weights [N, C]."""
        raise NotImplementedError(f"{type(self).__name__} does not override excite")

    def scale(self, x: Tensor, weights: Tensor) -> Tensor:
        """Multiplies [N, C, H, W] by [N, C]."""
        return x * weights[:, :, None, None].to(x.dtype)

    def refine(self, x: Tensor) -> Tensor:
        return self.scale(x, self.excite(self.squeeze(x)))

    def reading(self, feats: tuple[Tensor, ...], state: Any) -> Reading | None:
        descriptors = tuple(self.squeeze(f) for f in feats[self.sources])
        weights, _ = self.weigh(descriptors, state)
        return Reading({"channel": weights}, descriptors)


# The methods that work on maps, and those that replace them when only means and variances are known.
COUNTERPARTS = (("forward", "weigh"), ("refine", "weigh"), ("scale", "weigh"), ("squeeze", "squeeze_moments"))


def _definer(cls: type, name: str) -> type:
    return next(base for base in cls.__mro__ if name in vars(base))


State = tuple[Any, Any]  # what the last `conv` site and the last `block` site returned
START: State = (None, None)


@dataclass(frozen=True)
class Call:
    """A call of `attend`: its arguments, and the map that it returned."""

    module: nn.Module | None
    feats: tuple[Tensor, ...]
    state: Any
    output: Tensor


@dataclass(frozen=True)
class Recorded:
    """The state of a slot together with the calls of `attend` that it went through."""

    state: Any
    calls: tuple[Call, ...] = ()


def attend(module: nn.Module | None, feats: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
    """Applies the content of a slot: an `Attention`, a module of the backbone (map to map), or nothing.

    A `Recorded` state comes back as one, with this call added.
    """
    if isinstance(state, Recorded):
        output, after = attend(module, feats, state.state)
        return output, Recorded(after, (*state.calls, Call(module, feats, state.state, output)))
    if isinstance(module, Attention):
        return module(feats, state)
    return (feats[-1] if module is None else module(feats[-1])), state


class StageAttention(nn.Module):
    """The last step of a stage, named `attn`: applies an attention to its output, and passes the state on unchanged."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to the same shapes."""
        x, state = inputs
        x, _ = attend(self.attention, (x,), None)
        return x, state


def select(sites: Sequence[Site], stages: Sequence[int] | None) -> list[Site]:
    """The sites of some stages (all by default), each with `prev` set to the widths of the chosen site before it.

    Raises:
        ValueError: a stage in `stages` does not exist.
    """
    present = sorted({s.stage for s in sites})
    missing = [] if stages is None else [s for s in stages if s not in present]
    if missing:
        raise ValueError(f"stages={list(stages or [])}: no stage {missing[0]} here; choose from {present}")
    chosen, prev = [], None
    for site in sites:
        if stages is None or site.stage in stages:
            chosen.append(replace(site, prev=prev))
            prev = site.widths
    return chosen


def hidden_width(channels: int, reduction: float, what: str) -> int:
    """`channels // reduction`, the width of a squeezed descriptor.

    Raises:
        ValueError: `reduction` is below 1, or leaves no channel.
    """
    if not 1 <= reduction <= channels:
        raise ValueError(f"{what}: reduction={reduction} must lie between 1 and the {channels} channels that it reduces")
    return int(channels // reduction)


def global_average(x: Tensor) -> Tensor:
    """Global average pooling, [N, C, H, W] to [N, C]."""
    return torch.mean(x, (2, 3))
