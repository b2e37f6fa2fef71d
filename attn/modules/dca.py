"""Connected attention. Ma et al.: DCANet: Learning Connected Attentions for Convolutional Neural Networks, 2020.

This file has the connection, the size matching, and DCA over attentions that squeeze to one descriptor (SE, GE ...). CBAM,
SK and GC, which squeeze differently, have their own files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from attn.attention import Attention, Gate, Reading, Site, hidden_width

Schema = Literal["direct", "softmax", "weighted"]
Matching = Literal["1fc", "2fc"]
Form = Literal["released", "equations"]


class Printed(nn.Module):
    """f(alpha G, beta T) of this block's descriptor G and the previous block's T, without bias or norm (eqs. 2 to 4).

    With g = alpha G and t = beta T, element by element: `direct` g + t (eq. 3); `weighted` (g^2 + t^2) / (g + t) (eq. 4);
    `softmax` the mean of g and t under weights softmax(g, t). alpha and beta are learnable scalars, 1 and 0 at the start.
    Then `direct` and `weighted` give exactly G, so a new network equals that of the plain attention. `softmax` does not: its
    formula gives G sigmoid(G) for t = 0.

    The weighted schema has a pole at g = -t, which descriptors after a BatchNorm can reach. It is computed as
    s - 2 g t s / (s^2 + 1e-6), s = g + t: practically the same elsewhere, and finite there.

    Args:
        schema: how the two descriptors are joined.
    """

    def __init__(self, schema: Schema = "direct") -> None:
        super().__init__()
        self.schema = schema
        self.alpha_beta = nn.Parameter(torch.tensor([1.0, 0.0]))

    def scalars(self) -> tuple[Tensor, Tensor]:
        """alpha and beta."""
        return self.alpha_beta[0], self.alpha_beta[1]

    def join(self, own: Tensor, previous: Tensor) -> Tensor:
        """f(alpha G, beta T) of two tensors of one shape, in the precision of the parameters."""
        # Half precision (autocast) is too coarse near the pole, and a norm that follows needs full precision anyway.
        dtype = self.alpha_beta.dtype
        g, t = own.to(dtype) * self.alpha_beta[0], previous.to(dtype) * self.alpha_beta[1]
        if self.schema == "softmax":
            return t + torch.sigmoid(g - t) * (g - t)
        joined = g + t
        if self.schema == "weighted":
            joined = joined - 2 * g * t * joined / (joined * joined + 1e-6)
        return joined

    def forward(self, own: Tensor, previous: Tensor) -> Tensor:
        """Joins two tensors of one shape; the result has the type of `own`."""
        return self.join(own, previous).to(own.dtype)


class Connection(Printed):
    """The join of the released code: relu(LayerNorm(f(alpha G, beta T) + bias)), f as in `Printed`.

    Here alpha and beta are the weights of a 1x1 convolution from two channels to one, initialised as the network's
    convolutions are. With bias, norm and ReLU the plain attention is not a special case; in the paper it is
    (alpha = 1, beta = 0).

    The code has only `direct`. For `weighted` and `softmax` the sizes of Table 2a show only that they have the same
    parameters; we assume that they work channel by channel and that the same norm follows.

    Args:
        channels: C of the descriptors [N, C].
        schema: how the two descriptors are joined.
        bias: whether the join has a bias (in the released code: not for SE on MobileNetV2, and never for CBAM).
    """

    def __init__(self, channels: int, schema: Schema = "direct", bias: bool = True) -> None:
        super().__init__(schema)
        nn.init.normal_(self.alpha_beta, std=2**0.5)
        self.bias = nn.Parameter(torch.zeros(())) if bias else None
        self.norm = nn.LayerNorm(channels)

    def forward(self, own: Tensor, previous: Tensor) -> Tensor:
        """Joins [N, C] and [N, C] to [N, C]; the result has the type of `own`."""
        joined = self.join(own, previous)
        if self.bias is not None:
            joined = joined + self.bias
        return self.norm(joined).relu().to(own.dtype)


def connection_of(form: Form, channels: int, schema: Schema, bias: bool) -> Printed:
    """`Connection` for the form `released`, `Printed` for `equations`, which has no bias."""
    return Printed(schema) if form == "equations" else Connection(channels, schema, bias)


def matcher(previous: int, channels: int, matching: Matching, reduction: float) -> nn.Sequential:
    """Fits descriptors [N, C'] to [N, C] (section 3.3): one fully connected layer, or two with C / reduction between them.

    LayerNorm and ReLU follow each layer, as in the released code of `1fc`. For ResNets no code of `2fc` is released: the
    norm between the two layers follows from the printed 49.93 M of DCA-SE-ResNet-101 (Table 2d; 49.92 M without).

    Raises:
        ValueError: `reduction` leaves no channel.
    """
    if matching == "1fc":
        return nn.Sequential(nn.Linear(previous, channels), nn.LayerNorm(channels), nn.ReLU(inplace=True))
    hidden = matched_width(channels, matching, reduction)
    return nn.Sequential(
        *(nn.Linear(previous, hidden), nn.LayerNorm(hidden), nn.ReLU(inplace=True)),
        *(nn.Linear(hidden, channels), nn.LayerNorm(channels), nn.ReLU(inplace=True)),
    )


def matched_width(channels: int, matching: Matching, reduction: float) -> int:
    """Width between the two layers of `2fc`, or `channels` for `1fc`, which has no such layer.

    Raises:
        ValueError: `reduction` leaves no channel.
    """
    return channels if matching == "1fc" else hidden_width(channels, reduction, "DCA size matching")


def previous_width(site: Site, unused: bool) -> int | None:
    """Channels of the previous site's state; None at the first site, which has no previous one.

    With `unused`, the first site counts the channels of its block's input, as the authors' networks do.
    """
    if site.prev is not None:
        return site.prev[-1]
    return site.widths[0] if unused else None


def parameters_of(module: nn.Module, *parts: str) -> list[str]:
    """Names of the parameters in some parts of a module; each part is a parameter, a module or None."""
    return [name for name, _ in module.named_parameters() if name.partition(".")[0] in parts]


class DCA(Gate):
    """Connects a `Gate` (SE, GE-theta-minus ...) with the same gate of the previous block.

    The input of the gate's `excite` is the join of this block's descriptor and the previous block's, scaled by its weights
    (section 3.2, eq. 2). The chain runs through the whole network; the first block has no previous one and uses its plain
    gate.

    The paper says that every size matching has two layers and reduction 16. Its sizes agree only for SE-ResNets and
    GE-ResNet-50; the other rows have other settings in their configs.

    Args:
        site: the position.
        base: builds the gate from a site.
        connection: the schema of `Printed`.
        form: of the join: `released`, the `Connection` of the authors' code, whose sizes the tables print; or `equations`,
            `Printed`, with which a new network equals that of the plain attention.
        matching: layers of the size matching, used if the channels differ from the previous block's.
        reduction: of the two-layer size matching.
        bias: whether the join of the form `released` has a bias.
        unused: also create what the authors' networks contain but never use: the join of the first block, and a size
            matching there if the block's own input and output differ. Needed for the printed 28.65 M of DCA-SE-ResNet-50.

    Raises:
        ValueError: `base` is not a plain `Gate`, or `reduction` leaves no channel.
    """

    def __init__(
        self,
        site: Site,
        base: Callable[[Site], Attention],
        connection: Schema = "direct",
        matching: Matching = "2fc",
        reduction: float = 16,
        bias: bool = True,
        unused: bool = False,
        form: Form = "released",
    ) -> None:
        super().__init__()
        gate = base(site)
        if not isinstance(gate, Gate) or type(gate).forward is not Attention.forward or type(gate).excite is Gate.excite:
            raise ValueError(
                f"DCA connects attentions that squeeze one map to one descriptor (se, ge_theta_minus, eca ...), not "
                f"{type(gate).__name__}; use dca_cbam, dca_sk and dca_gc for CBAM, SK and GC"
            )
        self.base = gate
        self.first = site.prev is None  # it has no previous site, so its joins are never used
        matched_width(site.width, matching, reduction)
        previous = previous_width(site, unused)
        self.connect = None if previous is None else connection_of(form, site.width, connection, bias)
        self.match = None if previous in (None, site.width) else matcher(previous, site.width, matching, reduction)

    def unused_parameters(self) -> list[str]:
        return parameters_of(self, "connect", "match") if self.first else []

    def forward(self, feats: tuple[Tensor, ...], state: Tensor | None) -> tuple[Tensor, Tensor]:
        weights, handed_on = self.weigh([self.base.squeeze(feats[-1])], state)
        return self.base.scale(feats[-1], weights), handed_on

    def reading(self, feats: tuple[Tensor, ...], state: Tensor | None) -> Reading:
        own = self.base.squeeze(feats[-1])
        return Reading({"channel": self.weigh([own], state)[0]}, (own,))

    def connections(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {} if self.first or self.connect is None else {"": self.connect.scalars()}

    def squeeze_moments(self, mean: Tensor, variance: Tensor | None) -> Tensor:
        return self.base.squeeze_moments(mean, variance)

    def takes_moments(self) -> bool:
        return super().takes_moments() and self.base.takes_moments()

    def takes_means(self) -> bool:
        return self.base.takes_means()

    def basis(self, height: int, width: int) -> Tensor | None:
        return self.base.basis(height, width)

    def weigh(self, descriptors: Sequence[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        joined = own = descriptors[-1]
        if state is not None:
            assert self.connect is not None, "a site with a previous one has a connection"
            joined = self.connect(own, state if self.match is None else self.match(state))
        weights = self.base.excite(joined)
        return weights, own * weights
