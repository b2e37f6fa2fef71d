"""AW-convolution. An Attention Module for Convolutional Neural Networks, ICANN 2021, arXiv 2108.08205.

O = Conv(I, K + A * K): the filters themselves are weighed, by an attention map A that is computed from each sample.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn.attention import Attention, Site, hidden_width
from attn.modules.norm import MapBatchNorm

Form = Literal["auto", "grouped", "taps", "scale"]


class AWConv2d(nn.Conv2d):
    """A convolution whose filters K [C2, C1, h, w] are weighed per sample by K + A * K (F2) or A * K, A in (0, 1).

    A [N, C2, C1, h, w] is repeated from the smaller [N, C2 / r_c2, C1 / r_c1, h / r_hw, w / r_hw], which F1 gives: average
    pooling to h / r_hw by w / r_hw, 1x1 convolution to C2 / reduction channels, norm, ReLU, 1x1 convolution, norm, sigmoid.
    A bias is not weighed. With groups, C1 is the number of input channels of one filter.

    It takes the place of an `nn.Conv2d` and keeps its parameters, under the same names. Note that K + A * K starts about 1.5
    times as strong as K; a norm that follows absorbs it, and where none does (an FPN) the activations grow by as much.

    The same result has several forms:

    - `grouped`: one convolution with N * groups groups; N * C2 * C1 * h * w weights in memory.
    - `taps`: the sum over the h * w taps of a 1x1 convolution of the shifted input, scaled by A's tap; N * C2 * H * W values
      per tap. A must not depend on C1 (`r_c1` None).
    - `scale`: the plain convolution, its output channels scaled. A must be one value per filter: a 1x1 kernel, or `r_hw` its
      side, and `r_c1` None.
    - `auto`: `scale` where possible, else whichever of the other two holds less in memory.

    In training, one image whose pooled map is a single pixel (1x1 kernels) is normalised by the running statistics. Two
    give the batch norm only the values -1 and 1: with so few per device convert to SyncBN.

    Args:
        conv: the convolution to take the place of; its parameters are shared, not copied.
        reduction: r; C2 divided by the hidden width of F1. The paper does not say whether C1 or C2 is; C2 gives its printed size
            of MobileNet, and elsewhere they are equal.
        r_c1: C1 over the depth of A; None for C1 itself, a map that does not depend on the input channel (the paper's choice).
        r_c2: C2 over the filters of A; neighbours share.
        r_hw: the kernel's sides over those of A.
        residual: K + A * K (F2); False for A * K.
        form: how to compute it.

    Raises:
        ValueError: the convolution is no plain zero-padded `nn.Conv2d`, a ratio does not divide, or the form does not exist.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        reduction: float = 16,
        r_c1: int | None = None,
        r_c2: int = 1,
        r_hw: int = 1,
        residual: bool = True,
        form: Form = "auto",
    ) -> None:
        if type(conv).forward is not nn.Conv2d.forward or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"AW: {type(conv).__name__} (padding_mode={conv.padding_mode}, padding={conv.padding}) cannot be replaced; "
                "only an nn.Conv2d with zero padding of a given number of pixels can"
            )
        super().__init__(**conv_settings(conv), device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.residual = residual
        self.r_c2, self.r_hw = r_c2, r_hw
        c2, c1, height, width = self.weight.shape
        self.r_c1 = c1 if r_c1 is None else r_c1
        self.map_shape = (
            _divide(c2, r_c2, "r_c2"),
            _divide(c1, self.r_c1, "r_c1"),
            _divide(height, r_hw, "r_hw"),
            _divide(width, r_hw, "r_hw"),
        )
        self.forms = _forms(self.map_shape)
        if form not in ("auto", *self.forms):
            raise ValueError(
                f"AW: form={form!r} does not exist for an attention map of shape {self.map_shape} (C2, C1, h, w); "
                f"choose from auto, {', '.join(self.forms)}"
            )
        self.form = form
        hidden = hidden_width(c2, reduction, "AW")
        self.squeeze = nn.Sequential(
            nn.Conv2d(self.in_channels, hidden, 1, bias=False), MapBatchNorm(hidden), nn.ReLU(inplace=True)
        )
        maps = self.map_shape[0] * self.map_shape[1]
        self.excite = nn.Sequential(nn.Conv2d(hidden, maps, 1, bias=False), MapBatchNorm(maps), nn.Sigmoid())

    def filter_scale(self, x: Tensor) -> Tensor:
        """1 + A (or A), [N, C1, H, W] to [N, C2, C1 or 1, h or 1, w or 1]: what K is multiplied by."""
        a = self.excite(self.squeeze(bin_average(x, self.map_shape[2:])))
        a = a.reshape(x.shape[0], *self.map_shape).repeat_interleave(self.r_c2, 1)
        # An axis of length one is left to broadcasting.
        for axis, ratio in ((2, self.r_c1), (3, self.r_hw), (4, self.r_hw)):
            if a.shape[axis] > 1:
                a = a.repeat_interleave(ratio, axis)
        return 1 + a if self.residual else a

    def forward(self, x: Tensor) -> Tensor:
        scale = self.filter_scale(x)
        form = self.form if self.form != "auto" else self.cheapest_form(x)
        if form == "scale":
            y = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
            return self.add_bias(y * scale[:, :, :, 0, 0, None])
        return self.by_taps(x, scale) if form == "taps" else self.by_groups(x, scale)

    def cheapest_form(self, x: Tensor) -> str:
        """The last of `forms`, but between `taps` and `grouped` the one with less memory: C1 against H * W of the output."""
        height, width = self.output_size(x)
        if self.forms[-1] == "taps" and height * width >= self.weight.shape[1]:
            return "grouped"
        return self.forms[-1]

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (size + 2 * int(self.padding[i]) - self.dilation[i] * (self.kernel_size[i] - 1) - 1) // self.stride[i] + 1
            for i, size in enumerate(x.shape[2:])
        )
        return height, width

    def by_groups(self, x: Tensor, scale: Tensor) -> Tensor:
        """The definition: each sample is convolved with filters of its own."""
        n, c, height, width = x.shape
        filters = (self.weight * scale).flatten(0, 1)
        y = F.conv2d(
            x.reshape(1, n * c, height, width), filters, None, self.stride, self.padding, self.dilation, n * self.groups
        )
        return self.add_bias(y.reshape(n, self.out_channels, *y.shape[2:]))

    def by_taps(self, x: Tensor, scale: Tensor) -> Tensor:
        """Sum over the taps t of scale_t * conv1x1(x shifted by t, K_t)."""
        rows, columns = self.kernel_size
        scale = scale[:, :, 0].expand(-1, -1, rows, columns)
        height, width = self.output_size(x)
        above, left = (int(p) for p in self.padding)
        x = F.pad(x, (left, left, above, above))
        total: Tensor | None = None
        for i in range(rows):
            for j in range(columns):
                top, start = i * self.dilation[0], j * self.dilation[1]
                bottom, end = top + (height - 1) * self.stride[0] + 1, start + (width - 1) * self.stride[1] + 1
                shifted = x[:, :, top : bottom : self.stride[0], start : end : self.stride[1]]
                y = F.conv2d(shifted, self.weight[:, :, i : i + 1, j : j + 1], groups=self.groups)
                factor = scale[:, :, i, j, None, None].to(y.dtype)
                total = y * factor if total is None else torch.addcmul(total, y, factor)
        assert total is not None, "a kernel has at least one tap"
        return self.add_bias(total)

    def add_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]


