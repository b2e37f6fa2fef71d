"""Bridge attention. Zhao et al.: BA-Net: Bridge Attention for Deep Convolutional Neural Networks, ECCV 2022."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from timm.layers import get_act_layer
from torch import Tensor, nn

from attn.attention import Attention, Gate, Site, hidden_width, select
from attn.modules.norm import VectorBatchNorm

Base = Literal["refined", "input"]


class BA(Gate):
    """Weights from the pooled outputs of all convolutions of the block, not of the last alone (eqs. 6 to 9).

    Each conv output F_i is pooled, squeezed to C/r and batch-normalised; the sum, after ReLU, is expanded to C channel
    weights: sigmoid(W relu(sum_i BN(W_i gap(F_i)))).

    The authors' mobile networks have reduction 6; their EfficientNet act `silu`, their MobileNetV3 gate `hard_sigmoid`.

    Args:
        site: the place; needs at least two convolutions. `place` leaves sites with one as the backbone made them (the
            squeeze-and-excitation of an EfficientNet's first block), if there are others.
        reduction: C (width of the refined map) divided by the width of the squeezed descriptors.
        reduction_of: `refined`, or `input`: C is the width of the block's input, as EfficientNet reckons that of its own
            squeeze-and-excitation (the authors' BA-EfficientNet does not).
        act: activation between the layers, by timm's name.
        gate: activation behind them, by timm's name: sigmoid, hard_sigmoid ...
        unused: also create, in the first block of each stage, a layer that nothing uses, as the authors' ResNeXt-50 does
            (28.85 M instead of 28.81 M). It gets no gradient.

    Raises:
        ValueError: no block has more than one convolution: there is nothing to bridge; or a setting is unknown.
    """

    sources = slice(1, None)

    def __init__(
        self,
        site: Site,
        reduction: float = 16,
        reduction_of: Base = "refined",
        act: str = "relu",
        gate: str = "sigmoid",
        unused: bool = False,
    ) -> None:
        super().__init__()
        widths, hidden = bridged(site), bridge_width(site, reduction, reduction_of)
        self.bridges = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden, bias=False), VectorBatchNorm(hidden)) for width in widths
        )
        self.act = activation(act, "act")
        self.expand = nn.Linear(hidden, site.width, bias=False)
        self.gate = activation(gate, "gate")
        self.unused = nn.Linear(2 * hidden, hidden, bias=False) if unused and site.block == 0 else None

    def descriptors(self, feats: Sequence[Tensor]) -> list[Tensor]:
        """The conv outputs [N, C_i, H_i, W_i] as [N, C_i]."""
        return [self.squeeze(f) for f in feats]

    def forward(self, feats: tuple[Tensor, ...], state: None) -> tuple[Tensor, None]:
        weights, state = self.weigh(self.descriptors(feats[self.sources]), state)
        return self.scale(feats[-1], weights), state

    def weigh(self, descriptors: Sequence[Tensor], state: None) -> tuple[Tensor, None]:
        squeezed = [bridge(z) for bridge, z in zip(self.bridges, descriptors, strict=True)]
        return self.gate(self.expand(self.act(sum(squeezed)))), state

    @classmethod
    def place(cls, sites: Sequence[Site], *, stages: Sequence[int] | None = None, **options: Any) -> list[Attention | None]:
        return place_where_bridged(cls, sites, stages, options)


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


def place_where_bridged(
    cls: type[Attention], sites: Sequence[Site], stages: Sequence[int] | None, options: dict[str, Any], least: int = 2
) -> list[Attention | None]:
    """One module per site with at least `least` convolutions, None for the others.

    Raises:
        ValueError: a stage does not exist, or the constructor refuses a site, as it does where no site has enough.
    """
    chosen = select(sites, stages)
    possible = select([site for site in chosen if len(site.widths) > least], None) or chosen
    wanted = {site.stage for site in possible}
    built = iter([cls(site, **options) for site in possible])
    return [next(built) if site.stage in wanted and len(site.widths) > least else None for site in sites]


def bridge_width(site: Site, reduction: float, reduction_of: Base) -> int:
    """Width of the squeezed descriptors.

    Raises:
        ValueError: it would be 0, or `reduction_of` is unknown.
    """
    if reduction_of not in ("refined", "input"):
        raise ValueError(f"BA: reduction_of={reduction_of!r}; choose from refined, input")
    return hidden_width(site.width if reduction_of == "refined" else site.widths[0], reduction, "BA")


def activation(name: str, key: str) -> nn.Module:
    """timm's activation of a name.

    Raises:
        ValueError: there is none.
    """
    try:
        found = get_act_layer(name)
    except (KeyError, AssertionError):
        found = None
    if found is None:
        raise ValueError(f"BA: {key}={name!r} is no activation of timm; use relu, silu, sigmoid, hard_sigmoid ...")
    return found()
