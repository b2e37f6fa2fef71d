"""The forward pass that timm's EfficientNet and MobileNetV3 classes share; blocks and sockets have their own files."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from attn.backbones.network import Network, Step, run_stage, stateless


class MobileNetwork(Network):
    """The forward pass over stem and blocks; the first base class of both networks, before timm's."""

    conv_stem: nn.Module
    bn1: nn.Module
    blocks: nn.Sequential
    stage_ends: list[int]
    grad_checkpointing: bool

    def stem(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv_stem(x))

    def steps(self) -> list[Step]:
        stages: list[Step] = [partial(run_stage, stage, checkpointing=self.grad_checkpointing) for stage in self.blocks]
        return [stateless(self.stem), *stages]

    def taps(self) -> list[int]:
        return self.stage_ends

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        extra_blocks: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """As `Network.forward_intermediates`; with `extra_blocks`, `indices` count the stem and all stages."""
        taps = list(range(len(self.blocks) + 1)) if extra_blocks else self.taps()
        return self.collect(x, taps, indices, norm, stop_early, output_fmt, intermediates_only)
