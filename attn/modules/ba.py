"""Bridge attention. Zhao et al.: BA-Net: Bridge Attention for Deep Convolutional Neural Networks, ECCV 2022."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from timm.layers import get_act_layer
from torch import Tensor, nn

from attn.attention import Attention, Gate, Site, hidden_width, select
from attn.modules.norm import VectorBatchNorm

T = TypeVar("T")
Base = Literal["refined", "input"]
Bridged = tuple[Tensor, ...] | None  # descriptors [N, C_i] of the convolutions before


class BA(Gate):
    """Weights from the pooled outputs of all convolutions of the block, not of the last alone (eqs. 6 to 9).

    Each conv output F_i is pooled (eq. 3), squeezed to C/r and batch-normalised; the sum, after ReLU, is expanded to C channel
    weights: sigmoid(W relu(sum_i BN(W_i gap(F_i)))), by which the last output is multiplied (eq. 9).

    Eq. 10 lets the sum reach over the layer and the q before it, whose block they may be of (its lower index is printed as q; the
    text means n - q). The method of the paper's tables is that of a block's own convolutions, `q=None`.

    The authors' mobile networks have reduction 6; their EfficientNet act `silu`, their MobileNetV3 gate `hard_sigmoid`.

    Args:
        site: the place; needs at least two convolutions. `place` leaves sites with one as the backbone made them (the
            squeeze-and-excitation of an EfficientNet's first block), if there are others.
        reduction: C (width of the refined map) divided by the width of the squeezed descriptors.
        reduction_of: `refined`, or `input`: C is the width of the block's input, as EfficientNet reckons that of its own
            squeeze-and-excitation (the authors' BA-EfficientNet does not).
        act: activation between the layers, by timm's name.
        gate: activation behind them, by timm's name: sigmoid, hard_sigmoid ...
        q: number of convolutions before the last that are bridged (eq. 10), from the last q of this block and, where it has fewer,
            of the blocks before it that have bridge attention too; near the input there are fewer. None: all of the block's.
        earlier: channels of the convolutions of the blocks before, in their order; `place` knows them.
        unused: also create, in the first block of each stage, a layer that nothing uses, as the authors' ResNeXt-50 does
            (28.85 M instead of 28.81 M). It gets no gradient.

    Raises:
        ValueError: no block has more than one convolution: there is nothing to bridge.
    """

    def __init__(
        self,
        site: Site,
        reduction: float = 16,
        reduction_of: Base = "refined",
        act: str = "relu",
        gate: str = "sigmoid",
        unused: bool = False,
        q: int | None = None,
        earlier: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.reach = Reach(site, q, earlier)
        widths, hidden = self.reach.widths, bridge_width(site, reduction, reduction_of)
        self.bridges = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden, bias=False), VectorBatchNorm(hidden)) for width in widths
        )
        self.act = activation(act, "act")
        self.expand = nn.Linear(hidden, site.width, bias=False)
        self.gate = activation(gate, "gate")
        self.unused = nn.Linear(2 * hidden, hidden, bias=False) if unused and site.block == 0 else None

    def unused_parameters(self) -> list[str]:
        return [] if self.unused is None else ["unused.weight"]

    def descriptors(self, feats: Sequence[Tensor]) -> list[Tensor]:
        """The conv outputs [N, C_i, H_i, W_i] as [N, C_i]."""
        return [self.squeeze(f) for f in feats]

    def forward(self, feats: tuple[Tensor, ...], state: Bridged) -> tuple[Tensor, Bridged]:
        descriptors, state = self.reach.collect(self.descriptors(self.reach.own(feats)), state)
        squeezed = [bridge(z) for bridge, z in zip(self.bridges, descriptors, strict=True)]
        weights = self.gate(self.expand(self.act(sum(squeezed))))
        return self.scale(feats[-1], weights), state

    @classmethod
    def build(cls, sites: Sequence[Site], **options: Any) -> list[Attention | None]:
        return build_where_bridged(cls, sites, options)


class Reach:
    """The layers that a site bridges: its block's own convolutions, and of those before as many as q asks for (eq. 10).

    `widths` are their channels, in the order of the network.

    Raises:
        ValueError: the block has one convolution alone, or q is below 1.
    """

    def __init__(self, site: Site, q: int | None, earlier: Sequence[int]) -> None:
        own = bridged(site)
        if q is not None and q < 1:
            raise ValueError(f"BA: q={q} must be 1 or more convolutions before the last, or null for all of the block's")
        self.q = q
        self.count = len(own) if q is None else min(q + 1, len(own))
        missing = 0 if q is None else min(q + 1 - self.count, len(earlier))
        self.before = missing
        self.widths = (*earlier[len(earlier) - missing :], *own[len(own) - self.count :])

    def own(self, feats: Sequence[T]) -> Sequence[T]:
        """Of one item per convolution of the block, those of the convolutions that are bridged."""
        return feats[len(feats) - self.count :]

    def collect(self, own: Sequence[Tensor], state: Bridged) -> tuple[list[Tensor], Bridged]:
        """All descriptors to be bridged, from the block's own and those handed on; and what to hand on in turn."""
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
        ValueError: the constructor refuses a site, as it does where no site has enough convolutions.
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


def activation(name: str, key: str, what: str = "BA") -> nn.Module:
    """timm's activation of a name.

    Raises:
        ValueError: there is none.
    """
    try:
        found = get_act_layer(name)
    except (KeyError, AssertionError):
        found = None
    if found is None:
        raise ValueError(f"{what}: {key}={name!r} is no activation of timm; use relu, silu, sigmoid, hard_sigmoid ...")
    return found()
