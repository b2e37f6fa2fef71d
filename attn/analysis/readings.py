"""Which of the weights that attentions hand out a figure shows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from attn.attention import Attention, Reading
from attn.errors import UserError

KINDS = ("channel", "branch", "filter", "joint", "spatial", "image")  # the first that there is counts
CHANNELS = ("channel", "branch", "filter", "joint")


def values(readings: Sequence[Reading], kind: str | None = None) -> tuple[str, Tensor] | None:
    """Weights of a block with their kind: the given one, or the first of `KINDS`; of several attentions those of the last."""
    for name in KINDS if kind is None else (kind,):
        for reading in reversed(readings):
            if name in reading.weights:
                return name, reading.weights[name]
    return None


def channel_profile(readings: Sequence[Reading]) -> Tensor | None:
    """One weight per image and channel, [N, C], or None.

    Of an attention with several weights per channel it is their mean over positions or taps; of several branches the first one's.
    """
    for name in CHANNELS:
        found = values(readings, name)
        if found is not None:
            weights = found[1]
            if name == "branch":
                return weights[:, 0]
            return weights if weights.ndim == 2 else weights.flatten(2).mean(2)
    return None


def attention_names(model: nn.Module) -> str:
    """The classes of a network's attentions, for a message."""
    found = dict.fromkeys(type(m).__name__ for m in model.modules() if isinstance(m, Attention))
    return ", ".join(found) or "no attention"


def nothing(name: str, model: nn.Module, what: str) -> UserError:
    """The error for a figure that makes no sense for a network; `what` is that which it lacks."""
    return UserError(
        f"{name} has {what}: {attention_names(model)} in {type(model).__name__}; this figure makes no sense for it"
    )
