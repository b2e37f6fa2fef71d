"""Dense-and-implicit attention. Huang, Liang, Liang, Yang: DIANet, AAAI 2020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attn.attention import Attention, Reading, Site, hidden_width

State = tuple[Tensor, Tensor, tuple[Tensor, ...]]  # h [N, C], c [N, C], the cell's parameters


class DIA(Attention):
    """One light LSTM cell per stage, shared by its blocks, whose hidden state is the channel weights (eqs. 5 to 8).

    i, f, g, o = MLP_x(gap(x)) + MLP_h(h), each MLP C -> C / r -> 4 C with ReLU between; c' = sigmoid(f) c + sigmoid(i)
    tanh(g); h' = sigmoid(o) sigmoid(c'); the map is multiplied by h'. h and c start at 0 at the first block of a stage.

    The first block of a stage owns the cell. It passes the parameters on with the state, so that they appear only once in a
    state dict, an optimiser or a moving average.

    Args:
        site: the position; any [N, C, H, W].
        reduction: r; 20 gives the sizes of BA-Net's table; the authors' CIFAR code uses 4.
        owner: whether this site starts a cell; `place` sets it. Within a stage, a site with a different width also starts
            one.

    Raises:
        ValueError: `reduction` leaves no channel.
    """

    def __init__(self, site: Site, reduction: float = 20, owner: bool = True) -> None:
        super().__init__()
        self.cell = Cell(site.width, reduction) if owner else None

    def forward(self, feats: tuple[Tensor, ...], state: State | None) -> tuple[Tensor, State]:
        x = feats[-1]
        h, c, parameters = self.advance(x.mean((2, 3)), state)
        return x * h[:, :, None, None].to(x.dtype), (h, c, parameters)

    def advance(self, z: Tensor, state: State | None) -> State:
        """The next state of the cell, from the descriptor [N, C]."""
        if self.cell is not None:
            h = c = torch.zeros_like(z)
            parameters: tuple[Tensor, ...] = tuple(self.cell.parameters())
        else:
            assert state is not None, "a site without a cell of its own has a previous one"
            h, c, parameters = state
        return (*step(z, h, c, parameters), parameters)

    def reading(self, feats: tuple[Tensor, ...], state: State | None) -> Reading:
        z = feats[-1].mean((2, 3))
        return Reading({"channel": self.advance(z, state)[0]}, (z,))

    @classmethod
    def build(cls, sites: Sequence[Site], **options: Any) -> list[Attention | None]:
        cells = [(site.stage, site.width) for site in sites]
        owners = [i == 0 or cell != cells[i - 1] for i, cell in enumerate(cells)]
        return [cls(site, owner=owner, **options) for site, owner in zip(sites, owners, strict=True)]


class Cell(nn.Module):
    """The parameters of a cell, in the order that `step` expects."""

    def __init__(self, channels: int, reduction: float) -> None:
        super().__init__()
        hidden = hidden_width(channels, reduction, "DIA")
        self.x1, self.x2 = nn.Linear(channels, hidden), nn.Linear(hidden, 4 * channels)
        self.h1, self.h2 = nn.Linear(channels, hidden), nn.Linear(hidden, 4 * channels)


def step(z: Tensor, h: Tensor, c: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """One step of the cell: descriptor, hidden and cell state [N, C] to the next hidden and cell state."""
    wx1, bx1, wx2, bx2, wh1, bh1, wh2, bh2 = parameters
    linear = nn.functional.linear
    gates = linear(linear(z, wx1, bx1).relu(), wx2, bx2) + linear(linear(h.to(z.dtype), wh1, bh1).relu(), wh2, bh2)
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.sigmoid(), c
