"""How much each block's attention takes from the previous one. DCANet, Figure 5.

The join of a block is f(alpha G, beta T) of its own descriptor G and the previous block's T. Both scalars may have either sign, so
the contribution of T is |beta| / (|alpha| + |beta|). The first block has no previous one; the join that the authors' networks
contain there is never used, and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from attn.analysis import style
from attn.analysis.files import Table
from attn.analysis.readings import nothing
from attn.analysis.subjects import Subject
from attn.analysis.trace import forward
from attn.attention import Attention
from attn.config.analysis import Connections

FORMULA = "contribution of the previous attention, |beta| / (|alpha| + |beta|)"


@dataclass(frozen=True)
class Contribution:
    """The connections of one kind in one network.

    Attributes:
        name: the network, and of CBAM which of its attentions.
        index: number of the block that a connection leads into, from 1 for the network's first; [J].
        blocks: their labels.
        alpha, beta: the scalars; of SK, [J, branches], else [J, 1].
        share: |beta| / (|alpha| + |beta|), of SK the mean of the branches, [J]; NaN where both scalars are 0.
    """

    name: str
    index: np.ndarray
    blocks: list[str]
    alpha: np.ndarray
    beta: np.ndarray
    share: np.ndarray


@torch.inference_mode()
def measure(name: str, model: nn.Module, image_size: int) -> list[Contribution]:
    """The connections of a network; for a CBAM those of channels and of positions apart.

    Args:
        name: the network, for the legend.
        model: the network; the same afterwards.
        image_size: side of the images that it takes, in pixels; one is passed to find the order of its blocks.

    Raises:
        UserError: the network has no connection.
    """
    device = next(model.parameters()).device
    blocks = forward(model, torch.zeros(1, 3, image_size, image_size, device=device)).blocks
    joins: dict[str, list[tuple[int, str, list[tuple[float, float]]]]] = {}
    number = 0
    for block in blocks:
        number += not block.label.endswith(".end")
        for call in block.passage.calls:
            if not isinstance(call.module, Attention):
                continue
            kinds: dict[str, list[tuple[float, float]]] = {}
            for part, (alpha, beta) in call.module.connections().items():
                kind = "" if part.startswith("branch ") else part
                kinds.setdefault(kind, []).append((float(alpha), float(beta)))
            for kind, scalars in kinds.items():
                joins.setdefault(kind, []).append((number, block.label, scalars))
    if not joins:
        raise nothing(name, model, "no connection between attentions")
    found = []
    for kind, rows in joins.items():
        pairs = np.array([row[2] for row in rows])  # [J, branches, 2]
        size = np.abs(pairs)
        with np.errstate(invalid="ignore"):
            share = (size[..., 1] / size.sum(-1)).mean(1)
        label = f"{name} ({kind})" if kind else name
        index = np.array([row[0] for row in rows])
        found.append(Contribution(label, index, [row[1] for row in rows], pairs[..., 0], pairs[..., 1], share))
    return found


@style.styled
def draw(found: Sequence[Contribution]) -> Figure:
    """A line per network over the number of the block that the connection leads into."""
    figure, axes = style.panels(1, 1, width=6.0, height=3.0)
    panel = axes[0, 0]
    for number, one in enumerate(found):
        look = {"color": style.colour(number), "marker": style.marker(number), "linestyle": style.dash(number)}
        panel.plot(one.index, one.share, label=one.name, markersize=4, **look)
    panel.axhline(0.5, color="grey", linewidth=0.8, zorder=0)
    panel.set(xlabel="block that the connection leads into", ylabel=FORMULA.replace(", ", "\n"), ylim=(0, 1))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, loc="best")
    return figure


def table(found: Sequence[Contribution]) -> Table:
    """A row per network and connection; the scalars of several branches are separated by spaces."""
    rows = [
        (one.name, int(i), block, " ".join(f"{v:.6g}" for v in a), " ".join(f"{v:.6g}" for v in b), float(share))
        for one in found
        for i, block, a, b, share in zip(one.index, one.blocks, one.alpha, one.beta, one.share, strict=True)
    ]
    return Table(("network", "index", "block", "alpha", "beta", "contribution"), rows)


def run(subjects: Sequence[Subject], options: Connections) -> tuple[Figure, Table]:
    """The job of `scripts/analyse.py connections`."""
    found = [one for s in subjects for one in measure(s.name, s.model, s.cfg.data.image_size)]
    return draw(found), table(found)
