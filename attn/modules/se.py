"""Squeeze-and-Excitation. Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018."""

from timm.layers import make_divisible
from torch import Tensor

from attn.attention import Gate, Site, hidden_width
from attn.modules._layers import VectorConv2d, activation


class SE(Gate):
    """Weights = sigmoid(W2 relu(W1 gap(x))) (eqs. 2 and 3).

    Names and shapes of the parameters are timm's (`SEModule`: 1x1 convolutions `fc1` and `fc2`), so the weights of its
    `seresnet50` can be loaded.

    Args:
        site: the position; any [N, C, H, W].
        reduction: C divided by the width between the two layers.
        bias: whether both layers have a bias. DCANet's tables include it, BA-Net's do not.
        first_reduction: a different reduction for the first block of each stage (DCANet, Table 2e and MnasNet).
        divisor: the width between the layers is rounded to a multiple of it (8 in MobileNetV3).
        gate: activation after the second layer, by timm's name (hard_sigmoid in MobileNetV3).

    Raises:
        ValueError: a reduction leaves no channel, the divisor is below 1, or the gate is unknown.
    """

    def __init__(
        self,
        site: Site,
        reduction: float = 16,
        bias: bool = True,
        first_reduction: float | None = None,
        divisor: int = 1,
        gate: str = "sigmoid",
    ) -> None:
        super().__init__()
        if first_reduction is not None and site.block == 0:
            reduction = first_reduction
        if divisor < 1:
            raise ValueError(f"SE: divisor={divisor} must be 1 or more")
        hidden = hidden_width(site.width, reduction, "SE")
        hidden = hidden if divisor == 1 else make_divisible(hidden, divisor)
        self.fc1 = VectorConv2d(site.width, hidden, bias)
        self.fc2 = VectorConv2d(hidden, site.width, bias)
        self.gate = activation(gate, "SE: gate")()

    def excite(self, z: Tensor) -> Tensor:
        return self.gate(self.fc2(self.fc1(z).relu()))
