"""From a checkpoint to its config and its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from attn.config import parse
from attn.config.schema import Config
from attn.errors import UserError
from attn.kernels import Kernels, form_here
from attn.models.create import check_input, create_model
from attn.runs.checkpoint import BadCheckpoint, read


def load_config(content: Mapping[str, Any], path: str | Path) -> Config:
    """The config that a checkpoint holds.

    Raises:
        BadCheckpoint: it does not fit this version.
    """
    try:
        return parse.from_dict(content["config"])
    except UserError as error:
        raise BadCheckpoint(f"checkpoint {path}: its config does not fit this version: {error}") from None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads strictly.

    Raises:
        BadCheckpoint: keys or shapes differ; the message says how many and names some.
    """
    own = model.state_dict()
    groups = {
        "missing": [k for k in own if k not in weights],
        "unexpected": [k for k in weights if k not in own],
        "of another shape": [k for k in own if k in weights and own[k].shape != weights[k].shape],
    }
    wrong = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in groups.items()
        if keys
    ]
    if wrong:
        raise BadCheckpoint(f"checkpoint {path} is of another architecture: keys {'; '.join(wrong)}")
    model.load_state_dict(dict(weights))


def load(path: str | Path, ema: bool | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """The model of a checkpoint, in eval mode.

    Args:
        path: `last.pt` or `best.pt` of a run.
        ema: the averaged weights; by default where the checkpoint holds them.
        device: where to put it.

    Raises:
        BadCheckpoint: the file is damaged, or not one of `train.py`.
    """
    content = read(path, device)
    model = build(with_kernels_here(load_config(content, path)))
    load_weights(model, pick_weights(content, ema, path), path)
    return model.to(device).eval()


def with_kernels_here(cfg: Config) -> Config:
    """The config of a run on this machine: what was trained fused runs fused where that is built, else as plain modules."""
    return cfg if cfg.kernels == "reference" else replace(cfg, kernels=form_here("auto"))


def pick_weights(content: Mapping[str, Any], ema: bool | None, path: str | Path) -> Mapping[str, Tensor]:
    """The averaged weights of a checkpoint, or the raw ones.

    Raises:
        BadCheckpoint: averaged weights are asked for and absent.
    """
    averaged = content.get("ema")
    if ema and averaged is None:
        raise BadCheckpoint(f"checkpoint {path} has no averaged weights (schedule.ema_decay was off)")
    return averaged if averaged is not None and ema is not False else content["model"]


def build(cfg: Config, pretrained: bool = False) -> nn.Module:
    """The model of a config.

    Raises:
        UserError: backbone, attention and images do not fit.
    """
    options = dict(cfg.backbone)
    name = options.pop("name")
    reserved = sorted(
        {"attention", "num_classes", "features_only", "out_indices", "pretrained", "in_chans", "kernels"} & set(options)
    )
    if reserved:
        raise UserError(
            f"backbone.{reserved[0]} cannot be set: the run decides it (data.num_classes, attention=, pretrained=, kernels=)"
        )
    try:
        kernels = cast(Kernels, cfg.kernels)
        model = create_model(name, cfg.attention, cfg.data.num_classes, pretrained=pretrained, kernels=kernels, **options)
    except ValueError as error:
        raise UserError(f"attention={cfg.attention_name} {error}") from error
    if cfg.grad_checkpointing and not hasattr(model, "set_grad_checkpointing"):
        raise UserError(f"grad_checkpointing=true: backbone.name={name} has none")
    try:
        check_input(model, cfg.data.image_size)
    except ValueError as error:
        raise UserError(f"data.image_size={cfg.data.image_size}: backbone.name={name} {error}") from error
    return model
