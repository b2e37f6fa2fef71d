"""Style-based recalibration. Lee, Kim, Nam: SRM, ICCV 2019."""

import torch
from torch import Tensor, nn

from attn.attention import Gate, Site
from attn.modules._layers import VectorBatchNorm


class SRM(Gate):
    """Weights = sigmoid(BN(w_mean mean(x) + w_std std(x))), every channel by itself (eqs. 1 to 5).

    The standard deviation is that of eq. 2, over H W and not H W - 1 pixels, so that a map of one pixel has one. The two
    weights of each channel start at 0 as the authors' do: all channels weigh a half until the first step.

    Args:
        site: the place; any [N, C, H, W].
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.style = nn.Parameter(torch.zeros(site.width, 2))
        self.norm = VectorBatchNorm(site.width)

    def squeeze(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x.float(), (2, 3), correction=0)
        return self.style_of(mean, variance)

    def squeeze_moments(self, mean: Tensor, variance: Tensor | None) -> Tensor:
        assert variance is not None, "that of the refined map is known"
        return self.style_of(mean.float(), variance)

    def style_of(self, mean: Tensor, variance: Tensor) -> Tensor:
        std = (variance + 1e-5).sqrt()
        return mean * self.style[:, 0] + std * self.style[:, 1]

    def excite(self, z: Tensor) -> Tensor:
        return self.norm(z).sigmoid()
