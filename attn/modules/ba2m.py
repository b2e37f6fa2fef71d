"""Batch-aware attention. BA^2M: A Batch Aware Attention Module for Image Classification, arXiv 2103.15099, 2021.

Three branches give each sample one scalar (eqs. 5 to 9); the softmax of the scalars over the batch weights the samples'
feature maps (eqs. 10 and 11). By default the module acts in training only: for one image, as at inference, the softmax is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from attn.attention import Attention, Reading, Site
from attn.modules._layers import MapBatchNorm, VectorBatchNorm

Branch = Literal["channel", "local_spatial", "global_spatial"]
BRANCHES: tuple[Branch, ...] = ("channel", "local_spatial", "global_spatial")


class BA2M(Attention):
    """Output_i = w_i x_i, w = softmax over the batch of the samples' scores (eqs. 5 to 13); in eval mode see `inference`.

    A sample's score, its SAR, is the mean over the channels of the elementwise maximum of its branches (eq. 9); the weights
    are the softmax of the scores (eq. 11). Meant for the `stage` slot ("between" in the paper, its best); the `block` slot
    is its "inside".

    On inference the paper (section III-D) says three things: the module is off; a test image's map is multiplied by its own
    SAR; test batches of 1 to 256 are weighted by their softmax, and because a weight does not change the ranking of the
    classes, all have the same error. The last is true for a module right before a classifier without bias. It is not true
    before other layers, whose batch norms use running statistics and whose convolutions feed shortcuts. `inference` offers
    all three. Off is the default: with the softmax an image's prediction depends on the others in its batch, and a SAR,
    which is about 0 with either sign, is not a scale that occurred in training.

    The branches have two variants, because the paper's equations and its printed sizes belong to different modules:

    - `equations` (eqs. 5 to 8): channel BN(FC(FC(gap x))); local BN(1x1(3x3(1x1 x))); global softmax(f g^T) h by 1x1
      convolutions that all the C/m groups of m channels share. 4Cm + 12m^2 + 6C parameters.
    - `fitted`: BAM's channel and spatial gates and an attention-augmented convolution of stride 2, which give every printed
      size that can be reproduced. 9Cm + 18.25m^2 + 3C + 18.5m + 4 parameters (m even). The two spatial branches give one
      value per sample, which the maximum broadcasts to all channels; the paper does not say whether this is so.

    The literal softmax gives weights of about 1/N, which are too small: a classifier after the last stage does not
    learn with it. By default the weights are therefore multiplied by N and the branches start at zero, so that the module
    starts as the identity. N is the number of samples in the softmax, so batches should be of one size (`drop_last`).

    With one sample in the softmax the weight is 1, in training too, and the branches get zero gradients.

    Args:
        site: the place; any [N, C, H, W].
        reduction: R; the branches work at m = C // R channels. The paper's tables use 2 to 32, mostly 32 for CIFAR and 16 or
            4 for ImageNet.
        min_width: minimum m, for stages narrower than R * min_width. The paper says that C / R is at least 32
            (min_width=32); but its printed sizes of CIFAR ResNet-50 and 101 need m = 8 in the first stage (C = 256, R = 32)
            and those of ImageNet ResNets m = 16. The default here is small enough not to affect any of them.
        variant: `equations` or `fitted`. In `equations`, m is the next divisor of C.
        branches: any of `channel`, `local_spatial`, `global_spatial`.
        scale: `softmax_times_n`, or the literal `softmax`.
        zero_init: start with the last layer of every branch at zero, so that all samples get the same weight.
        batch: `local`: softmax over this rank's samples; `global`: over those of all ranks, which may have different
            numbers.
        norm_global: whether a batch norm ends the global branch. Eq. 8 prints none, but the text requires normalised scales,
            and without it the maximum may never choose this branch. None: a batch norm in `equations`; in `fitted`,
            whose sizes include none, the branch's scores are only centred over the batch.
        global_stride: pixels per step of the global branch in both directions. None: 1 in `equations`, 2 in `fitted`.
        inference: what the module does in eval mode: `off` (identity), `softmax` (weights over the images of the batch that
            it sees on this rank, for any `batch`, times their number unless `scale` is `softmax`; a smaller last batch has
            its own number), or `sar` (the map times its own score). The branches' norms use their running statistics. A
            centred global branch, which has none, is centred over the test batch with `softmax`, and not at all with `sar`.

    Raises:
        ValueError: a setting is unknown or invalid.
    """

    def __init__(
        self,
        site: Site,
        reduction: float = 32,
        min_width: int = 4,
        variant: Literal["equations", "fitted"] = "equations",
        branches: Sequence[Branch] = BRANCHES,
        scale: Literal["softmax_times_n", "softmax"] = "softmax_times_n",
        zero_init: bool = True,
        batch: Literal["local", "global"] = "local",
        norm_global: bool | None = None,
        global_stride: int | None = None,
        inference: Literal["off", "softmax", "sar"] = "off",
    ) -> None:
        super().__init__()
        if isinstance(branches, str) or not branches or len(set(branches)) != len(branches) or set(branches) - set(BRANCHES):
            raise ValueError(
                f"BA2M: branches={branches!r} must be a list of one or more of {', '.join(BRANCHES)}, each once"
            )
        equations = variant == "equations"
        if norm_global is None:
            end: tuple[nn.Module, ...] = (
                (MapBatchNorm(site.width),) if equations else (Center(in_eval=inference == "softmax"),)
            )
        else:
            end = (MapBatchNorm(site.width if equations else 1),) if norm_global else ()
        global_stride = (1 if equations else 2) if global_stride is None else global_stride
        if global_stride < 1:
            raise ValueError(f"BA2M: global_stride={global_stride} must be 1 or more")
        width = inner_width(site.width, reduction, min_width, divisor=equations)
        self.times_n = scale == "softmax_times_n"
        self.over_ranks = batch == "global"
        self.inference = inference

        build: dict[Branch, Callable[[], nn.Sequential]] = {
            "channel": lambda: (channel_by_equation if equations else channel_fitted)(site.width, width),
            "local_spatial": lambda: (local_by_equation if equations else local_fitted)(site.width, width),
            "global_spatial": lambda: (
                global_by_equation(width, global_stride, end)
                if equations
                else global_fitted(site.width, width, global_stride, end)
            ),
        }
        self.branches = nn.ModuleDict({name: build[name]() for name in BRANCHES if name in branches})
        if zero_init:
            for branch in self.branches.values():
                zero_last(branch)

    @classmethod
    def build(cls, sites: Sequence[Site], **options: Any) -> list[Attention | None]:
        widest = max(site.width for site in sites)
        if options.get("reduction", 0) > widest:
            raise ValueError(f"BA2M: reduction={options['reduction']} exceeds the {widest} channels of the widest site")
        return super().build(sites, **options)

    def folded(self) -> Attention:
        return Off() if self.inference == "off" else self

    def refine(self, x: Tensor) -> Tensor:
        weights = self.image_weights(x)
        return x if weights is None else x * weights.to(x.dtype)[:, None, None, None]

    def image_weights(self, x: Tensor) -> Tensor | None:
        """What each image's map is multiplied by, [N]; None where the module is off."""
        if not self.training and self.inference == "off":
            return None
        scores = self.scores(x)
        return self.weights(scores) if self.training or self.inference == "softmax" else scores

    def reading(self, feats: tuple[Tensor, ...], state: Any) -> Reading | None:
        weights = self.image_weights(feats[-1])
        return None if weights is None else Reading({"image": weights})

    def scores(self, x: Tensor) -> Tensor:
        """One scalar per sample, [N, C, H, W] to [N], in fp32: the normalised scores of eq. 9."""
        # amax, unlike maximum, divides the gradient among equal values: branches that all start at zero all learn.
        found = torch.broadcast_tensors(*(branch(x).float() for branch in self.branches.values()))
        return torch.stack(found).amax(0).mean(1)

    def weights(self, scores: Tensor) -> Tensor:
        """Softmax over the batch, [N] to [N], times the number of samples in it unless `scale` is `softmax` (eq. 11)."""
        log_total, samples = scores.logsumexp(0), scores.new_full((), scores.shape[0])
        # In evaluation the ranks may have different numbers of batches, so they must not wait for each other.
        if self.training and self.over_ranks and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Two numbers per rank give the softmax over all samples, also if the ranks' batches have different sizes.
            ranks = gather(torch.stack((log_total, samples)))
            log_total, samples = ranks[:, 0].logsumexp(0), ranks[:, 1].sum()
        weights = (scores - log_total).exp()
        return weights * samples if self.times_n else weights


