"""timm's DenseNet. Huang et al.: Densely Connected Convolutional Networks, CVPR 2017."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import densenet as timm_densenet
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn.attention import START, Site, State, attend
from attn.backbones.family import Family, Place, Slot


class DenseLayer(timm_densenet.DenseLayer):
    """timm's layer with the slots `conv2` (conv) and `se` (block, on the new features)."""

    norm1: nn.Module
    conv1: nn.Conv2d
    norm2: nn.Module
    conv2: nn.Module

    def forward(self, inputs: tuple[list[Tensor], State]) -> tuple[Tensor, State]:  # type: ignore[override]
        previous, (conv_state, block_state) = inputs
        attention = getattr(self, "se", None)

        if self.grad_checkpointing and any(x.requires_grad for x in previous):
            f1 = checkpoint(lambda *xs: self.bottleneck_fn(list(xs)), *previous, use_reentrant=False)
            x = previous[0] if attention is None else torch.cat(previous, 1)
        else:
            x = torch.cat(previous, 1)
            f1 = self.conv1(self.norm1(x))
        f2, conv_state = attend(self.conv2, (self.norm2(f1),), conv_state)

        y, block_state = attend(attention, (x, f1, f2), block_state)
        if self.drop_rate > 0:
            y = F.dropout(y, p=self.drop_rate, training=self.training)
        return y, (conv_state, block_state)


class DenseBlock(timm_densenet.DenseBlock):
    """timm's block; the last one ends with the slot `attn` (stage)."""

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:  # type: ignore[override]
        x, state = inputs
        features = [x]
        for layer in layers(self):
            y, state = layer((features, state))
            features.append(y)
        x = torch.cat(features, 1)
        return self["attn"]((x, state)) if "attn" in self else (x, state)


class DenseTransition(timm_densenet.DenseTransition):
    """timm's transition; ends with the slot `attn` (stage)."""

    norm: nn.Module
    conv: nn.Conv2d
    pool: nn.Module

    def forward(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        x, state = inputs
        x = self.pool(self.conv(self.norm(x)))
        attention = getattr(self, "attn", None)
        return (x, state) if attention is None else attention((x, state))


class DenseNet(timm_densenet.DenseNet):
    """timm's network; dense blocks and transitions pass (map, state)."""

    def forward_features(self, x: Tensor) -> Tensor:
        state: State = START
        for module in self.features:
            x, state = step(module, x, state)
        return x

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
        ends = self.feature_ends
        take, last = feature_take_indices(len(ends), indices)
        state: State = START
        found = []
        modules: Any = self.features[: ends[last] + 1] if stop_early else self.features
        for i, module in enumerate(modules):
            x, state = step(module, x, state)
            if i in ends and ends.index(i) in take:
                found.append(x)
        return found if intermediates_only else (x, found)


def step(module: nn.Module, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Applies one child of `features`: a stem or norm module to the map alone."""
    return module((x, state)) if isinstance(module, (DenseBlock, DenseTransition)) else (module(x), state)


def layers(block: Any) -> list[Any]:
    return [layer for name, layer in block.items() if name != "attn"]


def places(model: Any, slot: Slot, where: str) -> Iterator[Place]:
    modules = list(model.features)
    blocks = [module for module in modules if isinstance(module, DenseBlock)]
    transitions = [module for module in modules if isinstance(module, DenseTransition)]
    depth = 0
    for number, block in enumerate(blocks, start=1):
        stride = model.feature_info[number]["reduction"]
        position: dict[str, Any] = {}
        for index, layer in enumerate(layers(block)):
            position = {"stage": number, "block": index, "depth": depth, "stride": stride}
            depth += 1
            middle, new = layer.conv2.in_channels, layer.conv2.out_channels
            if slot == "block":
                yield Place(Site(widths=(layer.conv1.in_channels, middle, new), **position), layer, "se")
            elif slot == "conv":
                yield Place(Site(widths=(middle, new), conv=layer.conv2, **position), layer, "conv2")
        if slot == "stage" and number <= len(transitions):
            transition = transitions[number - 1]
            # What the transition gives belongs to the next size already.
            position["stride"] = model.feature_info[number + 1]["reduction"]
            yield Place(Site(widths=(transition.conv.out_channels,), **position), transition, "attn")
        elif slot == "stage":
            yield Place(Site(widths=(model.num_features,), **position), block, "attn")


FAMILY = Family(
    network=timm_densenet.DenseNet,
    classes={
        timm_densenet.DenseLayer: DenseLayer,
        timm_densenet.DenseBlock: DenseBlock,
        timm_densenet.DenseTransition: DenseTransition,
        timm_densenet.DenseNet: DenseNet,
    },
    places=places,
)
