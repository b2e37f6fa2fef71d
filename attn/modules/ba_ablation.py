"""What to bridge: the variants of BA-Net's Table 1 (Zhao et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from attn.attention import Attention, Gate, Reading, Site, hidden_width
from attn.modules._bridge import build_where_bridged
from attn.modules._layers import VectorBatchNorm

Position = Literal["prev,conv3", "prev,end", "curr,conv1", "curr,conv2", "curr,conv1&2"]
CONVS: dict[str, tuple[int, ...]] = {"curr,conv1": (1,), "curr,conv2": (2,), "curr,conv1&2": (1, 2)}


class BAAblation(Gate):
    """SE whose squeezed descriptor is added to those of other positions: sigmoid(W relu(sum_i BN(W_i z_i))).

    z_0 is the average of the map to refine. The others depend on `position`:

    - `prev,conv3`: the average of the previous block's last conv output, or with `vector=att` its channel weights.
    - `prev,end`: the average of the previous block's output, after the shortcut: this block's input.
    - `curr,conv1`, `curr,conv2`: the average of the block's own first or second conv output. `curr,conv1&2`: both (BA).

    The previous block may be in the stage before. The first block of the network has no previous block and uses only its own
    descriptor. The table is about bottlenecks; in a block of two convolutions, `curr,conv1` is BA. Blocks without the
    convolutions of `position` are not changed, if there are others.

    Args:
        site: the position.
        vector: `conv` outputs or attention weights (`att`); `att` only with `prev,conv3`.
        position: where the other descriptors come from.
        reduction: C divided by the width of the squeezed descriptors.

    Raises:
        ValueError: a setting is unknown, the two cannot be combined, or no block has the convolutions.
    """

    def __init__(
        self,
        site: Site,
        vector: Literal["conv", "att"] = "conv",
        position: Position = "curr,conv1&2",
        reduction: float = 16,
    ) -> None:
        super().__init__()
        if vector == "att" and position != "prev,conv3":
            raise ValueError(f"BA: vector=att goes with position=prev,conv3 only, not {position}")
        self.vector, self.from_previous, self.from_input = vector, position == "prev,conv3", position == "prev,end"
        self.convs = CONVS.get(position, ())
        last = len(site.widths) - 1
        if any(i >= last for i in self.convs):
            raise ValueError(
                f"BA: position={position} bridges convolutions before the last, but the block at stage {site.stage} has "
                f"{last}"
            )
        hidden = hidden_width(site.width, reduction, "BA")
        widths = [site.width, *(site.widths[i] for i in self.convs)]
        if site.prev is not None and (self.from_previous or self.from_input):
            widths.append(site.prev[-1] if self.from_previous else site.widths[0])
        self.bridges = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden, bias=False), VectorBatchNorm(hidden)) for width in widths
        )
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Linear(hidden, site.width, bias=False)

    def forward(self, feats: tuple[Tensor, ...], state: Tensor | None) -> tuple[Tensor, Any]:
        vectors = self.vectors(feats, state)
        weights = self.join(self.bridge(vectors))
        handed_on = (weights if self.vector == "att" else vectors[0]) if self.from_previous else state
        return self.scale(feats[-1], weights), handed_on

    def vectors(self, feats: tuple[Tensor, ...], state: Tensor | None) -> list[Tensor]:
        """The descriptors [N, C_i] to bridge, this block's own first."""
        vectors = [self.squeeze(feats[-1]), *(self.squeeze(feats[i]) for i in self.convs)]
        if len(vectors) < len(self.bridges):
            previous = self.squeeze(feats[0]) if self.from_input else state
            assert previous is not None, "a site with a previous one gets its vector"
            vectors.append(previous)
        return vectors

    def bridge(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The descriptors squeezed and normalised, each [N, C / r]."""
        return [bridge(z) for bridge, z in zip(self.bridges, vectors, strict=True)]

    def join(self, bridged: Sequence[Tensor]) -> Tensor:
        """The weights [N, C] from the squeezed descriptors."""
        # The sum is a new tensor, also of one: the activation works in place.
        return self.expand(self.act(sum(bridged))).sigmoid()

    def reading(self, feats: tuple[Tensor, ...], state: Tensor | None) -> Reading:
        vectors = self.vectors(feats, state)
        bridged = self.bridge(vectors)
        return Reading({"channel": self.join(bridged)}, tuple(vectors), tuple(bridged))

    @classmethod
    def build(cls, sites: Sequence[Site], **options: Any) -> list[Attention | None]:
        convs = CONVS.get(options.get("position", "curr,conv1&2"), (0,))
        return build_where_bridged(cls, sites, options, least=max(convs) + 1)
