"""Shared by the bridge attention files: which convolutions a site bridges, which sites have enough, and their base class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from attn.attention import Attention, Gate, Reading, Site, hidden_width, select

T = TypeVar("T")
Base = Literal["refined", "input"]
Bridged = tuple[Tensor, ...] | None  # descriptors [N, C_i] of the convolutions before


class Reach:
    """The layers that a site bridges: its block's own convolutions, and as many earlier ones as q requires (eq. 10).

    `widths` are their channels, in the order of the network; `sources` says which of the block's features are bridged.

    Raises:
        ValueError: the block has only one convolution, or q is below 1.
    """

    def __init__(self, site: Site, q: int | None, earlier: Sequence[int]) -> None:
        own = bridged(site)
        if q is not None and q < 1:
            raise ValueError(f"BA: q={q} must be 1 or more convolutions before the last, or null for all of the block's")
        self.q = q
        self.count = len(own) if q is None else min(q + 1, len(own))
        self.sources = slice(-self.count, None)
        missing = 0 if q is None else min(q + 1 - self.count, len(earlier))
        self.before = missing
        self.widths = (*earlier[len(earlier) - missing :], *own[len(own) - self.count :])

    def own(self, feats: Sequence[T]) -> Sequence[T]:
        """From one item per convolution of the block, the items of the bridged convolutions."""
        return feats[len(feats) - self.count :]

    def collect(self, own: Sequence[Tensor], state: Bridged) -> tuple[list[Tensor], Bridged]:
        """All descriptors to bridge, from the block's own and those of earlier blocks; and the state for the next site."""
        if self.q is None:
            return list(own), state
        known = [*(state or ()), *own]
        return known[len(known) - self.count - self.before :], tuple(known[-self.q :])


def bridged(site: Site) -> tuple[int, ...]:
    """Channels of the conv outputs to bridge: all of the block's.

    Raises:
        ValueError: there is only one.
    """
    widths = site.widths[1:]
    if len(widths) < 2:
        raise ValueError(
            f"bridge attention needs at least two convolutions to bridge, but the site at stage {site.stage}, "
            f"block {site.block} sees {len(widths)}"
        )
    return widths


def build_where_bridged(
    cls: type[Attention], sites: Sequence[Site], options: Mapping[str, Any], least: int = 2
) -> list[Attention | None]:
    """One module per site with at least `least` convolutions, None for the others.

    Raises:
        ValueError: the constructor rejects a site, for example because no site has enough convolutions.
    """
    enough = [len(site.widths) > least for site in sites]
    possible = [site for site, fits in zip(sites, enough, strict=True) if fits]
    modules: list[Attention] = []
    earlier: list[int] = []
    for site in select(possible or sites, None):
        modules.append(cls(site, **options, **({} if options.get("q") is None else {"earlier": tuple(earlier)})))
        earlier += site.widths[1:]
    built = iter(modules)
    return [next(built) if fits else None for fits in enough]


def bridge_width(site: Site, reduction: float, reduction_of: Base) -> int:
    """Width of the squeezed descriptors.

    Raises:
        ValueError: it would be 0.
    """
    return hidden_width(site.width if reduction_of == "refined" else site.widths[0], reduction, "BA")


class Bridge(Gate):
    """Base of the bridge attentions: the descriptors of the bridged convolutions are squeezed, then joined to the weights.

    A subclass sets `sources` and the two attributes, and overrides `join`.

    Attributes:
        reach: which convolutions are bridged.
        bridges: one module per convolution, from its descriptor [N, C_i] to [N, C / r].
    """

    reach: Reach
    bridges: nn.ModuleList

    def descriptors(self, feats: Sequence[Tensor]) -> list[Tensor]:
        """The conv outputs [N, C_i, H_i, W_i] as [N, C_i]."""
        return [self.squeeze(f) for f in feats]

    def forward(self, feats: tuple[Tensor, ...], state: Bridged) -> tuple[Tensor, Bridged]:
        weights, state = self.weigh(self.descriptors(feats[self.sources]), state)
        return self.scale(feats[-1], weights), state

    def weigh(self, descriptors: Sequence[Tensor], state: Bridged) -> tuple[Tensor, Bridged]:
        descriptors, state = self.reach.collect(descriptors, state)
        return self.join(self.bridge(descriptors)), state

    def bridge(self, descriptors: Sequence[Tensor]) -> list[Tensor]:
        """The descriptors [N, C_i] squeezed, each [N, C / r]."""
        return [bridge(z) for bridge, z in zip(self.bridges, descriptors, strict=True)]

    def join(self, bridged: Sequence[Tensor]) -> Tensor:
        """The weights [N, C] from the squeezed descriptors, each [N, C / r]."""
        raise NotImplementedError(f"{type(self).__name__} does not override join")

    def reading(self, feats: tuple[Tensor, ...], state: Bridged) -> Reading:
        own = self.descriptors(feats[self.sources])
        bridged = self.bridge(self.reach.collect(own, state)[0])
        return Reading({"channel": self.join(bridged)}, tuple(own), tuple(bridged))

    @classmethod
    def build(cls, sites: Sequence[Site], **options: Any) -> list[Attention | None]:
        return build_where_bridged(cls, sites, options)


class FoldedBridge(Gate):
    """Bridge attention in evaluation: gate(W act(V z + b)), z all descriptors in one vector. BA and BAv2 become the same.

    Args:
        reach: which convolutions are bridged.
        weights: V, the part of each convolution, [hidden, C_i]; in float64.
        bias: b, [hidden], in float64.
        expand: W, with its parameters' type.
        act, gate: the activations.
        pools: what pools each of the block's convolutions, [N, C_i, H_i, W_i] to [N, C_i]; None for the average.
    """

    def __init__(
        self,
        reach: Reach,
        weights: Sequence[Tensor],
        bias: Tensor,
        expand: nn.Linear,
        act: nn.Module,
        gate: nn.Module,
        pools: nn.ModuleList | None = None,
    ) -> None:
        super().__init__()
        self.reach, self.sources = reach, reach.sources
        joined = torch.cat(list(weights), 1).to(expand.weight.dtype)
        self.bridge = nn.Linear(joined.shape[1], joined.shape[0], device="meta")
        self.bridge.weight, self.bridge.bias = nn.Parameter(joined), nn.Parameter(bias.to(joined.dtype))
        self.expand, self.act, self.gate, self.pools = expand, act, gate, pools

    def forward(self, feats: tuple[Tensor, ...], state: Bridged) -> tuple[Tensor, Bridged]:
        own = feats[self.sources]
        if self.pools is None:
            descriptors = [self.squeeze(f) for f in own]
        else:
            descriptors = [pool(f) for pool, f in zip(self.pools, own, strict=True)]
        weights, state = self.weigh(descriptors, state)
        return self.scale(feats[-1], weights), state

    def takes_moments(self) -> bool:
        return self.pools is None and super().takes_moments()

    def weigh(self, descriptors: Sequence[Tensor], state: Bridged) -> tuple[Tensor, Bridged]:
        descriptors, state = self.reach.collect(descriptors, state)
        return self.gate(self.expand(self.act(self.bridge(torch.cat(descriptors, 1))))), state
