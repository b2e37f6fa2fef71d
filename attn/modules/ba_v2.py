"""Bridge attention with adaptive selection. Zhang et al.: BA-Net: Bridge Attention in Deep Neural Networks (v2), 2024."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from attn.attention import Attention, Gate, Reading, Site
from attn.modules._bridge import Base, Bridged, FoldedBridge, Reach, bridge_width, build_where_bridged
from attn.modules._layers import VectorBatchNorm, activation, norm_as_affine


class BAv2(Gate):
    """As `BA`, but the squeezed descriptors are combined by learned scalars, one per convolution, shared by all channels.

    s_i = W_i gap(F_i); weights = sigmoid(W relu(BN(sum_i a_i s_i + b))), as in the released code (`ba_resnet50_v2_1`).

    Args:
        site: the position; needs at least two convolutions. Sites with only one are not changed, if there are
            others.
        reduction: C (width of the refined map) divided by the width of the squeezed descriptors.
        reduction_of: `refined`, or `input`: C is the width of the block's input.
        act: activation between the layers, by timm's name.
        gate: activation after them, by timm's name.
        q, earlier: as in `BA`.

    Raises:
        ValueError: no block has more than one convolution, or a setting is unknown.
    """

    def __init__(
        self,
        site: Site,
        reduction: float = 16,
        reduction_of: Base = "refined",
        act: str = "relu",
        gate: str = "sigmoid",
        q: int | None = None,
        earlier: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.reach = Reach(site, q, earlier)
        self.sources = self.reach.sources
        widths, hidden = self.reach.widths, bridge_width(site, reduction, reduction_of)
        self.bridges = nn.ModuleList(nn.Linear(width, hidden, bias=False) for width in widths)
        self.select = nn.Linear(len(self.bridges), 1)
        self.norm = VectorBatchNorm(hidden)
        self.act = activation(act, "BA: act")()
        self.expand = nn.Linear(hidden, site.width, bias=False)
        self.gate = activation(gate, "BA: gate")()

    def forward(self, feats: tuple[Tensor, ...], state: Bridged) -> tuple[Tensor, Bridged]:
        weights, state = self.weigh([self.squeeze(f) for f in feats[self.sources]], state)
        return self.scale(feats[-1], weights), state

    def weigh(self, descriptors: Sequence[Tensor], state: Bridged) -> tuple[Tensor, Bridged]:
        descriptors, state = self.reach.collect(descriptors, state)
        return self.join(self.bridge(descriptors)), state

    def bridge(self, descriptors: Sequence[Tensor]) -> list[Tensor]:
        """The descriptors [N, C_i] squeezed, each [N, C / r]; unlike those of `BA` they have no norm."""
        return [bridge(z) for bridge, z in zip(self.bridges, descriptors, strict=True)]

    def join(self, bridged: Sequence[Tensor]) -> Tensor:
        """The weights [N, C] from the squeezed descriptors."""
        selected = self.select(torch.stack(list(bridged), -1))[..., 0]
        return self.gate(self.expand(self.act(self.norm(selected))))

    def reading(self, feats: tuple[Tensor, ...], state: Bridged) -> Reading:
        own = [self.squeeze(f) for f in feats[self.sources]]
        bridged = self.bridge(self.reach.collect(own, state)[0])
        return Reading({"channel": self.join(bridged)}, tuple(own), tuple(bridged))

    def folded(self) -> Attention:
        scale, shift = norm_as_affine(self.norm)
        select, bridges = self.select.weight.double()[0], cast(list[nn.Linear], self.bridges)
        weights = [a * scale[:, None] * b.weight.double() for a, b in zip(select, bridges, strict=True)]
        bias = scale * self.select.bias.double() + shift
        return FoldedBridge(self.reach, weights, bias, self.expand, self.act, self.gate)

    @classmethod
    def build(cls, sites: Sequence[Site], **options: Any) -> list[Attention | None]:
        return build_where_bridged(cls, sites, options)
