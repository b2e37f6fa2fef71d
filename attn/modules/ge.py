"""Gather-Excite with global extent. Hu, Shen, Albanie, Sun, Vedaldi: Gather-Excite, NeurIPS 2018."""

import torch.nn.functional as F
from torch import Tensor, nn

from attn.attention import Gate, Site, hidden_width
from attn.modules._layers import VectorBatchNorm


class GEThetaMinus(Gate):
    """Weights = sigmoid(gap(x)): GE-theta-minus, without parameters (section 3.2).

    Args:
        site: the position; any [N, C, H, W].
    """

    def __init__(self, site: Site) -> None:
        super().__init__()

    def excite(self, z: Tensor) -> Tensor:
        return z.sigmoid()


class GETheta(Gate):
    """GE-theta: the map is gathered by a depthwise convolution of the map's size, then BatchNorm and sigmoid (section 3.3).

    Args:
        site: the position; any [N, C, H, W].
        input_size: side of the input images in pixels, which with the stride of the site gives the kernel (56, 28, 14 and 7
            in a ResNet at 224). Maps of another size are first averaged, adaptively, to the size of the kernel.

    Raises:
        ValueError: `input_size` is not positive.
    """

    def __init__(self, site: Site, input_size: int = 224) -> None:
        super().__init__()
        if input_size < 1:
            raise ValueError(f"GE: input_size={input_size} must be the side of the input images in pixels, at least 1")
        self.extent = -(-input_size // site.stride)
        self.gather = nn.Conv2d(site.width, site.width, self.extent, groups=site.width, bias=False)
        self.norm = VectorBatchNorm(site.width)

    def squeeze(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.extent or x.shape[3] != self.extent:
            x = F.adaptive_avg_pool2d(x, self.extent)
        return self.norm(self.gather(x).flatten(1))

    def excite(self, z: Tensor) -> Tensor:
        return z.sigmoid()


class GEThetaPlus(GETheta):
    """GE-theta-plus: between GE-theta's gather and sigmoid, two layers as in SE (section 3.3).

    Args:
        site: the position; any [N, C, H, W].
        input_size: as in `GETheta`.
        reduction: C divided by the width between the two layers.
        bias: whether both layers have a bias.

    Raises:
        ValueError: `input_size` is not positive, or `reduction` leaves no channel.
    """

    def __init__(self, site: Site, input_size: int = 224, reduction: float = 16, bias: bool = True) -> None:
        super().__init__(site, input_size)
        hidden = hidden_width(site.width, reduction, "GE")
        self.fc1 = nn.Linear(site.width, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, site.width, bias=bias)

    def excite(self, z: Tensor) -> Tensor:
        return self.fc2(self.fc1(z).relu()).sigmoid()
