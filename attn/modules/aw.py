"""AW-convolution. An Attention Module for Convolutional Neural Networks, ICANN 2021, arXiv 2108.08205.

O = Conv(I, K + A * K): an attention map A, computed from each sample, weights the filters themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn.attention import Attention, Reading, Site, hidden_width, select
from attn.kernels import scaled_conv, scaled_conv_cpu
from attn.kernels.scaled_conv_reference import per_sample
from attn.modules._layers import MapBatchNorm, bin_average, conv_settings

Form = Literal["auto", "grouped", "taps", "scale"]
Ratio = int | str | None
Ratios = Ratio | Sequence[Ratio]


class AWConv2d(nn.Conv2d):
    """A convolution whose filters K [C2, C1, h, w] are weighted per sample: K + A * K (F2) or A * K, A in (0, 1).

    A [N, C2, C1, h, w] is repeated (Expand, eq. 2) from the smaller [N, C2 / r_c2, C1 / r_c1, h / r_hw, w / r_hw], which F1
    gives: average pooling to h / r_hw by w / r_hw, 1x1 convolution to C2 / reduction channels, norm, ReLU, 1x1 convolution,
    norm, sigmoid. A bias is not weighted. With groups, C1 is the number of input channels of one filter.

    The paper says that Expand may also go along N, C2, h and w. C2, h and w are supported here. N, one map for the batch, is
    not: an image's prediction would depend on the others in its batch. Avoiding that at inference (by a running mean of A)
    gives a constant that K can learn by itself, so no attention would remain.

    It replaces an `nn.Conv2d` and keeps its parameters, under the same names. Note that K + A * K starts about 1.5
    times as large as K; a norm after it removes this factor, and without a norm (an FPN) the activations grow by it.

    The same result can be computed in several forms:

    - `grouped`: one convolution with N * groups groups; N * C2 * C1 * h * w weights in memory.
    - `taps`: the sum over the h * w taps of a 1x1 convolution of the shifted input, scaled by A's tap; N * C2 * H * W values
      per tap. A must not depend on C1 (`r_c1` None).
    - `scale`: the plain convolution, its output channels scaled. A must be one value per filter: a 1x1 kernel, or `r_hw` its
      side, and `r_c1` None.
    - `auto`: `scale` where possible, else the one of the other two that needs less memory. With `kernels=fused` one operator
      takes the place of these two if A does not depend on C1: see `runs_fused`.

    `fused_on`: types of the devices on which that operator is used, see `attn.kernels`.

    In training, one image whose pooled map is a single pixel (1x1 kernels) is normalised by the running statistics. Two
    give the batch norm only the values -1 and 1: with so few images per device, convert to SyncBN.

    Args:
        conv: the convolution to replace; its parameters are shared, not copied.
        reduction: r; C2 divided by the hidden width of F1. The paper does not say whether it divides C1 or C2; C2 gives its
            printed size of MobileNet, and elsewhere they are equal.
        r_c1: C1 over the depth of A; None or `all` for C1 itself, a map that does not depend on the input channel (the
            paper's choice).
        r_c2: C2 over the filters of A; neighbours share. `all` for C2 itself: one value for all filters.
        r_hw: the kernel's sides over those of A. `all` for the sides themselves.
        residual: K + A * K (F2); False for A * K.
        form: how to compute it.

    Raises:
        ValueError: the convolution is not a plain zero-padded `nn.Conv2d`, a ratio does not divide, or the form does not
            exist.
    """

    fused_on: tuple[str, ...] = ()

    def __init__(
        self,
        conv: nn.Conv2d,
        reduction: float = 16,
        r_c1: Ratio = None,
        r_c2: Ratio = 1,
        r_hw: Ratio = 1,
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
        # Ratios of C2, C1, h and w.
        self.ratios = tuple(
            _ratio(size, ratio, name)
            for size, ratio, name in zip(
                self.weight.shape, (r_c2, r_c1, r_hw, r_hw), ("r_c2", "r_c1", "r_hw", "r_hw"), strict=True
            )
        )
        c2, *rest = (size // ratio for size, ratio in zip(self.weight.shape, self.ratios, strict=True))
        self.map_shape = (c2, rest[0], rest[1], rest[2])
        self.forms = _forms(self.map_shape)
        if form not in ("auto", *self.forms):
            raise ValueError(
                f"AW: form={form!r} does not exist for an attention map of shape {self.map_shape} (C2, C1, h, w); "
                f"choose from auto, {', '.join(self.forms)}"
            )
        self.form = form
        hidden = hidden_width(self.out_channels, reduction, "AW")
        self.squeeze = nn.Sequential(
            nn.Conv2d(self.in_channels, hidden, 1, bias=False), MapBatchNorm(hidden), nn.ReLU(inplace=True)
        )
        maps = self.map_shape[0] * self.map_shape[1]
        self.excite = nn.Sequential(nn.Conv2d(hidden, maps, 1, bias=False), MapBatchNorm(maps), nn.Sigmoid())

    def filter_scale(self, x: Tensor) -> Tensor:
        """1 + A (or A), [N, C1, H, W] to [N, C2, C1 or 1, h or 1, w or 1]: what K is multiplied by."""
        a = self.excite(self.squeeze(bin_average(x, self.map_shape[2:])))
        a = a.reshape(x.shape[0], *self.map_shape)
        # An axis of length one is broadcast, except that of C2, which must have its full length.
        for axis, ratio in enumerate(self.ratios, start=1):
            if axis == 1 or a.shape[axis] > 1:
                a = a.repeat_interleave(ratio, axis)
        return 1 + a if self.residual else a

    def runs_fused(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether `attn.kernels.scaled_conv` computes it: `form=auto`, several taps, and 16 channels a group or a multiple of it."""
        able = (
            self.form == "auto"
            and self.forms[-1] == "taps"
            and scaled_conv.has_form(device, dtype, self.weight, self.groups)
        )
        return able and device.type in self.fused_on

    def forward(self, x: Tensor) -> Tensor:
        scale = self.filter_scale(x)
        dtype = mixed_dtype(x) if x.device.type in self.fused_on else x.dtype
        if self.runs_fused(x.device, dtype) and self.gains(x, dtype):
            taps = scale[:, :, 0].expand(-1, -1, *self.kernel_size)
            return self.add_bias(scaled_conv.convolve(x.to(dtype), self.weight.to(dtype), taps, *self.settings()))
        form = self.form if self.form != "auto" else self.cheapest_form(x)
        if form == "grouped" and "taps" in self.forms and not isinstance(x.shape[0], int):
            form = "taps"  # torch.export for any batch: a number of groups is a constant there
        if form == "scale":
            y = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
            return self.add_bias(y * scale[:, :, :, 0, 0, None])
        return self.by_taps(x, scale) if form == "taps" else self.by_groups(x, scale)

    def gains(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Whether the fused form is at least as quick as `grouped`, as measured on the CPU.

        In channels_last it is, but for a single image: its filters are one set, and a plain convolution. In another layout, and
        in bfloat16 where the CPU multiplies none, maps are converted, which costs more than many filters for few pixels do.
        """
        if x.device.type != "cpu":
            return True
        height, width = self.output_size(x)
        several = not isinstance(x.shape[0], int) or x.shape[0] > 1  # torch.export for any batch: not an integer
        at_home = scaled_conv_cpu.multiplied(dtype) == dtype and x.is_contiguous(memory_format=torch.channels_last)
        return (several and at_home) or height * width <= 2 * self.weight.shape[1]

    def settings(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        """Stride, padding, dilation and groups."""
        return self.stride, tuple(int(p) for p in self.padding), self.dilation, self.groups

    def cheapest_form(self, x: Tensor) -> str:
        """The last of `forms`; of `taps` and `grouped` the one that needs less memory (C1 or output H * W)."""
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
        """The definition: each sample is convolved with its own filters."""
        return self.add_bias(per_sample(x, self.weight * scale, *self.settings()))

    def by_taps(self, x: Tensor, scale: Tensor) -> Tensor:
        """Sum over the taps t of scale_t * conv1x1(x shifted by t, K_t)."""
        rows, columns = self.kernel_size
        scale = scale[:, :, 0].expand(-1, -1, rows, columns)
        height, width = self.output_size(x)
        above, left = self.settings()[1]
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


def mixed_dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast has a convolution computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class AW(AWConv2d, Attention):
    """`AWConv2d` in a `conv` slot. It has the same options; `place` adds more.

    Raises:
        ValueError: the site has no convolution, or as `AWConv2d`.
    """

    @classmethod
    def place(
        cls,
        sites: Sequence[Site],
        *,
        stages: Sequence[int] | None = None,
        every: int = 1,
        first: int = 1,
        r_c1: Ratios = None,
        r_c2: Ratios = 1,
        r_hw: Ratios = 1,
        **options: Any,
    ) -> list[Attention | None]:
        """As `Attention.place`, with the sites that `plan` chooses.

        Raises:
            ValueError: as `plan`, or the constructor rejects a site.
        """
        planned = plan(sites, stages, every, first, r_c1, r_c2, r_hw)
        return [None if p is None else cls(s, **p, **options) for s, p in zip(sites, planned, strict=True)]

    def __init__(
        self,
        site: Site,
        reduction: float = 16,
        r_c1: Ratio = None,
        r_c2: Ratio = 1,
        r_hw: Ratio = 1,
        residual: bool = True,
        form: Form = "auto",
    ) -> None:
        if site.conv is None:
            raise ValueError("AW replaces a convolution: use it in the conv slot")
        super().__init__(site.conv, reduction, r_c1, r_c2, r_hw, residual, form)

    def refine(self, x: Tensor) -> Tensor:
        return AWConv2d.forward(self, x)

    def reading(self, feats: tuple[Tensor, ...], state: None) -> Reading:
        scale = self.filter_scale(feats[-1])
        return Reading({"filter": scale - 1 if self.residual else scale})

    def forward(  # type: ignore[override]
        self, feats: tuple[Tensor, ...], state: None
    ) -> tuple[Tensor, None]:
        return self.refine(feats[-1]), state


def _ratio(size: int, ratio: Ratio, name: str) -> int:
    """A ratio as an integer.

    Raises:
        ValueError: it is not a positive integer, or does not divide the size.
    """
    if ratio is None or ratio == "all":
        return size
    if isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 1 or size % ratio:
        raise ValueError(f"AW: {name}={ratio} does not divide the {size} that it reduces; choose all or a divisor of {size}")
    return ratio


def plan(
    sites: Sequence[Site],
    stages: Sequence[int] | None = None,
    every: int = 1,
    first: int = 1,
    r_c1: Ratios = None,
    r_c2: Ratios = 1,
    r_hw: Ratios = 1,
) -> list[dict[str, Any] | None]:
    """The ratios of each convolution that is replaced; None for one that is not.

    Args:
        sites: the convolutions.
        stages: numbers of the stages to fill, from 1; all by default.
        every: fill each `every`-th block of the network, from block number `first` (from 1). Every second depthwise
            separable convolution is `every=2`; with `first=2` it is the second of each pair.
        r_c1, r_c2, r_hw: as of `AWConv2d`, or a list of these: one for each stage in which convolutions are replaced, or one
            for each of these convolutions.

    Raises:
        ValueError: a stage or block does not exist, or a list has the wrong length.
    """
    if every < 1 or first < 1:
        raise ValueError(f"AW: every={every} and first={first} must be 1 or more")
    select(sites, stages)  # raises an error for stages that do not exist
    taken = [
        (stages is None or site.stage in stages) and site.depth + 1 >= first and (site.depth + 1 - first) % every == 0
        for site in sites
    ]
    chosen = [site for site, wanted in zip(sites, taken, strict=True) if wanted]
    if not chosen:
        raise ValueError(f"AW: every={every}, first={first}: no block is left; the last is number {sites[-1].depth + 1}")
    ratios = {name: iter(_per_site(r, chosen, name)) for name, r in (("r_c1", r_c1), ("r_c2", r_c2), ("r_hw", r_hw))}
    return [{name: next(column) for name, column in ratios.items()} if wanted else None for wanted in taken]


def _per_site(ratios: Ratios, sites: Sequence[Site], name: str) -> list[Ratio]:
    """One ratio for each site, from one for all, one per stage or one per site."""
    if ratios is None or isinstance(ratios, (int, str)):
        return [ratios] * len(sites)
    stages = sorted({site.stage for site in sites})
    if len(ratios) == len(sites):
        return list(ratios)
    if len(ratios) == len(stages):
        return [ratios[stages.index(site.stage)] for site in sites]
    raise ValueError(
        f"AW: {name}={list(ratios)} has {len(ratios)} entries; give one value, one for each of the {len(stages)} stages, or "
        f"one for each of the {len(sites)} convolutions"
    )


def _forms(map_shape: tuple[int, int, int, int]) -> tuple[str, ...]:
    """The forms that an attention map of this shape allows, the most specific last."""
    _, c1, height, width = map_shape
    if c1 > 1:
        return ("grouped",)
    return ("grouped", "taps", "scale") if height * width == 1 else ("grouped", "taps")
