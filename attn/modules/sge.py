"""Spatial group-wise enhance. Li, Hu, Yang: SGE, 2019, arXiv 1905.09646."""

from typing import Any

import torch
from torch import Tensor, nn

from attn.attention import Attention, Reading, Site


class SGE(Attention):
    """In each group of channels, every pixel is weighted by its similarity to the group's average (eqs. 1 to 6).

    c = <x, gap(x)> over the group's channels; weights = sigmoid(weight (c - mean c) / (std c + 1e-5) + bias), with one
    weight and one bias per group, starting at 0 and 1.

    Args:
        site: the position; any [N, C, H, W].
        groups: number of groups; must divide C.
        unbiased: std divided by the number of pixels minus one, as in the authors' code; eq. 4 divides by the number of
            pixels.

    Raises:
        ValueError: `groups` does not divide C.
    """

    def __init__(self, site: Site, groups: int = 64, unbiased: bool = False) -> None:
        super().__init__()
        if groups < 1 or site.width % groups:
            raise ValueError(
                f"SGE: groups={groups} does not divide the {site.width} channels; choose a divisor of every width"
            )
        self.groups = groups
        self.unbiased = unbiased
        self.weight = nn.Parameter(torch.zeros(groups, 1, 1))
        self.bias = nn.Parameter(torch.ones(groups, 1, 1))

    def refine(self, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (self.groups, -1))  # [N, G, C / G, H, W]
        return (groups * self.weights(groups)[:, :, None].to(x.dtype)).flatten(1, 2)

    def weights(self, groups: Tensor) -> Tensor:
        """The weights [N, G, H, W] of the positions in each group, from the map [N, G, C / G, H, W]."""
        likeness = (groups * groups.mean((3, 4), keepdim=True)).sum(2).float()
        centred = likeness - likeness.mean((2, 3), keepdim=True)
        correction = 1 if self.unbiased and groups.shape[3] * groups.shape[4] > 1 else 0
        normalised = centred / (centred.std((2, 3), correction=correction, keepdim=True) + 1e-5)
        return (normalised * self.weight + self.bias).sigmoid()

    def reading(self, feats: tuple[Tensor, ...], state: Any) -> Reading:
        return Reading({"spatial": self.weights(feats[-1].unflatten(1, (self.groups, -1)))})
