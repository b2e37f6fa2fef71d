"""No attention at all: takes the backbone's own away (`attention=none` keeps it)."""

from torch import Tensor

from attn.attention import Attention, Site


class Strip(Attention):
    """The identity. Parameters: none."""

    def __init__(self, site: Site) -> None:
        super().__init__()

    def refine(self, x: Tensor) -> Tensor:
        return x
