"""CBAM. Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from attn.attention import Attention, Reading, Site, hidden_width
from attn.modules._layers import MapBatchNorm, scale_channels

Pool = Literal["avg", "max", "avg+max"]
POOLS: dict[str, tuple[str, ...]] = {"avg": ("avg",), "max": ("max",), "avg+max": ("avg", "max")}


class ChannelAttention(nn.Module):
    """Weights [N, C] = sigmoid(MLP(avg pool) + MLP(max pool)) (eq. 2).

    Args:
        channels: C.
        reduction: C divided by the width between the MLP's two layers.
        bias: whether both layers have a bias.
        pool: the poolings.
        shared: one MLP for both pools (the paper), or one each.

    Raises:
        ValueError: two MLPs for a single pool, or `reduction` leaves no channel.
    """

    def __init__(self, channels: int, reduction: float, bias: bool, pool: Pool, shared: bool) -> None:
        super().__init__()
        if not shared and pool != "avg+max":
            raise ValueError(f"CBAM: shared=False with pool={pool!r}: separate MLPs need pool='avg+max'")
        hidden = hidden_width(channels, reduction, "CBAM")
        self.pools = POOLS[pool]
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(channels, hidden, bias=bias), nn.ReLU(inplace=True), nn.Linear(hidden, channels, bias=bias)
            )
            for _ in range(1 if shared else 2)
        )

    def squeeze(self, x: Tensor) -> list[Tensor]:
        """Pools [N, C, H, W] to one [N, C] per pool."""
        return [x.mean((2, 3)) if pool == "avg" else x.amax((2, 3)) for pool in self.pools]

    def excite(self, pooled: list[Tensor]) -> Tensor:
        """Maps the pooled descriptors to weights [N, C]."""
        total = self.mlps[0](pooled[0])
        if len(pooled) == 2:
            total = total + self.mlps[-1](pooled[1])
        return total.sigmoid()


class SpatialAttention(nn.Module):
    """Weights [N, 1, H, W] = sigmoid(BN(conv([max over channels, mean over channels]))): eq. 3; BN as in the authors' code.

    Args:
        kernel_size: of the convolution, odd.
        zero_init: start with the BN's weight at 0, i.e. with weights of one half, as the CBAM authors' code does.

    Raises:
        ValueError: the kernel size is even or not positive.
    """

    def __init__(self, kernel_size: int, zero_init: bool) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"CBAM: kernel_size={kernel_size} must be odd and positive")
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = MapBatchNorm(1, momentum=0.01)
        if zero_init:
            nn.init.zeros_(self.norm.weight)

    def squeeze(self, x: Tensor) -> Tensor:
        """Pools [N, C, H, W] over the channels to [N, 2, H, W]: maximum, mean."""
        return torch.stack((x.amax(1), x.mean(1)), 1)

    def excite(self, pooled: Tensor) -> Tensor:
        """Maps [N, 2, H, W] to weights [N, 1, H, W]."""
        return self.norm(self.conv(pooled)).sigmoid()


class CBAM(Attention):
    """Channel attention, then spatial attention (eq. 1).

    Args:
        site: the position; any [N, C, H, W].
        reduction: C divided by the width between the MLP's two layers.
        bias: whether the MLP's layers have a bias.
        pool: what the channel attention pools: avg, max, or avg+max.
        channel: whether there is channel attention.
        spatial: whether there is spatial attention.
        shared: one MLP for both pools, or one each (the CIFAR rows of BA2M's tables).
        kernel_size: of the spatial attention.
        zero_init: as in `SpatialAttention`.

    The AW paper's "(MaxPool)" is `spatial=False`; its "(Spatial)" is `pool="avg"`.

    Raises:
        ValueError: both attentions are switched off, or a setting is invalid.
    """

    def __init__(
        self,
        site: Site,
        reduction: float = 16,
        bias: bool = True,
        pool: Pool = "avg+max",
        channel: bool = True,
        spatial: bool = True,
        shared: bool = True,
        kernel_size: int = 7,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if not (channel or spatial):
            raise ValueError("CBAM: channel=False and spatial=False leave nothing; set one of them to true")
        self.channel = ChannelAttention(site.width, reduction, bias, pool, shared) if channel else None
        self.spatial = SpatialAttention(kernel_size, zero_init) if spatial else None

    def refine(self, x: Tensor) -> Tensor:
        if self.channel is not None:
            x = scale_channels(x, self.channel.excite(self.channel.squeeze(x)))
        if self.spatial is not None:
            x = x * self.spatial.excite(self.spatial.squeeze(x))
        return x

    def reading(self, feats: tuple[Tensor, ...], state: Any) -> Reading:
        x, weights = feats[-1], {}
        descriptors: tuple[Tensor, ...] = ()
        if self.channel is not None:
            pooled = self.channel.squeeze(x)
            weights["channel"], descriptors = self.channel.excite(pooled), tuple(pooled)
            x = scale_channels(x, weights["channel"])
        if self.spatial is not None:
            weights["spatial"] = self.spatial.excite(self.spatial.squeeze(x))
        return Reading(weights, descriptors)
