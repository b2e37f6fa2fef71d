"""Stand-alone self-attention. Ramachandran, Parmar, Vaswani, Bello, Levskaya, Shlens, NeurIPS 2019."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn.attention import Attention, Site
from attn.modules._layers import dense_conv


class SASA(Attention):
    """Local self-attention in place of a convolution (eqs. 2 and 3). For `conv` slots.

    Pixel i attends to the k x k window around it: y_i = sum_j softmax_j(q_i (k_j + r_(j - i))) v_j, in each head. Half of a
    head's channels embed the row offset and half the column offset; heads share the embeddings. As in a convolution, pixels
    outside the border are zeros, and are included in the softmax. The window keeps the dilation of the convolution;
    a stride becomes a 2x2 (in general s x s) average pooling after the attention.

    Keys and values temporarily need k^2 times the memory of the map. The softmax is in fp32.

    Args:
        site: the position, with `conv`.
        kernel_size: k, odd.
        heads: number of heads; C must be a multiple of twice their number.

    Raises:
        ValueError: the site has no plain dense convolution, or a setting is invalid.
    """

    def __init__(self, site: Site, kernel_size: int = 7, heads: int = 8) -> None:
        super().__init__()
        conv = dense_conv(site, "SASA")
        width = conv.out_channels
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"SASA: kernel_size={kernel_size} must be odd and positive")
        if heads < 1 or width % (2 * heads):
            raise ValueError(f"SASA: heads={heads} times 2 (row and column) does not divide the {width} channels")
        self.heads, self.kernel_size = heads, kernel_size
        self.stride, self.dilation = conv.stride[0], conv.dilation[0]
        self.qkv = nn.Conv2d(conv.in_channels, 3 * width, 1, bias=False)
        nn.init.kaiming_normal_(self.qkv.weight, mode="fan_out", nonlinearity="relu")
        half = width // heads // 2
        self.rows = nn.Parameter(torch.randn(half, kernel_size))
        self.columns = nn.Parameter(torch.randn(half, kernel_size))

    def windows(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the windows of all pixels, [N, heads, C / heads, k^2, H W]."""
        padding = self.dilation * (self.kernel_size // 2)
        x = F.unfold(x, self.kernel_size, self.dilation, padding)
        return x.unflatten(1, (self.heads, -1, self.kernel_size**2))

    def refine(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, 1)
        height, width = q.shape[2:]
        q = q.unflatten(1, (self.heads, -1)).flatten(3)  # [N, heads, d, H W]
        size = self.kernel_size
        embedding = torch.cat((self.rows[:, :, None].expand(-1, -1, size), self.columns[:, None, :].expand(-1, size, -1)))
        keys = self.windows(k) + embedding.reshape(1, 1, -1, size**2, 1).to(k.dtype)
        logits = torch.einsum("nhdp,nhdkp->nhkp", q, keys)
        weights = logits.softmax(2, dtype=torch.float32).to(v.dtype)
        y = torch.einsum("nhkp,nhdkp->nhdp", weights, self.windows(v))
        y = y.flatten(1, 2).unflatten(2, (height, width))
        return y if self.stride == 1 else F.avg_pool2d(y, self.stride, self.stride, ceil_mode=True)
