"""Squeeze-and-Excitation. Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018."""

from torch import Tensor, nn

from attn.attention import Gate, Site, hidden_width


class SE(Gate):
    """Weights = sigmoid(W2 relu(W1 gap(x))) (eqs. 2 and 3).

    Names and shapes of the parameters are timm's (`SEModule`: 1x1 convolutions `fc1` and `fc2`), so the weights of its
    `seresnet50` can be loaded.

    Args:
        site: the position; any [N, C, H, W].
        reduction: C divided by the width between the two layers.
        bias: whether both layers have a bias. DCANet's tables include it, BA-Net's do not.
        first_reduction: a different reduction for the first block of each stage (DCANet, Table 2e and MnasNet).

    Raises:
        ValueError: a reduction leaves no channel.
    """

    def __init__(self, site: Site, reduction: float = 16, bias: bool = True, first_reduction: float | None = None) -> None:
        super().__init__()
        if first_reduction is not None and site.block == 0:
            reduction = first_reduction
        hidden = hidden_width(site.width, reduction, "SE")
        self.fc1 = nn.Conv2d(site.width, hidden, 1, bias=bias)
        self.fc2 = nn.Conv2d(hidden, site.width, 1, bias=bias)

    def excite(self, z: Tensor) -> Tensor:
        z = self.fc1(z[:, :, None, None]).relu()
        return self.fc2(z).sigmoid().flatten(1)
