"""Deep reinforced attention learning. Li, Chen: Deep Reinforced Attention Learning for Quality-Aware Visual Recognition,
ECCV 2020, arXiv 2007.06156. This implementation uses SE as the attention.

Known from the paper's abstract and from the sizes that BA-Net's table prints: the attentions are actors; a recurrent critic,
shared along the depth and used in training only, scores each attention map; the reward is discrete and depends on how much
the one attention improves the recognition; critic and actors are optimised alternately; SE-ResNet-50 and -101 without biases
grow by 0.05 M and 0.07 M.

Unknown, and chosen here: the reward (1 where the true class is more probable with the attention than with its weights
replaced by their mean, else 0), which attentions are tried (one at random per image and step), the critic's input (the map,
one weight per channel, averaged in 64 groups), its cell (an LSTM of width 64, then one sigmoid unit), the two losses
(squared error; minus the score) and their weights. These choices give both printed sizes, 28.12 M and 49.36 M.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn.attention import Attention, Site
from attn.modules.se import SE


class DREAL(SE):
    """SE, trained by `objective` with a recurrent critic.

    A forward pass is that of SE: it does not use the critic, which gets a gradient only from `objective`, which the training
    loop adds to its loss (`attn.models.auxiliary`). Without it, as in a detector, the critic's parameters stay as they are;
    `objective_parameters` names them, so that DDP ignores them.

    Args:
        site: the position; any [N, C, H, W].
        reduction: of SE.
        bias: of SE; BA-Net's table has none.
        critic_width: number of channel groups that the critic sees, and width of its LSTM.
        actor_weight: weight of the actors' loss.
        critic_weight: weight of the critic's loss.
        first: whether this site owns the critic; `place` sets it.

    Raises:
        ValueError: `critic_width` is not positive, or a weight is negative.
    """

    def __init__(
        self,
        site: Site,
        reduction: float = 16,
        bias: bool = True,
        critic_width: int = 64,
        actor_weight: float = 0.1,
        critic_weight: float = 1.0,
        first: bool = True,
    ) -> None:
        super().__init__(site, reduction, bias)
        if critic_width < 1:
            raise ValueError(f"DREAL: critic_width={critic_width} must be 1 or more")
        if actor_weight < 0 or critic_weight < 0:
            raise ValueError(f"DREAL: actor_weight={actor_weight} and critic_weight={critic_weight} must not be negative")
        self.actor_weight, self.critic_weight = actor_weight, critic_weight
        self.view = View(site.width, critic_width)
        self.critic = Critic(critic_width) if first else None

    @classmethod
    def build(cls, sites: Sequence[Site], **options: Any) -> list[Attention | None]:
        return [cls(site, first=i == 0, **options) for i, site in enumerate(sites)]

    def folded(self) -> SE:
        """Without the critic."""
        alone: SE = SE.__new__(SE)
        nn.Module.__init__(alone)
        alone.fc1, alone.fc2, alone.gate = self.fc1, self.fc2, self.gate
        return alone

    def objective_parameters(self) -> list[str]:
        return [name for name, _ in self.named_parameters() if name.startswith(("view.", "critic."))]

    @staticmethod
    def objective(model: nn.Module, images: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
        """The loss of critic and actors for one batch, to be added to the classification loss.

        A pure function of its arguments, the parameters and torch's random numbers. It costs two forward passes without
        gradients, one to get the maps and one with one attention per image replaced by its mean. They run on a copy of the
        network that shares its parameters; batch norms normalise by the batch as in training, and running statistics do not
        change. The critic's loss trains only the critic, the actors' loss only the attentions' own layers: one step on the
        sum is one step of each, except that the actors use the critic from before its step.

        Args:
            model: the network, not wrapped in DDP; all sites come from one call of `place`.
            images: [N, 3, H, W].
            targets: classes [N], or their probabilities [N, K].
            logits: [N, K], the model's output for the images in training mode.

        Returns:
            A scalar in fp32.
        """
        sites = [module for module in model.modules() if isinstance(module, DREAL)]
        critic = sites[0].critic
        assert critic is not None, "the first site owns the critic"
        tried = torch.randint(len(sites), (len(images),), device=images.device)
        descriptors, _ = observe(model, images, None)
        _, levelled = observe(model, images, tried)
        with torch.autocast(images.device.type, enabled=False):
            reward = (likelihood(logits.detach(), targets) > likelihood(levelled, targets)).float()
            maps = [site.excite(z.float()) for site, z in zip(sites, descriptors, strict=True)]

            scores = critic([site.view(a.detach()) for site, a in zip(sites, maps, strict=True)])
            critic_loss = F.mse_loss(scores.gather(1, tried[:, None])[:, 0], reward)

            seen = [frozen(site.view, a) for site, a in zip(sites, maps, strict=True)]
            actor_loss = -frozen(critic, seen).mean()
        return sites[0].critic_weight * critic_loss + sites[0].actor_weight * actor_loss


class View(nn.Module):
    """An attention map as the critic sees it: [N, C] to [N, groups], the weighted mean of each group of channels."""

    group: Tensor

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        part = torch.arange(channels) * groups // channels
        members = F.one_hot(part, groups).float()
        self.register_buffer("group", members / members.sum(0).clamp(min=1), persistent=False)

    def forward(self, a: Tensor) -> Tensor:
        return (a * self.weight) @ self.group


class Critic(nn.Module):
    """Scores of the maps along the depth: a list of [N, width] to [N, sites], each in 0 to 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, width)
        self.score = nn.Linear(width, 1)

    def forward(self, seen: Sequence[Tensor]) -> Tensor:
        state, scores = None, []
        for z in seen:
            state = self.cell(z, state)
            scores.append(self.score(state[0]).sigmoid())
        return torch.cat(scores, 1)


class Probe(Attention):
    """Replaces a site in the copy: records its descriptor, and uses the weights' mean for the images that try it."""

    def __init__(self, site: DREAL, index: int, tried: Tensor | None, descriptors: list[Tensor]) -> None:
        super().__init__()
        self.site, self.index, self.tried, self.descriptors = site, index, tried, descriptors

    def refine(self, x: Tensor) -> Tensor:
        z = self.site.squeeze(x)
        self.descriptors.append(z)
        weights = self.site.excite(z)
        if self.tried is not None:
            levelled = weights.mean(1, keepdim=True).expand_as(weights)
            weights = torch.where((self.tried == self.index)[:, None], levelled, weights)
        return self.site.scale(x, weights)


@torch.no_grad()
def observe(model: nn.Module, images: Tensor, tried: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Descriptors [N, C] of all sites, and the logits; the site `tried` [N] of each image (None: none) uses mean weights."""
    # The parameters are in the memo, so they are not copied. The buffers are copied, so that the model's own do not change.
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    descriptors: list[Tensor] = []
    names = [name for name, module in twin.named_modules() if isinstance(module, DREAL)]
    for index, name in enumerate(names):
        site = twin.get_submodule(name)
        assert isinstance(site, DREAL)
        twin.set_submodule(name, Probe(site, index, tried, descriptors))
    logits = twin(images)
    return descriptors, logits


def likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Probability of the true class, [N]; for soft targets, its expected value."""
    probabilities = logits.float().softmax(1)
    if targets.ndim == 1:
        return probabilities.gather(1, targets[:, None])[:, 0]
    return (probabilities * targets).sum(1)


def frozen(module: nn.Module, *inputs: Any) -> Tensor:
    """The module's output, without a gradient to its parameters."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return torch.func.functional_call(module, parameters, inputs)
