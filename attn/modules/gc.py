"""Global context. Cao, Xu, Lin, Wei, Hu: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, 2019."""

from typing import Any

from torch import Tensor, nn

from attn.attention import Attention, Reading, Site, hidden_width


class GC(Attention):
    """y = x + W2 relu(LN(W1 context(x))), context(x) = sum over positions of x softmax(W_k x) (section 4.3).

    Args:
        site: the position; any [N, C, H, W].
        reduction: C divided by the width between the two layers.
        zero_init: start as the identity (W2 = 0), as in the GCNet authors' code. The initialisation in DCANet's published
            code overwrites it.

    Raises:
        ValueError: `reduction` leaves no channel.
    """

    def __init__(self, site: Site, reduction: float = 16, zero_init: bool = True) -> None:
        super().__init__()
        hidden = hidden_width(site.width, reduction, "GC")
        self.key = nn.Conv2d(site.width, 1, 1)
        self.fc1 = nn.Linear(site.width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, site.width)
        if zero_init:
            nn.init.zeros_(self.fc2.weight)
            nn.init.zeros_(self.fc2.bias)

    def context(self, x: Tensor) -> Tensor:
        """Attention-pools [N, C, H, W] to [N, C]."""
        attention = self.positions(x).flatten(2).to(x.dtype)
        return (x.flatten(2) @ attention.transpose(1, 2)).squeeze(2)

    def positions(self, x: Tensor) -> Tensor:
        """The weights [N, 1, H, W] of the positions in the context; their sum is 1."""
        return self.key(x).flatten(2).softmax(-1).unflatten(2, x.shape[2:])

    def reading(self, feats: tuple[Tensor, ...], state: Any) -> Reading:
        return Reading({"spatial": self.positions(feats[-1])}, (self.context(feats[-1]),))

    def transform(self, context: Tensor) -> Tensor:
        """Maps a context [N, C] to the term [N, C] that every position gets."""
        return self.fc2(self.norm(self.fc1(context)).relu())

    def add(self, x: Tensor, term: Tensor) -> Tensor:
        """Adds [N, C] to every position of [N, C, H, W]."""
        return x + term.to(x.dtype)[:, :, None, None]

    def refine(self, x: Tensor) -> Tensor:
        return self.add(x, self.transform(self.context(x)))
