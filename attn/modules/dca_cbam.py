"""CBAM connected along the depth of the network. DCANet, Ma et al., 2020 (sections 3.4 and 4.2)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn.attention import Attention, Reading, Site
from attn.modules._layers import MapBatchNorm, scale_channels
from attn.modules.cbam import CBAM, ChannelAttention, SpatialAttention
from attn.modules.dca import Form, Matching, Printed, Schema, connection_of, matched_width, parameters_of, previous_width

Maps = tuple[Tensor | None, Tensor | None]


class DCACBAM(Attention):
    """`CBAM` whose channel and spatial attention are each connected with that of the previous block.

    Channel: the previous block's map after its channel attention is matched to C channels and pooled like this block's; each
    pair of pools is joined by one shared connection. Spatial: see `SpatialConnection` and `attn.modules.dca.Printed`. The
    first block is plain CBAM.

    Args:
        site: the position.
        base: builds the `CBAM` from a site.
        connect: which attentions are connected: channel (DCA-C), spatial (DCA-S) or both (DCA-All).
        connection: the schema of the channel join (`attn.modules.dca.Printed`), and in the form `equations` of the spatial
            one.
        bias: whether the channel join of the form `released` has a bias.
        matching: number of 1x1 convolutions of the channel size matching, each with BatchNorm and ReLU.
        reduction: of the two-layer size matching.
        matching_bias: whether these convolutions have a bias, which the BatchNorm after them cancels (the authors'
            ResNet-50).
        match_on: `map` matches the whole previous map, then pools it (the authors' code, 5.40 GFLOPs with ResNet-50);
            `pooled` pools first (4.16 GFLOPs). The parameters are the same.
        spatial_matching: how the previous map is resized to this block's resolution: avg or max pooling.
        zero_init: start with the weights of all spatial BatchNorms at 0, as in the authors' ResNet. There a ReLU follows the
            BatchNorm of the connection, so the spatial attention never gets a gradient. For comparison only.
        unused: also create what the authors' networks contain but never use, in the first block.
        form: of both joins: `released` (the authors' code) or `equations` (eqs. 2 to 4 alone), as in `attn.modules.dca.DCA`.

    Raises:
        ValueError: `base` is not a `CBAM`, or lacks the attention to connect.
    """

    def __init__(
        self,
        site: Site,
        base: Callable[[Site], Attention] = CBAM,
        connect: Literal["both", "channel", "spatial"] = "both",
        connection: Schema = "direct",
        bias: bool = False,
        matching: Matching = "1fc",
        reduction: float = 16,
        matching_bias: bool = False,
        match_on: Literal["map", "pooled"] = "map",
        spatial_matching: Literal["avg", "max"] = "avg",
        zero_init: bool = False,
        unused: bool = False,
        form: Form = "released",
    ) -> None:
        super().__init__()
        cbam = base(site)
        if not isinstance(cbam, CBAM):
            raise ValueError(f"dca_cbam connects CBAM, not {type(cbam).__name__}; use dca_se, dca_gc ... for others")
        matched_width(site.width, matching, reduction)
        self.connects_channel, self.connects_spatial = connect != "spatial", connect != "channel"
        for wanted, part, name in (
            (self.connects_channel, cbam.channel, "channel"),
            (self.connects_spatial, cbam.spatial, "spatial"),
        ):
            if wanted and part is None:
                raise ValueError(f"DCA: connect={connect!r} needs the {name} attention, which base.{name}=False leaves out")
        self.base = cbam
        self.first = site.prev is None  # it has no previous site, so its joins are never used
        self.match_on = match_on
        self.spatial_matching = spatial_matching

        self.connect = self.match = None
        self.connect_spatial: nn.Module | None = None
        previous = previous_width(site, unused)
        if previous is not None and self.connects_channel:
            self.connect = connection_of(form, site.width, connection, bias)
            if previous != site.width:
                self.match = map_matcher(previous, site.width, matching, reduction, matching_bias)
        if previous is not None and self.connects_spatial:
            self.connect_spatial = Printed(connection) if form == "equations" else SpatialConnection()
        if zero_init:
            for owner in (cbam.spatial, self.connect_spatial):
                if isinstance(owner, (SpatialAttention, SpatialConnection)):
                    nn.init.zeros_(owner.norm.weight)

    def unused_parameters(self) -> list[str]:
        return parameters_of(self, "connect", "match", "connect_spatial") if self.first else []

    def forward(self, feats: tuple[Tensor, ...], state: Maps | None) -> tuple[Tensor, Maps]:
        x = feats[-1]
        previous_channel, previous_spatial = (None, None) if state is None else state
        handed_channel = handed_spatial = None
        if self.base.channel is not None:
            x, handed_channel = self.attend_channels(self.base.channel, x, previous_channel)
        if self.base.spatial is not None:
            x = self.attend_positions(self.base.spatial, x, previous_spatial)
            handed_spatial = x if self.connects_spatial else None
        return x, (handed_channel, handed_spatial)

    def attend_channels(
        self, attention: ChannelAttention, x: Tensor, previous: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The map [N, C, H, W] after channel attention, and the channel state for the next block."""
        x = scale_channels(x, self.channel_weights(attention, x, previous))
        if not self.connects_channel:
            return x, None
        # Pools as [N, C, 1, number of pools], so that the same size matching module works on both.
        return x, x if self.match_on == "map" else torch.stack(attention.squeeze(x), 2)[:, :, None]

    def channel_weights(self, attention: ChannelAttention, x: Tensor, previous: Tensor | None) -> Tensor:
        """The weights [N, C] of the channels, connected with the previous block's."""
        pooled = attention.squeeze(x)
        if previous is not None:
            assert self.connect is not None, "a site with a previous one has a connection"
            if self.match is not None:
                previous = self.match(previous)
            earlier = attention.squeeze(previous) if self.match_on == "map" else previous.flatten(2).unbind(2)
            pooled = [self.connect(own, p) for own, p in zip(pooled, earlier, strict=True)]
        return attention.excite(pooled)

    def attend_positions(self, attention: SpatialAttention, x: Tensor, previous: Tensor | None) -> Tensor:
        """The map [N, C, H, W] after spatial attention, connected with the previous block's map."""
        return x * self.spatial_weights(attention, x, previous)

    def spatial_weights(self, attention: SpatialAttention, x: Tensor, previous: Tensor | None) -> Tensor:
        """The weights [N, 1, H, W] of the positions, connected with the previous block's map."""
        pooled = attention.squeeze(x)
        if previous is not None:
            assert self.connect_spatial is not None, "a site with a previous one has a spatial connection"
            resized = resize(previous, (x.shape[2], x.shape[3]), self.spatial_matching)
            pooled = self.connect_spatial(pooled, attention.squeeze(resized))
        return attention.excite(pooled)

    def reading(self, feats: tuple[Tensor, ...], state: Maps | None) -> Reading:
        x, weights = feats[-1], {}
        descriptors: tuple[Tensor, ...] = ()
        previous_channel, previous_spatial = (None, None) if state is None else state
        if self.base.channel is not None:
            descriptors = tuple(self.base.channel.squeeze(x))
            weights["channel"] = self.channel_weights(self.base.channel, x, previous_channel)
            x = scale_channels(x, weights["channel"])
        if self.base.spatial is not None:
            weights["spatial"] = self.spatial_weights(self.base.spatial, x, previous_spatial)
        return Reading(weights, descriptors)

    def connections(self) -> dict[str, tuple[Tensor, Tensor]]:
        if self.first:
            return {}
        joins = {"channel": self.connect, "spatial": self.connect_spatial}
        return {name: join.scalars() for name, join in joins.items() if isinstance(join, (Printed, SpatialConnection))}


class SpatialConnection(nn.Module):
    """relu(BN(p1 G + p2 T)) of two maps [N, 2, H, W] (maximum and mean over channels): G this block's, T the previous one's.

    p1 starts at 1 and p2 at 0, as in the authors' code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p1 = nn.Parameter(torch.ones(()))
        self.p2 = nn.Parameter(torch.zeros(()))
        self.norm = MapBatchNorm(2)

    def scalars(self) -> tuple[Tensor, Tensor]:
        """p1 and p2."""
        return self.p1, self.p2

    def forward(self, own: Tensor, previous: Tensor) -> Tensor:
        return self.norm(self.p1 * own + self.p2 * previous).relu()


def resize(x: Tensor, size: tuple[int, int], pool: Literal["avg", "max"]) -> Tensor:
    """Pools [N, C, H', W'] to `size`; with an integer ratio, in windows of that size."""
    if tuple(x.shape[2:]) == size:
        return x
    return F.adaptive_avg_pool2d(x, size) if pool == "avg" else F.adaptive_max_pool2d(x, size)


def map_matcher(previous: int, channels: int, matching: Matching, reduction: float, bias: bool) -> nn.Sequential:
    """Matches maps [N, C', H, W] to [N, C, H, W]: 1x1 convolution, BN, ReLU, once or twice with C / reduction between."""
    hidden = matched_width(channels, matching, reduction)
    widths = [previous, channels] if matching == "1fc" else [previous, hidden, channels]
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Conv2d(i, o, 1, bias=bias), MapBatchNorm(o), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