class Off(Attention):
    """The identity."""

    def refine(self, x: Tensor) -> Tensor:
        return x


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; the gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def gather(x: Tensor) -> Tensor:
    """[K] of every rank as [ranks, K], differentiable."""
    rank = dist.get_rank()
    return SumOverRanks.apply(F.pad(x[None], (0, 0, rank, dist.get_world_size() - 1 - rank)))


def inner_width(channels: int, reduction: float, min_width: int, divisor: bool) -> int:
    """m = channels // reduction, but from `min_width` to `channels`; with `divisor`, the next divisor of `channels`.

    Raises:
        ValueError: `reduction` or `min_width` is below its minimum.
    """
    if reduction < 1:
        raise ValueError(f"BA2M: reduction={reduction} must be 1 or more; the paper uses 2 to 32")
    if min_width < 2:
        raise ValueError(f"BA2M: min_width={min_width} must be 2 or more")
    width = min(max(int(channels // reduction), min_width), channels)
    while divisor and channels % width:
        width += 1
    return width


def pool() -> tuple[nn.Module, nn.Module]:
    """[N, C, H, W] to [N, C]."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten()


def channel_by_equation(channels: int, width: int) -> nn.Sequential:
    """Eq. 6, [N, C, H, W] to [N, C]. No activation is printed between the two layers."""
    return nn.Sequential(
        *pool(),
        nn.Linear(channels, width, bias=False),
        nn.Linear(width, channels, bias=False),
        VectorBatchNorm(channels),
    )


def local_by_equation(channels: int, width: int) -> nn.Sequential:
    """Eq. 7, then the average over the map: [N, C, H, W] to [N, C]."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.Conv2d(width, channels, 1, bias=False),
        MapBatchNorm(channels),
        *pool(),
    )


def global_by_equation(width: int, stride: int, end: tuple[nn.Module, ...]) -> nn.Sequential:
    """Eq. 8, then the average over the map: [N, C, H, W] to [N, C]."""
    return nn.Sequential(GroupAttention(width, stride), *end, *pool())


class Center(nn.Module):
    """Subtracts from each channel of [N, C, H, W] its mean over batch and map; in eval mode only with `in_eval`."""

    def __init__(self, in_eval: bool) -> None:
        super().__init__()
        self.in_eval = in_eval

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean((0, 2, 3), keepdim=True) if self.training or self.in_eval else x


class GroupAttention(nn.Module):
    """softmax(f g^T) h in every group of `width` channels, over the pixels; f, g, h are shared by the groups (eq. 8)."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.f = nn.Conv2d(width, width, 1, bias=False)
        self.g = nn.Conv2d(width, width, 1, bias=False)
        self.h = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        n, c, height, width = x.shape
        groups = x.reshape(-1, self.f.in_channels, height, width)  # [N * groups, m, H, W]
        return attend_pixels(self.f(groups), self.g(groups), self.h(groups)).reshape(n, c, height, width)


def attend_pixels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v over the pixels of [N, D, H, W], unscaled, without the HW x HW matrix where a fused kernel exists."""
    width = v.shape[1]
    # One head; fused kernels need its width to be a multiple of 8, and zeros do not change the result.
    q, k, v = (F.pad(t.flatten(2).transpose(1, 2)[:, None], (0, -width % 8)) for t in (q, k, v))  # [N, 1, HW, D]
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[:, 0, :, :width].transpose(1, 2)


def channel_fitted(channels: int, width: int) -> nn.Sequential:
    """BAM's channel gate with a norm at its end: [N, C, H, W] to [N, C]."""
    return nn.Sequential(
        *pool(),
        *(nn.Linear(channels, width), VectorBatchNorm(width), nn.ReLU(inplace=True)),
        *(nn.Linear(width, channels), VectorBatchNorm(channels)),
    )


def local_fitted(channels: int, width: int) -> nn.Sequential:
    """BAM's spatial gate, dilation 4: [N, C, H, W] to [N, 1]."""
    return nn.Sequential(
        *(nn.Conv2d(channels, width, 1), MapBatchNorm(width), nn.ReLU(inplace=True)),
        *(nn.Conv2d(width, width, 3, padding=4, dilation=4), MapBatchNorm(width), nn.ReLU(inplace=True)),
        *(nn.Conv2d(width, width, 3, padding=4, dilation=4), MapBatchNorm(width), nn.ReLU(inplace=True)),
        *(nn.Conv2d(width, 1, 1), MapBatchNorm(1)),
        *pool(),
    )


def global_fitted(channels: int, width: int, stride: int, end: tuple[nn.Module, ...]) -> nn.Sequential:
    """An attention-augmented convolution to one map: [N, C, H, W] to [N, 1]."""
    return nn.Sequential(
        *(AugmentedConv(channels, width, stride), MapBatchNorm(width), nn.ReLU(inplace=True)),
        *(nn.Conv2d(width, 1, 1), *end),
        *pool(),
    )


class AugmentedConv(nn.Module):
    """[N, C, H, W] to [N, m, H/s, W/s]: a 3x3 convolution and one head of self-attention, half of m each.

    Bello et al.: Attention Augmented Convolutional Networks, ICCV 2019. The sizes do not determine the number of heads.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.head = width // 2
        self.conv = nn.Conv2d(channels, width - self.head, 3, stride, padding=1)
        self.qkv = nn.Conv2d(channels, 3 * self.head, 1, stride)
        self.out = nn.Conv2d(self.head, self.head, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        q, k, v = self.qkv(x).chunk(3, 1)
        attended = attend_pixels(q * self.head**-0.5, k, v).reshape_as(v)
        return torch.cat((y, self.out(attended)), 1)


def zero_last(branch: nn.Module) -> None:
    """Sets the parameters of a branch's last layer to zero, so that it starts at 0 for every input."""
    last = [m for m in branch.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d))][-1]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
