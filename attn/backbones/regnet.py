"""timm's RegNet X, Y, Z and V. Radosavovic et al.: Designing Network Design Spaces, CVPR 2020."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.models import regnet as timm_regnet
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn.attention import START, Site, State, attend
from attn.backbones.family import Family, Place, Slot, run_stages


class Bottleneck(timm_regnet.Bottleneck):
    """timm's block with the slots `conv2.conv` (conv) and `se` (block); RegNet's SE stands behind conv2, not conv3."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        x, (conv_state, block_state) = inputs

        f1 = self.conv1(x)
        f2, conv_state = attend(self.conv2.conv, (f1,), conv_state)
        f2 = self.conv2.bn(f2)

        y, block_state = attend(self.se, (x, f1, f2), block_state)
        y = self.conv3(y)
        if self.downsample is not None:
            y = self.drop_path(y) + self.downsample(x)
        return self.act3(y), (conv_state, block_state)


class PreBottleneck(timm_regnet.PreBottleneck):
    """timm's pre-activation block with the slots `conv2` (conv) and `se` (block)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        x, (conv_state, block_state) = inputs

        activated = self.norm1(x)
        f1 = self.norm2(self.conv1(activated))
        f2, conv_state = attend(self.conv2, (f1,), conv_state)

        y, block_state = attend(self.se, (x, f1, f2), block_state)
        y = self.conv3(self.norm3(y))
        if self.downsample is not None:
            y = self.drop_path(y) + self.downsample(activated)
        return y, (conv_state, block_state)


class RegStage(timm_regnet.RegStage):
    """timm's stage; ends with the slot `attn` (stage)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        for block in self.children():
            inputs = checkpoint(block, inputs, use_reentrant=False) if self.grad_checkpointing else block(inputs)
        return inputs


class RegNet(timm_regnet.RegNet):
    """timm's network; its stages pass (map, state)."""

    def stages(self) -> tuple[Any, ...]:
        return self.s1, self.s2, self.s3, self.s4

    def forward_features(self, x: Tensor) -> Tensor:
        return self.final_conv(run_stages(self.stages(), self.stem(x)))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: only NCHW exists for {type(self).__name__}")
        take, last = feature_take_indices(5, indices)
        end = last if stop_early else 4
        x, state = self.stem(x), START
        found = [x] if 0 in take else []
        for i, stage in enumerate(self.stages()[:end], start=1):
            x, state = stage((x, state))
            if i in take:
                found.append(x)
        if intermediates_only:
            return found
        return (self.final_conv(x) if end == 4 else x), found


def places(model: Any, slot: Slot, where: str) -> Iterator[Place]:
    depth = 0
    for number, stage in enumerate(model.stages(), start=1):
        info = model.feature_info[number]
        position: dict[str, Any] = {}
        for index, block in enumerate(list(stage.children())):
            position = {"stage": number, "block": index, "depth": depth, "stride": info["reduction"]}
            depth += 1
            plain = isinstance(block, PreBottleneck)
            conv1, conv2 = (block.conv1, block.conv2) if plain else (block.conv1.conv, block.conv2.conv)
            if slot == "block":
                widths = (conv1.in_channels, conv1.out_channels, conv2.out_channels)
                native = not isinstance(block.se, nn.Identity)
                yield Place(Site(widths=widths, native=native, **position), block, "se")
            elif slot == "conv":
                site = Site(widths=(conv2.in_channels, conv2.out_channels), conv=conv2, **position)
                if plain:
                    yield Place(site, block, "conv2", ("norm3",))
                else:
                    yield Place(site, block.conv2, "conv", ("bn",))
        if slot == "stage":
            yield Place(Site(widths=(info["num_chs"],), **position), stage, "attn")


FAMILY = Family(
    network=timm_regnet.RegNet,
    classes={
        timm_regnet.Bottleneck: Bottleneck,
        timm_regnet.PreBottleneck: PreBottleneck,
        timm_regnet.RegStage: RegStage,
        timm_regnet.RegNet: RegNet,
    },
    places=places,
)
