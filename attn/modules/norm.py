"""Normalisation of pooled descriptors and of small maps, which may have a single value per channel."""

import torch.nn.functional as F
from torch import Tensor, nn


class VectorBatchNorm(nn.BatchNorm1d):
    """BatchNorm over descriptors [N, C] that also trains at one image per device.

    A batch of one has no variance: `nn.BatchNorm1d` raises. Here such a batch is normalised by the running statistics, which
    it leaves as they are. With two images or more it is `nn.BatchNorm1d`, names included.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class MapBatchNorm(nn.BatchNorm2d):
    """BatchNorm over maps [N, C, H, W] that also trains where every channel has a single value (N = H = W = 1).

    Such a batch is normalised by the running statistics, as in `VectorBatchNorm`. Otherwise it is `nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)
