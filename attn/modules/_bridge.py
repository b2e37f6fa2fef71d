"""Shared by the bridge attention files: which convolutions a site bridges, and which sites have enough of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from torch import Tensor

from attn.attention import Attention, Site, hidden_width, select

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
