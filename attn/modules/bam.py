"""Bottleneck attention. Park, Woo, Lee, Kweon: BAM, BMVC 2018."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from attn.attention import Attention, Reading, Site, hidden_width
from attn.modules._layers import MapBatchNorm, VectorBatchNorm


class BAM(Attention):
    """y = x + x sigmoid(Mc(x) + Ms(x)) with a channel and a spatial branch, broadcast to the same shape (eqs. 1 to 4).

    Mc: global average, two layers with C / r between them. Ms: 1x1 convolution to C / r channels, two dilated 3x3, 1x1 to
    one map. Eqs. 2 and 3 print one batch norm at the end of each branch; the authors' code, whose sizes the tables have,
    puts them on the hidden layers, as is done here.

    Args:
        site: the position; meant for the `stage` slot. By default `place` fills every stage except the last.
        reduction: r.
        dilation: of the two 3x3 convolutions.
        combine: `sum`, or `product` of the branches, as in the authors' code.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(
        self, site: Site, reduction: float = 16, dilation: int = 4, combine: Literal["sum", "product"] = "sum"
    ) -> None:
        super().__init__()
        if dilation < 1:
            raise ValueError(f"BAM: dilation={dilation} must be 1 or more")
        hidden = hidden_width(site.width, reduction, "BAM")
        self.product = combine == "product"
        self.channel = nn.Sequential(
            *(nn.Linear(site.width, hidden), VectorBatchNorm(hidden), nn.ReLU(inplace=True)),
            nn.Linear(hidden, site.width),
        )
        self.spatial = nn.Sequential(
            *(nn.Conv2d(site.width, hidden, 1), MapBatchNorm(hidden), nn.ReLU(inplace=True)),
            *dilated(hidden, dilation),
            *dilated(hidden, dilation),
            nn.Conv2d(hidden, 1, 1),
        )

    def refine(self, x: Tensor) -> Tensor:
        return x + x * self.weights(x)

    def weights(self, x: Tensor) -> Tensor:
        """The weights of all values, in the shape of x, [N, C, H, W]."""
        channel, spatial = self.channel(x.mean((2, 3)))[:, :, None, None], self.spatial(x)
        joined = channel * spatial if self.product else channel + spatial
        return joined.sigmoid()

    def reading(self, feats: tuple[Tensor, ...], state: Any) -> Reading:
        return Reading({"joint": self.weights(feats[-1])}, (feats[-1].mean((2, 3)),))

    @classmethod
    def default_stages(cls, present: Sequence[int]) -> Sequence[int]:
        return present[:-1] or present


def dilated(width: int, dilation: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
    return conv, MapBatchNorm(width), nn.ReLU(inplace=True)
