"""The EfficientNet-B0 for 32x32 images whose size BA2M's Table X prints.

It is not timm's: the first version of kuangliu's pytorch-cifar had 3x3 kernels everywhere, the attention after the last
convolution of a block, convolutions on the shortcuts that change the width, ReLU, and no convolution before the classifier.
Of all combinations of these with the published network it is the only one with the printed 2.80 Mi parameters (2 940 979 at
100 classes).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.layers import BatchNormAct2d, DropPath
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from torch import Tensor, nn

from attn.attention import Site, State, attend
from attn.backbones.family import Family, Slot, Socket, blocks_of, stage_sockets
from attn.backbones.staged import Staged


class Block(InvertedResidual):
    """timm's names, with the attention at the end of the branch: slots `conv_dw` (conv) and `se` (block)."""

    def __init__(self, width_in: int, width: int, stride: int, expand: int, drop_path: float) -> None:
        super().__init__(width_in, width, 3, stride, exp_ratio=expand, act_layer=nn.ReLU)
        self.se = SqueezeExcite(width, rd_channels=width // 16, act_layer=nn.ReLU)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride == 1 and width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        f1 = self.bn1(self.conv_pw(x))
        f2, conv_state = attend(self.conv_dw, (f1,), conv_state)
        f2 = self.bn2(f2)
        f3 = self.bn3(self.conv_pwl(f2))
        y, block_state = attend(self.se, (x, f1, f2, f3), block_state)
        # If the size changes, the shortcut skips only the attention.
        shortcut = self.shortcut(x) if self.stride == 1 else f3
        return shortcut + self.drop_path(y), (conv_state, block_state)


class CifarEfficientNet(Staged):
    """A 3x3 stem of stride 1, seven stages of total stride 32, a classifier on 320 channels.

    Args:
        num_classes, in_chans, global_pool, drop_rate, drop_path_rate: as in timm.
    """

    # expansion, width, blocks, stride
    config = (
        (1, 16, 1, 2),
        (6, 24, 2, 1),
        (6, 40, 2, 2),
        (6, 80, 3, 2),
        (6, 112, 3, 1),
        (6, 192, 4, 2),
        (6, 320, 1, 2),
    )
    stage_names = tuple(f"blocks.{i}" for i in range(7))
    last = "conv_head"
    head = "classifier"

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(in_chans, 32, 3, padding=1, bias=False)
        self.bn1 = BatchNormAct2d(32)
        self.blocks = nn.Sequential()
        chs, reductions = [32], [1]
        total, done = sum(blocks for _, _, blocks, _ in self.config), 0
        for expand, width, blocks, stride in self.config:
            stage = nn.Sequential()
            for i in range(blocks):
                rate = drop_path_rate * done / total
                stage.append(Block(chs[-1] if i == 0 else width, width, stride if i == 0 else 1, expand, rate))
                done += 1
            self.blocks.append(stage)
            chs.append(width)
            reductions.append(reductions[-1] * stride)
        self.conv_head = nn.Identity()
        self.finish(chs[-1], num_classes, global_pool, drop_rate, chs=chs, reductions=reductions)
        self.feature_info[0]["module"] = "bn1"

    def stem(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv_stem(x))

    def stages(self) -> list[nn.Module]:
        return list(self.blocks)


def sockets(model: Any, slot: Slot, where: str) -> Iterator[Socket]:
    stages, infos = model.stages(), model.feature_info[1:]
    if slot == "stage":
        yield from stage_sockets(stages, stages, infos)
        return
    for block, position in blocks_of(stages, infos):
        convs = (block.conv_pw, block.conv_dw, block.conv_pwl)
        if slot == "block":
            widths = (convs[0].in_channels, *(conv.out_channels for conv in convs))
            yield Socket(Site(widths=widths, native=True, **position), block, "se")
        else:
            conv = block.conv_dw
            site = Site(widths=(conv.in_channels, conv.out_channels), conv=conv, **position)
            yield Socket(site, block, "conv_dw", ("bn2",))


FAMILY = Family(network=CifarEfficientNet, classes={}, sockets=sockets)
