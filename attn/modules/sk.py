"""Selective kernels. Li, Wang, Hu, Yang: Selective Kernel Networks, CVPR 2019."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from attn.attention import Attention, Reading, Site, hidden_width
from attn.modules._layers import VectorBatchNorm, activation


class SK(Attention):
    """Convolutions of several receptive fields, combined per channel by attention (section 3.1). For the `conv` slot.

    U_m = act(BN(conv_m(x))); z = relu(BN(W1 gap(sum_m U_m))); a = softmax over m of W2 z; y = sum_m a_m U_m. The first
    branch is the replaced convolution with its weights; the others have its kernel size.

    Args:
        site: the position, with `conv`.
        reduction: C divided by the width d of z.
        min_width: lower bound of d (L in eq. 4). DCANet has none (1).
        dilations: one per branch, multiplied by that of the convolution. [1, 2] means kernels of 3 and 5.
        groups: one per branch, or null for those of the convolution; the first must be null. [null, 32] with dilations
            [1, 1] is the ResNet form of 26.15 M.
        act: activation after each branch, by timm's name (relu, relu6, silu ...).

    Raises:
        ValueError: the slot is not `conv`, or a setting does not fit.
    """

    takes_norm_act = True

    def __init__(
        self,
        site: Site,
        reduction: float = 16,
        min_width: int = 32,
        dilations: Sequence[int] = (1, 2),
        groups: Sequence[int | None] | None = None,
        act: str = "relu",
    ) -> None:
        super().__init__()
        if site.conv is None:
            raise ValueError("SK replaces a convolution: put it into the conv slot")
        groups = [None] * len(dilations) if groups is None else list(groups)
        if len(dilations) < 2 or dilations[0] != 1 or groups[0] is not None:
            raise ValueError(
                f"SK: dilations={list(dilations)}, groups={groups}: two branches or more are needed, and the first is the "
                "convolution itself: dilation 1, groups null"
            )
        if len(groups) != len(dilations):
            raise ValueError(f"SK: groups={groups} and dilations={list(dilations)} must have one entry per branch")
        act_layer = activation(act, "SK: act")
        convs = [site.conv] + [branch_conv(site.conv, d, g) for d, g in zip(dilations[1:], groups[1:], strict=True)]
        self.branches = nn.ModuleList(
            nn.Sequential(conv, nn.BatchNorm2d(site.width), act_layer(inplace=True)) for conv in convs
        )
        hidden = max(hidden_width(site.width, reduction, "SK"), min_width)
        self.fc1 = nn.Linear(site.width, hidden, bias=False)
        self.norm = VectorBatchNorm(hidden)
        self.fc2 = nn.Linear(hidden, site.width * len(convs), bias=False)

    def split(self, x: Tensor) -> list[Tensor]:
        """The branches' outputs, each [N, C, H, W]."""
        return [branch(x) for branch in self.branches]

    def squeeze(self, maps: list[Tensor]) -> Tensor:
        """Pools the branches to [N, M, C]."""
        return torch.stack([m.mean((2, 3)) for m in maps], 1)

    def excite(self, z: Tensor) -> Tensor:
        """Maps the fused descriptor [N, C] to weights [N, M, C], which sum to 1 over the M branches."""
        logits = self.fc2(self.norm(self.fc1(z)).relu())
        return logits.unflatten(1, (len(self.branches), -1)).softmax(1)

    def select(self, maps: list[Tensor], weights: Tensor) -> Tensor:
        """The sum of the branches [N, C, H, W], each multiplied by its weights; the weights are [N, M, C]."""
        weights = weights.to(maps[0].dtype)[..., None, None]
        y = maps[0] * weights[:, 0]
        for i, branch in enumerate(maps[1:], start=1):
            y = y + branch * weights[:, i]
        return y

    def refine(self, x: Tensor) -> Tensor:
        maps = self.split(x)
        return self.select(maps, self.excite(self.squeeze(maps).sum(1)))

    def reading(self, feats: tuple[Tensor, ...], state: Any) -> Reading:
        pooled = self.squeeze(self.split(feats[-1]))
        return Reading({"branch": self.excite(pooled.sum(1))}, tuple(pooled.unbind(1)))


def branch_conv(conv: nn.Conv2d, dilation: int, groups: int | None) -> nn.Conv2d:
    """Another branch: like `conv`, with its dilation multiplied and its groups replaced.

    Raises:
        ValueError: the groups do not divide the channels, or the dilation is below 1.
    """
    groups = conv.groups if groups is None else groups
    if groups < 1 or conv.in_channels % groups or conv.out_channels % groups:
        raise ValueError(f"SK: groups={groups} must divide the {conv.in_channels} and {conv.out_channels} channels")
    if dilation < 1:
        raise ValueError(f"SK: dilations: {dilation} must be 1 or more")
    same = isinstance(conv, Conv2dSame)
    kernel = (conv.kernel_size[0], conv.kernel_size[1])
    dilated = (conv.dilation[0] * dilation, conv.dilation[1] * dilation)
    branch = (Conv2dSame if same else nn.Conv2d)(
        conv.in_channels,
        conv.out_channels,
        kernel,
        stride=(conv.stride[0], conv.stride[1]),
        padding=0 if same else (dilated[0] * (kernel[0] - 1) // 2, dilated[1] * (kernel[1] - 1) // 2),
        dilation=dilated,
        groups=groups,
        bias=conv.bias is not None,
    )
    # He et al.'s initialisation with the fan-out, as in the backbones.
    nn.init.normal_(branch.weight, 0.0, (2.0 * groups / (kernel[0] * kernel[1] * conv.out_channels)) ** 0.5)
    if branch.bias is not None:
        nn.init.zeros_(branch.bias)
    return branch
