"""No attention at all: removes the backbone's own (`attention=none` keeps it)."""

from torch import Tensor

from attn.attention import Attention, Site


class Strip(Attention):
    """The identity, without parameters."""

    def __init__(self, site: Site) -> None:
        super().__init__()

    def refine(self, x: Tensor) -> Tensor:
        return x
