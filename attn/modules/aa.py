"""Attention-augmented convolution. Bello, Zoph, Vaswani, Shlens, Le, ICCV 2019."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn.attention import Attention, Site
from attn.modules._layers import dense_conv, working_stride


class AA(Attention):
    """concat(conv(x), MHA(x)): some channels come from self-attention over all pixels (eqs. 1 to 5). For `conv` slots.

    A head with query q at pixel i and key k at pixel j has the logit q_i (k_j + r^x_(jx - ix) + r^y_(jy - iy)) / sqrt(d).
    Of the C channels, d_v = value_ratio C come from the attention, both d_v and the keys' d_k = key_ratio C floored to
    a multiple of the heads; d_v has at least one and d_k at least `min_head` channels per head. Only the replaced
    convolution may have a bias. If it has a stride, the attention works on maps averaged 3x3 with this stride.

    The logits take heads (H W)^2 values per image: at stride 8, a 224-pixel image takes 20 MB in fp32. The softmax is in
    fp32.

    Args:
        site: the position, with `conv`. By default `place` fills the last three stages (2 to 4 of a ResNet).
        heads: number of heads.
        key_ratio: d_k / C.
        value_ratio: d_v / C.
        min_head: minimum d_k of a head.
        relative: whether to use relative position embeddings, 2 S - 1 per axis on S x S maps.
        input_size: side of the input images in pixels, which with the stride of the site gives S. Other images work too:
            an offset outside the table uses the nearest entry.
        downsample: stages whose attention works at half the resolution (3x3 average before, bilinear interpolation after).
            The paper does so at the largest resolution to save memory; the sizes in the tables are for networks without it.

    Raises:
        ValueError: the site has no plain dense convolution, or a setting is invalid.
    """

    def __init__(
        self,
        site: Site,
        heads: int = 8,
        key_ratio: float = 0.2,
        value_ratio: float = 0.1,
        min_head: int = 20,
        relative: bool = True,
        input_size: int = 224,
        downsample: Sequence[int] = (),
    ) -> None:
        super().__init__()
        conv = dense_conv(site, type(self).__name__)
        if heads < 1 or min_head < 1 or input_size < 1 or key_ratio < 0 or value_ratio <= 0:
            raise ValueError(
                f"AA: heads={heads}, min_head={min_head}, input_size={input_size}, key_ratio={key_ratio} and "
                f"value_ratio={value_ratio} must be positive"
            )
        width = conv.out_channels
        self.heads = heads
        self.keys = max(min_head * heads, int(key_ratio * width) // heads * heads)
        self.values = max(heads, int(value_ratio * width) // heads * heads)
        if self.values >= width:
            raise ValueError(
                f"AA: heads={heads} and value_ratio={value_ratio} leave none of {width} channels to the convolution"
            )
        self.stride = conv.stride[0]
        self.halve = site.stage in downsample
        self.conv = nn.Conv2d(
            conv.in_channels,
            width - self.values,
            kernel_size=(conv.kernel_size[0], conv.kernel_size[1]),
            stride=(conv.stride[0], conv.stride[1]),
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=(conv.dilation[0], conv.dilation[1]),
            bias=conv.bias is not None,
        )
        self.qkv = nn.Conv2d(conv.in_channels, 2 * self.keys + self.values, 1, bias=False)
        self.out = nn.Conv2d(self.values, self.values, 1, bias=False)
        for layer in (self.conv, self.qkv, self.out):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        # One row per offset, from -(S - 1) to S - 1.
        self.extent = -(-input_size // working_stride(site, downsample))
        offsets, head = 2 * self.extent - 1, self.keys // heads
        self.rows = nn.Parameter(torch.randn(offsets, head) * head**-0.5) if relative else None
        self.columns = nn.Parameter(torch.randn(offsets, head) * head**-0.5) if relative else None

    def refine(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x)
        return self.augment(x, self.logits(q, k), v)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [N, heads, d, H', W'] on the maps that the attention works on."""
        if self.stride > 1:
            x = F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)
        if self.halve:
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        q, k, v = self.qkv(x).split([self.keys, self.keys, self.values], 1)
        q = q * (self.keys // self.heads) ** -0.5
        return q.unflatten(1, (self.heads, -1)), k.unflatten(1, (self.heads, -1)), v.unflatten(1, (self.heads, -1))

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Queries and keys, both [N, heads, d, H', W'], to logits [N, heads, H' W' (queries), H' W' (keys)]."""
        height, width = q.shape[3:]
        logits = q.flatten(3).transpose(2, 3) @ k.flatten(3)
        if self.rows is None or self.columns is None:
            return logits
        by_row = torch.einsum("nhdyx,ykd->nhyxk", q, self.rows[self.offsets(height, q.device)])
        by_column = torch.einsum("nhdyx,xkd->nhyxk", q, self.columns[self.offsets(width, q.device)])
        relative = by_row[..., :, None] + by_column[..., None, :]
        return logits + relative.flatten(4).flatten(2, 3)

    def offsets(self, length: int, device: torch.device) -> Tensor:
        """Entry of the embedding table for a query (row) and a key (column) on an axis of `length` pixels."""
        position = torch.arange(length, device=device)
        return (position - position[:, None]).clamp(1 - self.extent, self.extent - 1) + self.extent - 1

    def augment(self, x: Tensor, logits: Tensor, v: Tensor) -> Tensor:
        """Joins the convolution of x and the values, averaged by softmax(logits): [N, C, H / stride, W / stride]."""
        y = self.conv(x)
        weights = logits.softmax(-1, dtype=torch.float32).to(v.dtype)
        attended = v.flatten(3) @ weights.transpose(2, 3)  # [N, heads, d, H' W']
        attended = self.out(attended.flatten(1, 2).unflatten(2, v.shape[3:]))
        if self.halve:
            attended = F.interpolate(attended, size=y.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat((y, attended.to(y.dtype)), 1)

    @classmethod
    def default_stages(cls, present: Sequence[int]) -> Sequence[int]:
        return present[-3:]
