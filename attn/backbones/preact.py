"""Pre-activation networks for 32x32 images: PreResNet and Wide ResNet.

He et al.: Identity Mappings in Deep Residual Networks, ECCV 2016. Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from timm.layers import BatchNormAct2d, DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from attn.attention import Site, State, attend
from attn.backbones.family import Family, Slot, Socket, blocks_of, stage_sockets
from attn.backbones.staged import Staged


class ZeroPad(nn.Module):
    """The shortcut without parameters, [N, C, H, W] to [N, C + new, H / stride, W / stride]; the new channels are zeros."""

    def __init__(self, new: int, stride: int) -> None:
        super().__init__()
        self.new, self.stride = new, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


def make_shortcut(kind: str, width_in: int, width_out: int, stride: int) -> nn.Module | None:
    if stride == 1 and width_in == width_out:
        return None
    if kind == "pad":
        return ZeroPad(width_out - width_in, stride)
    return nn.Conv2d(width_in, width_out, 1, stride, bias=False)


class PreActBlock(nn.Module):
    """norm, act, conv twice, x + branch(x). Slots: `conv1` (conv: a norm and an activation follow it), `se` (block).

    A shortcut with weights takes the pre-activated map, one without takes the map itself.
    """

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int, shortcut: str, drop_path: float) -> None:
        super().__init__()
        self.bn1, self.act1 = nn.BatchNorm2d(width_in), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.se = None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.downsample = make_shortcut(shortcut, width_in, width, stride)

    def shortcut(self, x: Tensor, activated: Tensor) -> Tensor:
        if self.downsample is None:
            return x
        return self.downsample(activated if isinstance(self.downsample, nn.Conv2d) else x)

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        activated = self.act1(self.bn1(x))
        f1, conv_state = attend(self.conv1, (activated,), conv_state)
        f1 = self.act2(self.bn2(f1))
        f2 = self.conv2(f1)
        y, block_state = attend(self.se, (x, f1, f2), block_state)
        return self.shortcut(x, activated) + self.drop_path(y), (conv_state, block_state)


class PreActBottleneck(PreActBlock):
    """norm, act, conv three times (1x1, 3x3, 1x1), four times as wide at the end. Slots: `conv2` (conv), `se` (block)."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int, shortcut: str, drop_path: float) -> None:
        nn.Module.__init__(self)
        self.bn1, self.act1 = nn.BatchNorm2d(width_in), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3, self.act3 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.se = None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.downsample = make_shortcut(shortcut, width_in, 4 * width, stride)

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """Maps ([N, C, H, W], state) to ([N, C', H / stride, W / stride], state)."""
        x, (conv_state, block_state) = inputs
        activated = self.act1(self.bn1(x))
        f1 = self.act2(self.bn2(self.conv1(activated)))
        f2, conv_state = attend(self.conv2, (f1,), conv_state)
        f2 = self.act3(self.bn3(f2))
        f3 = self.conv3(f2)
        y, block_state = attend(self.se, (x, f1, f2, f3), block_state)
        return self.shortcut(x, activated) + self.drop_path(y), (conv_state, block_state)


class PreActResNet(Staged):
    """A 3x3 stem of stride 1, three stages (strides 1, 2, 2), a last norm with activation, a classifier.

    Args:
        block: `basic` or `bottleneck`.
        depths: blocks of each stage.
        widths: width of each stage's 3x3 convolutions.
        shortcut: used where width or size changes: `conv` (1x1) or `pad` (no parameters).
        stem_width: channels of the stem.
        num_classes, in_chans, global_pool, drop_rate, drop_path_rate: as in timm.

    Raises:
        ValueError: an unknown `block` or `shortcut`, or `depths` and `widths` of different lengths.
    """

    stage_names = ("layer1", "layer2", "layer3")
    last = "norm"
    last_is_norm = True

    def __init__(
        self,
        block: Literal["basic", "bottleneck"] = "basic",
        depths: Sequence[int] = (18, 18, 18),
        widths: Sequence[int] = (16, 32, 64),
        shortcut: Literal["conv", "pad"] = "conv",
        stem_width: int = 16,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        blocks: dict[str, type[PreActBlock]] = {"basic": PreActBlock, "bottleneck": PreActBottleneck}
        if block not in blocks:
            raise ValueError(f"block={block!r}; choose from {', '.join(blocks)}")
        if shortcut not in ("conv", "pad"):
            raise ValueError(f"shortcut={shortcut!r}; choose from conv, pad")
        if len(depths) != 3 or len(widths) != 3:
            raise ValueError(f"depths={list(depths)}, widths={list(widths)}: three of each are needed, one per stage")
        make = blocks[block]
        self.conv1 = nn.Conv2d(in_chans, stem_width, 3, padding=1, bias=False)
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        chs = [stem_width]
        for i, name in enumerate(self.stage_names):
            stage = nn.Sequential()
            for j in range(depths[i]):
                width_in = chs[-1] if j == 0 else widths[i] * make.expansion
                stage.append(make(width_in, widths[i], 2 if i and j == 0 else 1, shortcut, rates[i][j]))
            setattr(self, name, stage)
            chs.append(widths[i] * make.expansion)
        self.norm = BatchNormAct2d(chs[-1])
        self.finish(chs[-1], num_classes, global_pool, drop_rate, chs=chs, reductions=(1, 1, 2, 4))
        self.feature_info[0]["module"] = "conv1"

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)


def sockets(model: Any, slot: Slot, where: str) -> Iterator[Socket]:
    stages, infos = model.stages(), model.feature_info[1:]
    if slot == "stage":
        yield from stage_sockets(stages, stages, infos)
        return
    for block, position in blocks_of(stages, infos):
        bottleneck = isinstance(block, PreActBottleneck)
        if slot == "block":
            convs = [block.conv1, block.conv2] + ([block.conv3] if bottleneck else [])
            widths = (block.conv1.in_channels, *(conv.out_channels for conv in convs))
            yield Socket(Site(widths=widths, **position), block, "se")
        else:
            name, norm_act = ("conv2", ("bn3", "act3")) if bottleneck else ("conv1", ("bn2", "act2"))
            conv = getattr(block, name)
            site = Site(widths=(conv.in_channels, conv.out_channels), conv=conv, **position)
            yield Socket(site, block, name, norm_act)


FAMILY = Family(network=PreActResNet, classes={}, sockets=sockets)
