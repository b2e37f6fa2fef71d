"""Global context connected along the depth of the network. DCANet's released code (Ma et al., 2020); not in the paper."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attn.attention import Attention, Reading, Site
from attn.modules.dca import Form, Matching, Printed, Schema, matched_width, parameters_of, previous_width
from attn.modules.gc import GC


class DCAGC(Attention):
    """`GC` whose context G is joined with the previous block's additive term T, which has no fixed range.

    - `released`, the authors' code: G + w T with one learnable scalar w. This is the direct schema (eq. 3) with alpha fixed
      at 1 and beta = w; unlike in their other attentions no bias, norm or ReLU follows.
    - `equations`: f(alpha G, beta T) of eqs. 2 to 4, both learnable.

    w, like beta, starts at 0, so a new network is a plain GC network in both forms.

    Args:
        site: the position.
        base: builds the `GC` from a site.
        matching: layers of the size matching, used if the channels differ from the previous block's. `2fc` is Linear,
            LayerNorm, ReLU, Linear, with nothing after it; `1fc` is one Linear.
        reduction: of the two-layer size matching.
        unused: also create what the authors' network contains but never uses: the scalar of the first block, and a size
            matching there if the block's own input and output differ.
        form: `released` or `equations`.
        connection: the schema of `attn.modules.dca.Printed`; the form `released` allows only `direct`.

    Raises:
        ValueError: `base` is not a `GC`, or two settings cannot be combined.
    """

    def __init__(
        self,
        site: Site,
        base: Callable[[Site], Attention] = GC,
        matching: Matching = "2fc",
        reduction: float = 16,
        unused: bool = False,
        form: Form = "released",
        connection: Schema = "direct",
    ) -> None:
        super().__init__()
        gc = base(site)
        if not isinstance(gc, GC):
            raise ValueError(f"dca_gc connects GC, not {type(gc).__name__}; use dca_se, dca_cbam ... for others")
        if form == "released" and connection != "direct":
            raise ValueError(f"DCA: connection={connection!r} of GC is not in the released code; set form=equations with it")
        self.base = gc
        self.first = site.prev is None  # it has no previous site, so its joins are never used
        matched_width(site.width, matching, reduction)
        previous = previous_width(site, unused)
        self.weight = nn.Parameter(torch.zeros(())) if previous is not None and form == "released" else None
        self.connect = Printed(connection) if previous is not None and form == "equations" else None
        self.match = None if previous in (None, site.width) else term_matcher(previous, site.width, matching, reduction)

    def unused_parameters(self) -> list[str]:
        return parameters_of(self, "weight", "connect", "match") if self.first else []

    def forward(self, feats: tuple[Tensor, ...], state: Tensor | None) -> tuple[Tensor, Tensor]:
        term = self.base.transform(self.context(feats[-1], state))
        return self.base.add(feats[-1], term), term

    def context(self, x: Tensor, state: Tensor | None) -> Tensor:
        """The context [N, C] of x [N, C, H, W], joined with the previous block's term."""
        context = self.base.context(x)
        if state is not None:
            previous = state if self.match is None else self.match(state)
            if self.connect is not None:
                context = self.connect(context, previous)
            else:
                assert self.weight is not None, "a site with a previous one has a weight or a connection"
                context = context + self.weight * previous.to(context.dtype)
        return context

    def reading(self, feats: tuple[Tensor, ...], state: Tensor | None) -> Reading:
        return Reading({"spatial": self.base.positions(feats[-1])}, (self.context(feats[-1], state),))

    def connections(self) -> dict[str, tuple[Tensor, Tensor]]:
        if self.first:
            return {}
        if self.connect is not None:
            return {"": self.connect.scalars()}
        return {} if self.weight is None else {"": (torch.ones_like(self.weight), self.weight)}


def term_matcher(previous: int, channels: int, matching: Matching, reduction: float) -> nn.Module:
    """Matches additive terms [N, C'] to [N, C]. Nothing bounds a term, so no norm and no ReLU follow the last layer."""
    hidden = matched_width(channels, matching, reduction)
    if matching == "1fc":
        return nn.Linear(previous, channels)
    return nn.Sequential(
        nn.Linear(previous, hidden), nn.LayerNorm(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
    )
