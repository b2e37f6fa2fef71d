"""Auxiliary losses that attentions add to the loss of the task.

An `Attention` class defines one with a static method

    objective(model, images, targets, logits) -> scalar

a pure function of the batch, of the model's training output for it, and of the parameters. A loop calls it in the same
autocast context, adds it to its loss, and takes one backward pass over the sum:

    logits = net(images)                                    # net: the model, or DDP around it
    loss = criterion(logits, targets) + extra_loss(model, images, targets, logits)
    loss.backward()

With gradient accumulation it is part of each micro-batch's loss. With DDP, parameters that only an objective uses get their
gradient in the same backward pass as all others, so none is unused. A loop without objectives, such as a detector's, ignores
these parameters: `Attention.objective_parameters` names them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attn.attention import Attention

Objective = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def objectives(model: nn.Module) -> list[Objective]:
    """The objectives of a model's attentions, each once; most attentions have none."""
    asked = (getattr(type(module), "objective", None) for module in model.modules() if isinstance(module, Attention))
    return list(dict.fromkeys(objective for objective in asked if objective is not None))


def extra_loss(model: nn.Module, images: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
    """The sum of the objectives, a scalar in fp32; 0 where there are none.

    Args:
        model: the network, not wrapped in DDP.
        images: [N, 3, H, W], as the model got them.
        targets: classes [N], or their probabilities [N, K] (mixup).
        logits: [N, K], the model's output for the images in training mode.
    """
    total = torch.zeros((), device=logits.device)
    for objective in objectives(model):
        total = total + objective(model, images, targets, logits)
    return total
