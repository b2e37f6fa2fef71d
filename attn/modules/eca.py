"""Efficient channel attention. Wang et al.: ECA-Net, CVPR 2020."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from attn.attention import Gate, Site


class ECA(Gate):
    """Weights = sigmoid(conv1d_k(gap(x))) over the channels (eqs. 5 to 7).

    Args:
        site: the position; any [N, C, H, W].
        kernel_size: one odd size, one per stage (the released ResNets: 3, 5, 5, 7), or None for the paper's rule
            k = odd(|log2(C) / gamma + beta / gamma|).
        gamma: the rule's gamma.
        beta: the rule's b.

    Raises:
        ValueError: a size is even or not positive, or is missing for a stage.
    """

    def __init__(
        self, site: Site, kernel_size: int | Sequence[int] | None = None, gamma: float = 2, beta: float = 1
    ) -> None:
        super().__init__()
        if kernel_size is None:
            k = int(abs(math.log2(site.width) + beta) / gamma)
            k += 1 - k % 2
        elif isinstance(kernel_size, int):
            k = kernel_size
        elif site.stage <= len(kernel_size):
            k = kernel_size[site.stage - 1]
        else:
            raise ValueError(
                f"ECA: kernel_size={list(kernel_size)} has no entry for stage {site.stage}; give one odd size per stage"
            )
        if k < 1 or k % 2 == 0:
            raise ValueError(f"ECA: kernel_size={k} must be odd and positive")
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def excite(self, z: Tensor) -> Tensor:
        return self.conv(z[:, None, :]).sigmoid()[:, 0, :]