class AW(AWConv2d, Attention):
    """`AWConv2d` in a `conv` slot. The options are its own.

    Raises:
        ValueError: the site has no convolution, or as `AWConv2d`.
    """

    def __init__(
        self,
        site: Site,
        reduction: float = 16,
        r_c1: int | None = None,
        r_c2: int = 1,
        r_hw: int = 1,
        residual: bool = True,
        form: Form = "auto",
    ) -> None:
        if site.conv is None:
            raise ValueError("AW replaces a convolution: use it in the conv slot")
        super().__init__(site.conv, reduction, r_c1, r_c2, r_hw, residual, form)

    def refine(self, x: Tensor) -> Tensor:
        return AWConv2d.forward(self, x)

    def forward(  # type: ignore[override]
        self, feats: tuple[Tensor, ...], state: None
    ) -> tuple[Tensor, None]:
        return self.refine(feats[-1]), state


def conv_settings(conv: nn.Conv2d) -> dict[str, Any]:
    """Arguments of `nn.Conv2d` that make a convolution like this one."""
    keys = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {key: getattr(conv, key) for key in keys} | {"bias": conv.bias is not None}


def bin_average(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of [N, C, H, W] to [N, C, *size]."""
    if size == (1, 1):
        return x.mean((2, 3), keepdim=True)
    if not torch.are_deterministic_algorithms_enabled():
        return F.adaptive_avg_pool2d(x, size)
    # The adaptive pooling of CUDA has no deterministic gradient; slices do.
    for axis, bins in zip((2, 3), size, strict=True):
        length = x.shape[axis]
        edges = [(i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)]
        x = torch.stack([x.narrow(axis, start, end - start).mean(axis) for start, end in edges], axis)
    return x


def _divide(size: int, ratio: int, name: str) -> int:
    if ratio < 1 or size % ratio:
        raise ValueError(f"AW: {name}={ratio} does not divide the {size} that it reduces; choose a divisor of {size}")
    return size // ratio


def _forms(map_shape: tuple[int, int, int, int]) -> tuple[str, ...]:
    """The forms that an attention map of this shape allows, the most special last."""
    _, c1, height, width = map_shape
    if c1 > 1:
        return ("grouped",)
    return ("grouped", "taps", "scale") if height * width == 1 else ("grouped", "taps")
