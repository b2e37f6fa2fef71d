"""Bridge attention with adaptive selection. Zhang et al.: BA-Net: Bridge Attention in Deep Neural Networks (v2), 2024."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from attn.attention import Attention, Site
from attn.modules._bridge import Base, Bridge, FoldedBridge, Reach, bridge_width
from attn.modules._layers import VectorBatchNorm, activation, norm_as_affine


class BAv2(Bridge):
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

    def join(self, bridged: Sequence[Tensor]) -> Tensor:
        """The weights [N, C] from the squeezed descriptors."""
        selected = self.select(torch.stack(list(bridged), -1))[..., 0]
        return self.gate(self.expand(self.act(self.norm(selected))))

    def folded(self) -> Attention:
        scale, shift = norm_as_affine(self.norm)
        select, bridges = self.select.weight.double()[0], cast(list[nn.Linear], self.bridges)
        weights = [a * scale[:, None] * b.weight.double() for a, b in zip(select, bridges, strict=True)]
        bias = scale * self.select.bias.double() + shift
        return FoldedBridge(self.reach, weights, bias, self.expand, self.act, self.gate)
