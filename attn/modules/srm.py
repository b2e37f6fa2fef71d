"""Style-based recalibration. Lee, Kim, Nam: SRM, ICCV 2019."""

import torch
from torch import Tensor, nn

from attn.attention import Gate, Site
from attn.modules._layers import VectorBatchNorm


class SRM(Gate):
    """Weights = sigmoid(BN(w_mean mean(x) + w_std std(x))), for each channel separately (eqs. 1 to 5).

    The standard deviation is that of eq. 2, divided by H W and not by H W - 1, so it is defined for a map of one pixel. The
    two weights of each channel start at 0 as in the authors' code: all channel weights are one half until the first step.

    Args:
        site: the position; any [N, C, H, W].
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.style = nn.Parameter(torch.zeros(site.width, 2))
        self.norm = VectorBatchNorm(site.width)

    def squeeze(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x.float(), (2, 3), correction=0)
        return self.style_of(mean, variance)

    def squeeze_moments(self, mean: Tensor, variance: Tensor | None) -> Tensor:
        assert variance is not None, "the variance of the refined map is known"
        return self.style_of(mean.float(), variance)

    def style_of(self, mean: Tensor, variance: Tensor) -> Tensor:
        std = (variance + 1e-5).sqrt()
        return mean * self.style[:, 0] + std * self.style[:, 1]

    def excite(self, z: Tensor) -> Tensor:
        return self.norm(z).sigmoid()
