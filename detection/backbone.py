"""Every backbone and attention of `attn.create_model` as one MMDetection backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.layers import BatchNormAct2d, SyncBatchNormAct, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import attn
from attn.errors import UserError
from detection import weights

LEVELS = 4  # maps that detectors see: strides 4, 8, 16 and 32 in a usual network


@MODELS.register_module()
class AttentionBackbone(BaseModule):
    """The feature maps of a timm network with attentions in its slots.

    Args:
        backbone: a name of `attn.list_backbones()`, or any timm name of a supported family.
        attention: a name of `attn.list_attentions()`, a mapping of slots as in `configs/attention/*.yaml`, or None.
        out_indices: stages whose outputs are given, from 0: of timm's `feature_info` the last four entries, which is what
            MMDetection's ResNet numbers so too (strides 4, 8, 16, 32).
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages, their attentions included: no
            gradients, and norms and dropout as at inference.
        norm_eval: keep every batch norm, those of attentions too, on its running statistics while training.
        with_cp: compute the blocks' activations again in the backward pass, which saves memory.
        sync_bn: batch statistics over all ranks, by timm's conversion, which keeps activations that are fused into norms.
        init_cfg: None for timm's initialisation, or `dict(type='Pretrained', checkpoint=..., ema=None)`: see
            `detection.weights.load_backbone`.
        timm_kwargs: passed on to `attn.create_model` (`drop_path_rate`, `output_stride`, `in_chans` ...).

    Raises:
        ValueError: a name, stage or setting does not exist, or backbone and attention do not fit.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        attention: str | Mapping[str, Any] | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        sync_bn: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
        **timm_kwargs: Any,
    ) -> None:
        super().__init__()
        if timm_kwargs.pop("pretrained", False):
            raise ValueError(
                f"pretrained=True: weights are loaded by init_cfg=dict(type='Pretrained', checkpoint='timm://{backbone}')"
            )
        self.backbone, self.init_cfg = backbone, _checked(init_cfg)
        model: Any = attn.create_model(backbone, plain(attention), num_classes=0, **plain(timm_kwargs))
        stages = list(model.feature_info)[-LEVELS:]
        _check_stages("out_indices", out_indices, range(len(stages)))
        _check_stages("frozen_stages", [frozen_stages], range(-1, len(stages) + 1))
        first = len(model.feature_info) - len(stages)
        self.out_indices, self.frozen_stages, self.norm_eval = tuple(out_indices), frozen_stages, norm_eval
        self.channels = tuple(int(stages[i]["num_chs"]) for i in self.out_indices)
        self.strides = tuple(int(stages[i]["reduction"]) for i in self.out_indices)
        self._take = [first + i for i in self.out_indices]
        self._stage_names = [str(info["module"]) for info in stages]
        whole = set(model.state_dict())
        # What no map needs (a head, later stages) would get no gradient and count as parameters.
        model.prune_intermediate_layers(self._take, prune_norm=True, prune_head=True)
        self._pruned = whole - set(model.state_dict())
        if with_cp:
            model.set_grad_checkpointing(True)
        # On one rank there is nothing to share, and MMEngine takes such norms out again.
        self.model = convert_sync_batchnorm(model) if sync_bn and is_distributed() else model
        self._fused = self._count_fused()
        for module in self._frozen():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps images [N, C, H, W] to one map per entry of `out_indices`, [N, channels, H / stride, W / stride]."""
        return tuple(self.model.forward_intermediates(x, indices=self._take, intermediates_only=True, stop_early=True))

    def train(self, mode: bool = True) -> AttentionBackbone:
        super().train(mode)
        if self._count_fused() < self._fused:
            raise UserError(
                f"sync_bn of the config took away activations that {self.backbone} has in its norms: leave it out and set"
                " model.backbone.sync_bn=True"
            )
        for module in self._frozen():
            module.training = False
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.training = False
        return self

    def init_weights(self) -> None:
        """Loads what `init_cfg` names; anything else stays as timm and the attentions initialise it.

        Raises:
            UserError: the checkpoint is missing, damaged or of another architecture, or leaves frozen layers at random.
        """
        if self.init_cfg is None:
            if self.frozen_stages >= 0:
                print_log(
                    f"frozen_stages={self.frozen_stages} without model.backbone.init_cfg: layers that stay random are frozen"
                    " (fine if load_from brings the weights)",
                    "current",
                    level=30,
                )
        else:
            options = {key: value for key, value in self.init_cfg.items() if key != "type"}
            absent = weights.load_backbone(self.model, self.backbone, self._pruned, **options)
            frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
            random = [name for name in absent if name in frozen]
            if random:
                raise UserError(
                    f"checkpoint {options['checkpoint']} lacks {len(random)} parameters of the frozen stages"
                    f" ({', '.join(random[:3])}, ...), which would stay random: start from a checkpoint of train.py with"
                    " model.backbone.init_cfg.checkpoint=..., or set model.backbone.frozen_stages=-1"
                )
            if absent:
                print_log(f"{len(absent)} parameters start at random, not in the checkpoint: {', '.join(absent)}", "current")
        self._is_init = True

    def _frozen(self) -> Iterator[nn.Module]:
        """The modules of the frozen part: all that come before the end of the last frozen stage."""
        if self.frozen_stages < 0:
            return
        names = [name for name, _ in self.model.named_modules()]
        if self.frozen_stages == 0:
            end = names.index(self._stage_names[0])
        else:
            inside = self._stage_names[self.frozen_stages - 1]
            end = max(i for i, name in enumerate(names) if name == inside or name.startswith(f"{inside}.")) + 1
        for name, module in list(self.model.named_modules())[:end]:
            # The ancestors of a stage reach over its end.
            if name and not any(later.startswith(f"{name}.") for later in names[end:]):
                yield module

    def _count_fused(self) -> int:
        return sum(isinstance(module, (BatchNormAct2d, SyncBatchNormAct)) for module in self.modules())


def plain(value: Any) -> Any:
    """MMEngine's config objects as plain containers."""
    if isinstance(value, Mapping):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(child) for child in value)
    return value


def _checked(init_cfg: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if init_cfg is None:
        return None
    known = {"type", "checkpoint", "ema"}
    if init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg or not set(init_cfg) <= known:
        raise ValueError(
            f"init_cfg={plain(init_cfg)}: write dict(type='Pretrained', checkpoint=...), and ema=False for raw weights"
        )
    return plain(init_cfg)


def _check_stages(what: str, given: Sequence[int], choices: range) -> None:
    wrong = [i for i in given if i not in choices]
    if wrong or not given:
        raise ValueError(f"{what}={list(given)}: choose from {choices.start} to {choices.stop - 1}")
