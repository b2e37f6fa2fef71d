"""Evolving attention on attention-augmented convolutions (EA-AANet). Wang et al.: Evolving Attention with Residual
Convolutions, ICML 2021."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attn.attention import Attention, Site
from attn.modules._layers import working_stride
from attn.modules.aa import AA


class EA(AA):
    """`AA` whose logits evolve from block to block: A' = (1 - mix) A + mix P, then (1 - beta) A' + beta relu(conv3x3(A')).

    A are the block's own logits [N, heads, HW, HW] and P those that the previous block gave to its softmax; the convolution
    sees them as an image of HW x HW pixels whose channels are the heads. The chain starts again where the maps change size;
    the block there is a plain `AA`.

    Known from the paper and its authors' code (pkuyym/EvolvingAttention): the two equations, the 3x3 kernel with a bias,
    ReLU, mix 0.5, beta 1, the first attended stage at half the resolution so that the chain continues into the next.
    Unknown: the widths of keys and values that give the printed sizes (25.8 M and 45.4 M with ResNet-50 and -101). The
    authors' code has key_ratio 0.25, value_ratio 0.125 and min_head 1, which give a network smaller than ResNet-50; the
    widths of the AA paper, which are the default here, give the printed sizes. Unlike that code, no projection has a bias.

    Args:
        site: the position, with `conv`.
        mix: fraction of the previous block's logits.
        beta: fraction of the convolution.
        evolves: whether the site gets a previous block's logits; `place` sets it.
        options: of `AA`; `downsample` is [2] by default.

    Raises:
        ValueError: `mix` or `beta` is outside 0 to 1, or as `AA`.
    """

    def __init__(
        self,
        site: Site,
        mix: float = 0.5,
        beta: float = 1.0,
        evolves: bool = False,
        downsample: Sequence[int] = (2,),
        **options: Any,
    ) -> None:
        super().__init__(site, downsample=downsample, **options)
        for name, share in (("mix", mix), ("beta", beta)):
            if not 0 <= share <= 1:
                raise ValueError(f"EA: {name}={share} must lie between 0 and 1")
        self.mix, self.beta = mix, beta
        self.evolution = nn.Conv2d(self.heads, self.heads, 3, padding=1) if evolves and beta > 0 else None
        self.evolves = evolves

    def forward(self, feats: tuple[Tensor, ...], state: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = self.project(feats[-1])
        logits = self.logits(q, k)
        if self.evolves:
            assert state is not None, "a site that evolves has a previous one"
            logits = torch.lerp(logits, state.to(logits.dtype), self.mix)
            if self.evolution is not None:
                logits = (1 - self.beta) * logits + self.beta * self.evolution(logits).relu()
        return self.augment(feats[-1], logits, v), logits

    @classmethod
    def default_stages(cls, present: Sequence[int]) -> Sequence[int]:
        return present[-3:]

    @classmethod
    def build(cls, sites: Sequence[Site], **options: Any) -> list[Attention | None]:
        strides = [working_stride(site, options.get("downsample", (2,))) for site in sites]
        evolves = [i > 0 and stride == strides[i - 1] for i, stride in enumerate(strides)]
        return [cls(site, evolves=evolve, **options) for site, evolve in zip(sites, evolves, strict=True)]
