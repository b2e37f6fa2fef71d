"""Several attentions in one slot, one after the other: for example BAM, then BA2M at the end of a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from attn.attention import Attention, Reading, Site


class Chain(Attention):
    """Applies attentions in order, each to the map refined by the one before.

    Args:
        site: the position; not a `conv` slot, which holds one convolution.
        parts: functions that build an attention from a site. Each part keeps its own options, including `stages`; at a site
            that a part does not use, the chain continues without it.

    Raises:
        ValueError: `parts` is empty, or the slot is `conv`.
    """

    def __init__(self, site: Site, parts: Sequence[Callable[[Site], Attention | None]]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("Chain: parts=[] is empty; list at least one attention")
        if site.conv is not None:
            raise ValueError("Chain: a convolution can be replaced only once; use a chain in the block or stage slot")
        built = [part(site) for part in parts]
        self.length = len(built)
        # Keyed by the position in the list, so that a part has the same name if an earlier one is absent.
        self.parts = nn.ModuleDict({str(i): module for i, module in enumerate(built) if module is not None})

    def forward(self, feats: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        states = [None] * self.length if state is None else list(state)
        for key, part in self.parts.items():
            refined, states[int(key)] = part(feats, states[int(key)])
            feats = (*feats[:-1], refined)
        return feats[-1], tuple(states)

    def reading(self, feats: tuple[Tensor, ...], state: Any) -> Reading | None:
        """The readings of all parts as one; where two have weights of the same kind, those of the first part."""
        states = [None] * self.length if state is None else list(state)
        found = []
        for key, part in self.parts.items():
            assert isinstance(part, Attention)
            found.append(part.reading(feats, states[int(key)]))
            feats = (*feats[:-1], part(feats, states[int(key)])[0])
        known = [reading for reading in found if reading is not None]
        if not known:
            return None
        weights = {kind: value for reading in reversed(known) for kind, value in reading.weights.items()}
        return Reading(weights, known[0].descriptors, known[0].bridged)

    def connections(self) -> dict[str, tuple[Tensor, Tensor]]:
        parts = [part for part in self.parts.values() if isinstance(part, Attention)]
        return {name: scalars for part in reversed(parts) for name, scalars in part.connections().items()}

    @classmethod
    def build(cls, sites: Sequence[Site], **options: Any) -> list[Attention | None]:
        columns = [part.place(sites, **keywords) for part, keywords in _partials(**options)]
        rows = [[column[i] for column in columns] for i in range(len(sites))]
        return [
            cls(site, [partial(_given, module) for module in row]) if any(module is not None for module in row) else None
            for site, row in zip(sites, rows, strict=True)
        ]


def _given(module: Attention | None, _: Site) -> Attention | None:
    return module


def _partials(parts: Sequence[Any]) -> list[tuple[type[Attention], dict[str, Any]]]:
    """Class and options of every part of a chain.

    Raises:
        ValueError: a part is neither an `Attention` class nor a partial of one, or there are no parts.
    """
    if not parts:
        raise ValueError("Chain: parts=[] is empty; list at least one attention")
    found = []
    for part in parts:
        target, options = (part.func, part.keywords) if isinstance(part, partial) else (part, {})
        if not (isinstance(target, type) and issubclass(target, Attention)):
            raise ValueError(f"Chain: parts holds {target!r}, which is not an attention; give mappings with a _target_")
        found.append((target, options))
    return found
