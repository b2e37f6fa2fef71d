"""Frequency channel attention. Qin, Zhang, Wu, Li: FcaNet, ICCV 2021."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attn.attention import Gate, Site, hidden_width
from attn.modules._layers import bin_average

# FcaNet-TS: the 16 lowest-frequency winners of the two-step selection, best first, on a 7 x 7 grid.
ROWS = (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2)
COLUMNS = (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2)


class DCT(nn.Module):
    """Multi-spectral pooling, [N, C, H, W] to [N, C]: the channels are split into 16 parts with one frequency each (eq. 10).

    A channel of part i is multiplied by cos(pi u_i (y + 1/2) / S) cos(pi v_i (x + 1/2) / S) / S, times sqrt 2 for each of u
    and v that is not 0, and summed over the map: frequency (0, 0) is S times the average. Maps that are not S x S are first
    averaged to this size. The parts are equal if 16 divides the channels, else as equal as possible.

    The weights are not parameters but a buffer of 16 S^2 values, which depends only on the settings; state dicts do not
    contain it. The authors' checkpoints contain it, once per channel, as `dct_layer.weight` [C, S, S].

    Args:
        channels: C.
        size: S, at least 7.

    Raises:
        ValueError: `size` is below 7, where the frequencies are not distinct.
    """

    basis: Tensor
    part: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        if size < 7:
            raise ValueError(f"Fca: maps of {size} pixels have fewer than the 7 frequencies; use at least 7")
        self.size = size
        step = size // 7
        maps = [torch.outer(cosine(u * step, size), cosine(v * step, size)) for u, v in zip(ROWS, COLUMNS, strict=True)]
        self.register_buffer("basis", torch.stack(maps), persistent=False)
        self.register_buffer("part", torch.arange(channels) * len(ROWS) // channels, persistent=False)

    def folded(self) -> FixedDCT:
        """The same with the weights of every channel in memory, C S^2 values."""
        return FixedDCT(self.basis[self.part])

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.size, self.size):
            x = bin_average(x, (self.size, self.size))
        return (x * self.basis[self.part].to(x.dtype)).sum((2, 3))

    def weights(self, height: int, width: int) -> Tensor:
        """[C, H, W]: what a map is multiplied by before it is summed; averaging to S x S included."""
        maps = self.basis
        for axis, length in ((1, height), (2, width)):
            if length != self.size:
                bins = bin_average(torch.eye(length, device=maps.device)[None, ..., None], (self.size, 1))[0, ..., 0]
                maps = torch.tensordot(maps, bins.to(maps.dtype), ([axis], [1])).movedim(-1, axis)
        return maps[self.part]

    @staticmethod
    def map_size(site: Site, input_size: int) -> int:
        """S: the side of the site's maps for images of `input_size` pixels, at least 7.

        Raises:
            ValueError: `input_size` is not positive.
        """
        if input_size < 1:
            raise ValueError(f"Fca: input_size={input_size} must be the side of the input images in pixels, at least 1")
        return max(7, -(-input_size // site.stride))


class FixedDCT(nn.Module):
    """`DCT` with given maps [C, S, S]."""

    maps: Tensor

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.register_buffer("maps", maps)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self.maps.shape[1:]:
            x = bin_average(x, (self.maps.shape[1], self.maps.shape[2]))
        return (x * self.maps.to(x.dtype)).sum((2, 3))


class Fca(Gate):
    """SE whose global average is replaced by `DCT`: FcaNet-TS.

    Args:
        site: the position; any [N, C, H, W].
        reduction: C divided by the width between the two layers.
        bias: whether both layers have a bias; the authors' have none.
        input_size: side of the input images in pixels, which with the stride of the site gives S (56, 28, 14 and 7 in a
            ResNet at 224; 7 where it would be less). Other images work too: their maps are averaged to S x S.

    Raises:
        ValueError: `input_size` is not positive, or `reduction` leaves no channel.
    """

    def __init__(self, site: Site, reduction: float = 16, bias: bool = False, input_size: int = 224) -> None:
        super().__init__()
        hidden = hidden_width(site.width, reduction, "Fca")
        self.dct = DCT(site.width, DCT.map_size(site, input_size))
        self.fc1 = nn.Linear(site.width, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, site.width, bias=bias)

    def squeeze(self, x: Tensor) -> Tensor:
        return self.dct(x)

    def squeeze_moments(self, mean: Tensor, variance: Tensor | None) -> Tensor:
        return mean  # `basis` has made it the sum that `squeeze` computes

    def takes_means(self) -> bool:
        return True

    def basis(self, height: int, width: int) -> Tensor:
        return self.dct.weights(height, width)

    def excite(self, z: Tensor) -> Tensor:
        return self.fc2(self.fc1(z).relu()).sigmoid()


def cosine(frequency: int, size: int) -> Tensor:
    """One basis function of the orthonormal DCT-II, [size]."""
    t = torch.arange(size) + 0.5
    return torch.cos(math.pi * frequency * t / size) * ((2 if frequency else 1) / size) ** 0.5
