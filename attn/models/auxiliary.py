"""Losses of their own that attentions bring to the training, beside that of the task.

An `Attention` class asks for one by a static method

    objective(model, images, targets, logits) -> scalar

a pure function of the batch, of what the model gave for it in training, and of the parameters. A loop calls it in the same
autocast context, adds it to its loss, and takes one backward pass over the sum:

    logits = net(images)                                    # net: the model, or DDP around it
    loss = criterion(logits, targets) + extra_loss(model, images, targets, logits)
    loss.backward()

Under gradient accumulation it is part of each micro-batch's loss. With DDP, what an objective alone reaches gets its gradient
in the same backward pass as all else, so that nothing is left unused. A loop that adds no objectives, such as a detector's, leaves
these parameters alone: `Attention.objective_parameters` names them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attn.attention import Attention

Objective = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def objectives(model: nn.Module) -> list[Objective]:
    """The objectives of a model's attentions, each once; for most attentions none."""
    asked = (getattr(type(module), "objective", None) for module in model.modules() if isinstance(module, Attention))
    return list(dict.fromkeys(objective for objective in asked if objective is not None))


def extra_loss(model: nn.Module, images: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
    """The sum of the objectives, a scalar in fp32; 0 where there are none.

    Args:
        model: the network, not wrapped in DDP.
        images: [N, 3, H, W], as the model got them.
        targets: classes [N], or their probabilities [N, K] (mixup).
        logits: [N, K], what the model in training gave for the images.
    """
    total = torch.zeros((), device=logits.device)
    for objective in objectives(model):
        total = total + objective(model, images, targets, logits)
    return total
