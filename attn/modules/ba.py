"""Bridge attention. Zhao et al.: BA-Net: Bridge Attention for Deep Convolutional Neural Networks, ECCV 2022."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attn.attention import Attention, Gate, Reading, Site
from attn.modules._bridge import Base, Bridged, FoldedBridge, Reach, bridge_width, build_where_bridged
from attn.modules._layers import VectorBatchNorm, activation, norm_as_affine


class BA(Gate):
    """Weights from the pooled outputs of all convolutions of the block, not only of the last (eqs. 6 to 9).

    Each conv output F_i is pooled (eq. 3), squeezed to C/r and batch-normalised; the sum, after ReLU, is expanded to C
    channel weights: sigmoid(W relu(sum_i BN(W_i gap(F_i)))). The last output is multiplied by them (eq. 9).

    In eq. 10 the sum covers the layer and the q layers before it, which may be in earlier blocks (its lower index is printed
    as q; the text means n - q). The paper's tables use only the block's own convolutions, `q=None`.

    The authors' mobile networks have reduction 6; their EfficientNet act `silu`, their MobileNetV3 gate `hard_sigmoid`.

    Args:
        site: the position; needs at least two convolutions. `place` does not change sites with only one (the
            squeeze-and-excitation of an EfficientNet's first block), if there are others.
        reduction: C (width of the refined map) divided by the width of the squeezed descriptors.
        reduction_of: `refined`, or `input`: C is the width of the block's input, as in EfficientNet's own
            squeeze-and-excitation (but not in the authors' BA-EfficientNet).
        act: activation between the layers, by timm's name.
        gate: activation after them, by timm's name: sigmoid, hard_sigmoid ...
        q: number of convolutions before the last that are bridged (eq. 10): those of this block and, if it has fewer than q,
            those of earlier blocks with bridge attention; near the input there are fewer. None: all of the block's.
        earlier: channels of the convolutions of earlier blocks, in their order; `place` sets it.
        unused: also create, in the first block of each stage, a layer that nothing uses, as the authors' ResNeXt-50 does
            (28.85 M instead of 28.81 M). It gets no gradient.

    Raises:
        ValueError: no block has more than one convolution, so there is nothing to bridge.
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
        self.sources = self.reach.sources
        widths, hidden = self.reach.widths, bridge_width(site, reduction, reduction_of)
        self.bridges = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden, bias=False), VectorBatchNorm(hidden)) for width in widths
        )
        self.act = activation(act, "BA: act")()
        self.expand = nn.Linear(hidden, site.width, bias=False)
        self.gate = activation(gate, "BA: gate")()
        self.unused = nn.Linear(2 * hidden, hidden, bias=False) if unused and site.block == 0 else None

    def unused_parameters(self) -> list[str]:
        return [] if self.unused is None else ["unused.weight"]

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
        """The descriptors [N, C_i] squeezed and normalised, each [N, C / r]."""
        return [bridge(z) for bridge, z in zip(self.bridges, descriptors, strict=True)]

    def join(self, bridged: Sequence[Tensor]) -> Tensor:
        """The weights [N, C] from the squeezed descriptors."""
        return self.gate(self.expand(self.act(sum(bridged))))

    def reading(self, feats: tuple[Tensor, ...], state: Bridged) -> Reading:
        own = self.descriptors(feats[self.sources])
        bridged = self.bridge(self.reach.collect(own, state)[0])
        return Reading({"channel": self.join(bridged)}, tuple(own), tuple(bridged))

    def folded(self) -> Attention:
        bridges: Any = self.bridges
        weights, shifts = [], []
        for linear, norm in bridges:
            scale, shift = norm_as_affine(norm)
            weights.append(linear.weight.double() * scale[:, None])
            shifts.append(shift)
        return FoldedBridge(self.reach, weights, torch.stack(shifts).sum(0), self.expand, self.act, self.gate, self.pools())

    def pools(self) -> nn.ModuleList | None:
        """What pools each conv output, if it is not the average."""
        return None

    @classmethod
    def build(cls, sites: Sequence[Site], **options: Any) -> list[Attention | None]:
        return build_where_bridged(cls, sites, options)
