"""ShuffleNetV2, with torchvision's blocks and names. Ma et al.: ShuffleNet V2, ECCV 2018."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torchvision.models import shufflenetv2 as tv

from attn.attention import Site, State, attend
from attn.backbones.family import Family, Slot, Socket, blocks_of, stage_sockets
from attn.backbones.staged import IMAGENET, Staged


class InvertedResidual(tv.InvertedResidual):
    """torchvision's block with the slots `branch2.3` (conv) and `se` (block, at the end of that branch).

    Args:
        width_in, width_out, stride: as in torchvision.
        wide: the first two convolutions of a downsampling block's second branch keep the width of its input.
    """

    def __init__(self, width_in: int, width_out: int, stride: int, wide: bool = False) -> None:
        super().__init__(width_in, width_out, stride)
        if wide and stride > 1:
            self.branch2[0] = nn.Conv2d(width_in, width_in, 1, bias=False)
            self.branch2[1] = nn.BatchNorm2d(width_in)
            self.branch2[3] = self.depthwise_conv(width_in, width_in, 3, stride, 1)
            self.branch2[4] = nn.BatchNorm2d(width_in)
            self.branch2[5] = nn.Conv2d(width_in, width_out // 2, 1, bias=False)
        self.width_in = width_in
        self.se = None

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        kept, y = x.chunk(2, 1) if self.stride == 1 else (self.branch1(x), x)

        conv1, bn1, act1, conv2, bn2, conv3, bn3, act3 = self.branch2
        f1 = act1(bn1(conv1(y)))
        f2, conv_state = attend(conv2, (f1,), conv_state)
        f2 = bn2(f2)
        f3 = act3(bn3(conv3(f2)))

        y, block_state = attend(self.se, (x, f1, f2, f3), block_state)
        return tv.channel_shuffle(torch.cat((kept, y), 1), 2), (conv_state, block_state)


class ShuffleNetV2(Staged):
    """torchvision's network with timm's interface.

    Args:
        repeats: blocks of each stage.
        channels: of the stem, the three stages, and the last convolution.
        stem_stride: stride of the stem; 1 for 32x32 images.
        stem_pool: whether max-pooling follows it.
        wide: see `InvertedResidual`.
        conv_bias: give every convolution a bias, as in some collections of networks for CIFAR.
        num_classes, in_chans, global_pool, drop_rate: as in timm.
    """

    stage_names = ("stage2", "stage3", "stage4")
    last = "conv5"

    def __init__(
        self,
        repeats: Sequence[int] = (4, 8, 4),
        channels: Sequence[int] = (24, 116, 232, 464, 1024),
        stem_stride: int = 2,
        stem_pool: bool = True,
        wide: bool = False,
        conv_bias: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if len(repeats) != 3 or len(channels) != 5:
            raise ValueError(f"repeats={list(repeats)}, channels={list(channels)}: three and five numbers are needed")
        self.conv1 = conv_norm_act(in_chans, channels[0], 3, stem_stride)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem_pool else nn.Identity()
        reductions = [stem_stride]
        stride = stem_stride * (2 if stem_pool else 1)
        for i, name in enumerate(self.stage_names):
            stride *= 2
            stage = nn.Sequential(InvertedResidual(channels[i], channels[i + 1], 2, wide))
            stage.extend(InvertedResidual(channels[i + 1], channels[i + 1], 1) for _ in range(repeats[i] - 1))
            setattr(self, name, stage)
            reductions.append(stride)
        self.conv5 = conv_norm_act(channels[3], channels[4], 1, 1)
        if conv_bias:
            add_biases(self)
        self.finish(channels[4], num_classes, global_pool, drop_rate, chs=channels[:4], reductions=reductions)
        self.feature_info[0]["module"] = "conv1"

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def pool(self, x: Tensor) -> Tensor:
        return self.maxpool(x)


def conv_norm_act(width_in: int, width_out: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width_out), nn.ReLU(inplace=True))


def add_biases(model: nn.Module) -> None:
    """Gives every convolution a bias of zeros."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels))


def sockets(model: Any, slot: Slot, where: str) -> Iterator[Socket]:
    stages, infos = model.stages(), model.feature_info[1:]
    if slot == "stage":
        yield from stage_sockets(stages, stages, infos)
        return
    for block, position in blocks_of(stages, infos):
        convs = [block.branch2[i] for i in (0, 3, 5)]
        if slot == "block":
            yield Socket(Site(widths=(block.width_in, *(c.out_channels for c in convs)), **position), block, "se")
        else:
            conv = convs[1]
            site = Site(widths=(conv.in_channels, conv.out_channels), conv=conv, **position)
            yield Socket(site, block.branch2, "3", ("4",))


FAMILY = Family(network=ShuffleNetV2, classes={}, sockets=sockets)


def _cfg(weights: Any) -> dict[str, Any]:
    return {**IMAGENET, "first_conv": "conv1.0", "url": weights.IMAGENET1K_V1.url, "license": "bsd-3-clause"}


default_cfgs = generate_default_cfgs(
    {
        "shufflenet_v2_x0_5.tv_in1k": _cfg(tv.ShuffleNet_V2_X0_5_Weights),
        "shufflenet_v2_x1_0.tv_in1k": _cfg(tv.ShuffleNet_V2_X1_0_Weights),
        "shufflenet_v2_x1_5.tv_in1k": _cfg(tv.ShuffleNet_V2_X1_5_Weights),
        "shufflenet_v2_x2_0.tv_in1k": _cfg(tv.ShuffleNet_V2_X2_0_Weights),
    }
)


def _build(variant: str, pretrained: bool, channels: Sequence[int], kwargs: dict[str, Any]) -> ShuffleNetV2:
    return build_model_with_cfg(ShuffleNetV2, variant, pretrained, **{"channels": channels, **kwargs})


@register_model
def shufflenet_v2_x0_5(pretrained: bool = False, **kwargs: Any) -> ShuffleNetV2:
    return _build("shufflenet_v2_x0_5", pretrained, (24, 48, 96, 192, 1024), kwargs)


@register_model
def shufflenet_v2_x1_0(pretrained: bool = False, **kwargs: Any) -> ShuffleNetV2:
    return _build("shufflenet_v2_x1_0", pretrained, (24, 116, 232, 464, 1024), kwargs)


@register_model
def shufflenet_v2_x1_5(pretrained: bool = False, **kwargs: Any) -> ShuffleNetV2:
    return _build("shufflenet_v2_x1_5", pretrained, (24, 176, 352, 704, 1024), kwargs)


@register_model
def shufflenet_v2_x2_0(pretrained: bool = False, **kwargs: Any) -> ShuffleNetV2:
    return _build("shufflenet_v2_x2_0", pretrained, (24, 244, 488, 976, 2048), kwargs)
