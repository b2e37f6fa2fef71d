"""What the tests of the modules' formulas share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode with every parameter and statistic random, so that no term is hidden by its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(0.5 + noise.abs() if name.endswith("running_var") else noise)
    return module.eval()


def logistic(z: Tensor) -> Tensor:
    return 1 / (1 + (-z).exp())
