"""timm's Vision Transformer and DeiT.

Dosovitskiy et al.: An Image is Worth 16x16 Words, ICLR 2021; Touvron et al.: DeiT, ICML 2021.

An attention gets all tokens, including the class token, as a map [N, C, tokens, 1]. If it weighted only the other tokens, it
would get no gradient in the last block from a head that reads only the class token; also, tokens may have been dropped.
Spatial neighbours (for the 7x7 convolution of CBAM) are neighbours in the order of the tokens. The network is one stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from timm.models import vision_transformer as timm_vit
from timm.models._features import feature_take_indices
from torch import Tensor

from attn.attention import START, Site, State, attend
from attn.backbones.family import Family, Slot, Socket
from attn.backbones.network import Network, Step, stateless
from attn.backbones.trace import run_block


def to_map(tokens: Tensor) -> Tensor:
    """[N, tokens, C] to [N, C, tokens, 1]."""
    return tokens.transpose(1, 2)[..., None]


def to_tokens(x: Tensor) -> Tensor:
    """[N, C, tokens, 1] to [N, tokens, C]."""
    return x[..., 0].transpose(1, 2)


class Block(timm_vit.Block):
    """timm's block with the slot `gate` (block) at the end of the mlp branch; its own `attn` attends to tokens."""

    def forward(  # type: ignore[override]
        self, inputs: tuple[Tensor, State], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, State]:
        """Maps ([N, tokens, C], state) to the same shapes."""
        x, (conv_state, block_state) = inputs
        f1 = self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal))
        middle = x + self.drop_path1(f1)
        f2 = self.ls2(self.mlp(self.norm2(middle)))
        gate = getattr(self, "gate", None)
        if gate is not None:
            y, block_state = attend(gate, (to_map(x), to_map(f1), to_map(f2)), block_state)
            f2 = to_tokens(y)
        return middle + self.drop_path2(f2), (conv_state, block_state)


class VisionTransformer(Network, timm_vit.VisionTransformer):  # type: ignore[misc]
    """timm's network; its blocks pass (tokens, state). The slot `attn` (stage) is after the last of them."""

    def embed(self, x: Tensor) -> Tensor:
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))

    def run_block(
        self, block: Any, inputs: tuple[Tensor, State], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, State]:
        masked = attn_mask is not None or is_causal
        call = partial(block, attn_mask=attn_mask, is_causal=is_causal) if masked else block
        if not isinstance(block, Block):  # timm's other block types, which have no slots
            call = stateless(call)
        # timm itself stores the activations if there is a mask.
        return run_block(block, inputs, checkpointing=self.grad_checkpointing and not masked, call=call)

    def end(self, inputs: tuple[Tensor, State]) -> tuple[Tensor, State]:
        """The stage slot: maps ([N, tokens, C], state) to the same shapes."""
        x, state = inputs
        attention = getattr(self, "attn", None)
        if attention is None or len(self.blocks) < len(self.feature_info):  # blocks that no feature needs were removed
            return inputs
        x, state = run_block(attention, (to_map(x), state))
        return to_tokens(x), state

    def steps(self, attn_mask: Tensor | None = None, is_causal: bool = False) -> list[Step]:
        blocks = [partial(self.run_block, block, attn_mask=attn_mask, is_causal=is_causal) for block in self.blocks]
        return [stateless(self.embed), *blocks, self.end, stateless(self.norm)]

    def taps(self) -> list[int]:
        count = len(self.blocks)
        return [*range(1, count), count + 1]  # the last is after the stage slot

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        inputs: tuple[Tensor, State] = (x, START)
        for step in self.steps(attn_mask, is_causal):
            inputs = step(inputs)
        return inputs[0]

    def collect(
        self,
        x: Tensor,
        taps: list[int],
        indices: int | list[int] | None,
        norm: bool,
        stop_early: bool,
        output_fmt: str,
        intermediates_only: bool,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """As in timm: with `norm`, the last norm applies to all features; it always applies to the last map."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: only NCHW exists for {type(self).__name__}")
        take, last = feature_take_indices(len(taps), indices)
        wanted = {taps[i] for i in take}
        size = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        inputs: tuple[Tensor, State] = (x, START)
        found = []
        for i, step in enumerate(self.steps()[: (taps[last] if stop_early else taps[-1]) + 1]):
            inputs = step(inputs)
            if i in wanted:
                tokens = self.norm(inputs[0]) if norm else inputs[0]
                found.append(tokens[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, size).contiguous())
        return found if intermediates_only else (self.norm(inputs[0]), found)


def sockets(model: Any, slot: Slot, where: str) -> Iterator[Socket]:
    last = len(model.blocks) - 1
    for depth, (block, info) in enumerate(zip(model.blocks, model.feature_info, strict=True)):
        width = info["num_chs"]
        position: dict[str, Any] = {"stage": 1, "block": depth, "depth": depth, "stride": info["reduction"]}
        if slot == "block" and isinstance(block, Block):
            yield Socket(Site(widths=(width,) * 3, **position), block, "gate")
        elif slot == "stage" and depth == last:
            yield Socket(Site(widths=(width,), **position), model, "attn")


FAMILY = Family(
    network=timm_vit.VisionTransformer,
    classes={timm_vit.Block: Block, timm_vit.VisionTransformer: VisionTransformer},
    sockets=sockets,
    conv_kinds=(),
)
