"""Selective kernels connected along the depth of the network. DCANet, Ma et al., 2020 (section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from attn.attention import Attention, Reading, Site
from attn.modules.dca import Form, Matching, Printed, Schema, connection_of, matched_width, matcher, parameters_of
from attn.modules.sk import SK

HandOn = Literal["descriptor", "weights"]


class DCASK(Attention):
    """`SK` whose branch descriptors are each joined with the previous block's; their sum gives the weights.

    Args:
        site: the position, with `conv`.
        base: builds the `SK` from a site.
        connection: the schema of `attn.modules.dca.Printed`.
        matching: layers of the size matching (one per branch), used if the channels differ from the previous block's.
        reduction: of the two-layer size matching.
        bias: whether the joins of the form `released` have a bias.
        hand_on: what the next block gets of each branch: `descriptor` is the pooled branch times its weights; `weights` is
            the weights alone (the authors' MobileNetV2).
        unused: also create the joins of the first block, which the authors' networks contain but never use.
        form: of the joins: `released` (the authors' code) or `equations` (eqs. 2 to 4 alone), as in `attn.modules.dca.DCA`.

    Raises:
        ValueError: `base` is not an `SK`.
    """

    takes_norm_act = True

    def __init__(
        self,
        site: Site,
        base: Callable[[Site], Attention] = SK,
        connection: Schema = "direct",
        matching: Matching = "1fc",
        reduction: float = 16,
        bias: bool = True,
        hand_on: HandOn = "descriptor",
        unused: bool = False,
        form: Form = "released",
    ) -> None:
        super().__init__()
        sk = base(site)
        if not isinstance(sk, SK):
            raise ValueError(f"dca_sk connects SK, not {type(sk).__name__}; use dca_se, dca_cbam ... for others")
        self.base = sk
        self.first = site.prev is None  # it has no previous site, so its joins are never used
        self.hand_on = hand_on
        branches = range(len(sk.branches))
        matched_width(site.width, matching, reduction)
        previous = None if site.prev is None else site.prev[-1]
        self.connects = self.matches = None
        if previous is not None or unused:
            self.connects = nn.ModuleList(connection_of(form, site.width, connection, bias) for _ in branches)
        if previous not in (None, site.width):
            self.matches = nn.ModuleList(matcher(previous, site.width, matching, reduction) for _ in branches)

    def unused_parameters(self) -> list[str]:
        return parameters_of(self, "connects") if self.first else []

    def forward(self, feats: tuple[Tensor, ...], state: Tensor | None) -> tuple[Tensor, Tensor]:
        maps = self.base.split(feats[-1])
        own = self.base.squeeze(maps)
        weights = self.weights(own, state)
        handed = weights if self.hand_on == "weights" else own * weights
        return self.base.select(maps, weights), handed.to(own.dtype)

    def weights(self, own: Tensor, state: Tensor | None) -> Tensor:
        """The weights [N, M, C] of the M branches, from their own descriptors and the previous block's, both [N, M, C]."""
        joined = own
        if state is not None:
            assert self.connects is not None, "a site with a previous one has connections"
            previous = list(state.unbind(1))
            if self.matches is not None:
                previous = [match(p) for match, p in zip(self.matches, previous, strict=True)]
            pairs = zip(self.connects, own.unbind(1), previous, strict=True)
            joined = torch.stack([connect(g, t) for connect, g, t in pairs], 1)
        return self.base.excite(joined.sum(1))

    def reading(self, feats: tuple[Tensor, ...], state: Tensor | None) -> Reading:
        own = self.base.squeeze(self.base.split(feats[-1]))
        return Reading({"branch": self.weights(own, state)}, tuple(own.unbind(1)))

    def connections(self) -> dict[str, tuple[Tensor, Tensor]]:
        if self.first or self.connects is None:
            return {}
        joins = [join for join in self.connects if isinstance(join, Printed)]
        return {f"branch {i}": join.scalars() for i, join in enumerate(joins, start=1)}
