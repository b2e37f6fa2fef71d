"""Bridge attention over FcaNet's squeeze: `BA` whose descriptors are pooled by `DCT` instead of averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from attn.attention import Site
from attn.modules.ba import BA
from attn.modules.fca import DCT


class BAFca(BA):
    """sigmoid(W relu(sum_i BN(W_i dct(F_i)))): the bridge of `BA` with the frequencies of `Fca`.

    Conv outputs of a block that are larger than the refined map are first averaged to its size, so that a frequency
    means the same in each. It has as many parameters as `BA`.

    Args:
        site: the position; needs at least two convolutions.
        input_size: side of the input images in pixels, as in `Fca`.
        options: those of `BA`.

    Raises:
        ValueError: as `BA` and `Fca`.
    """

    def __init__(self, site: Site, input_size: int = 224, **options: Any) -> None:
        super().__init__(site, **options)
        size = DCT.map_size(site, input_size)
        self.dcts = nn.ModuleList(DCT(width, size) for width in self.reach.own(site.widths))

    def descriptors(self, feats: Sequence[Tensor]) -> list[Tensor]:
        return [dct(f) for dct, f in zip(self.dcts, feats, strict=True)]

    def pools(self) -> nn.ModuleList:
        return self.dcts

    def takes_moments(self) -> bool:
        return False  # a frequency cannot be computed from mean and variance
