"""timm's interface for networks that timm lacks: a stem, stages that pass (map, state), a last module, a classifier."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from timm.layers import create_classifier
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from attn.backbones.network import Network, Step, run_stage, stateless

# timm's default_cfg of a network for ImageNet, with the names of a ResNet's layers.
IMAGENET = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "conv1",
    "classifier": "fc",
}


class Staged(Network):
    """Base of our own networks. A subclass builds its modules, then calls `finish`.

    `stage_names` are the attributes of the stages, each an `nn.Sequential` of blocks that map (x, state) to (x, state).
    `last` is the attribute of the module between the stages and the classifier; `last_is_norm`: whether `norm=True` of
    `forward_intermediates` applies it to the last feature. `head` is the attribute of the classifier.
    """

    stage_names: tuple[str, ...]
    last: str
    head = "fc"

    feature_info: list[dict[str, Any]]
    num_classes: int
    num_features: int
    grad_checkpointing: bool

    def finish(self, width: int, num_classes: int, global_pool: str, drop_rate: float, **info: Any) -> None:
        """Adds the classifier and initialises the weights.

        Args:
            width: output channels of `last`.
            num_classes: outputs; 0 for none.
            global_pool: timm's name of the pooling.
            drop_rate: dropout before the classifier.
            info: `chs` and `reductions`, one entry for the stem and one per stage.
        """
        names = ("stem", *self.stage_names)
        self.feature_info = [
            {"num_chs": chs, "reduction": reduction, "module": name}
            for chs, reduction, name in zip(info["chs"], info["reductions"], names, strict=True)
        ]
        self.num_features, self.num_classes, self.drop_rate = width, num_classes, drop_rate
        self.grad_checkpointing = False
        self.global_pool, classifier = create_classifier(width, num_classes, pool_type=global_pool)
        self.head_hidden_size = width * self.global_pool.feat_mult()
        self.head_drop = nn.Dropout(drop_rate)
        setattr(self, self.head, classifier)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def stem(self, x: Tensor) -> Tensor:
        """The first feature, [N, C, H, W]."""
        raise NotImplementedError(f"{type(self).__name__} does not override stem")

    def pool(self, x: Tensor) -> Tensor:
        """The layer between the stem and the first stage; by default the identity."""
        return x

    def stages(self) -> list[nn.Module]:
        return [getattr(self, name) for name in self.stage_names]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's grouping of parameters, for layer-wise learning rates."""
        stage = r"^(?:layer|stage|blocks\.)(\d+)"
        return {"stem": r"^(?:conv1|conv_stem|bn1)\.", "blocks": stage if coarse else stage + r"\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return getattr(self, self.head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        weight = next(self.parameters())
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, classifier = create_classifier(self.num_features, num_classes, pool_type=pool_type)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        setattr(self, self.head, classifier.to(weight.device, weight.dtype).train(self.training))

    def steps(self) -> list[Step]:
        stages: list[Step] = [partial(run_stage, stage, checkpointing=self.grad_checkpointing) for stage in self.stages()]
        return [stateless(self.stem), stateless(self.pool), *stages, stateless(getattr(self, self.last))]

    def taps(self) -> list[int]:
        return [0, *range(2, len(self.stage_names) + 2)]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the layers that the features at `indices` do not need; returns the indices."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        shortened = last < len(self.stage_names)
        for name in self.stage_names[last:]:
            self.set_submodule(name, nn.Sequential())
        if shortened or (prune_norm if self.last_is_norm else prune_head):
            setattr(self, self.last, nn.Identity())
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return take

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else getattr(self, self.head)(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def init_conv(conv: nn.Conv2d) -> None:
    """He's initialisation by the fan-out within a group; a bias starts at 0."""
    fan_out = conv.out_channels * math.prod(conv.kernel_size) // conv.groups
    nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
