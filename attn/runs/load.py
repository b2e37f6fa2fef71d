"""From a checkpoint to its config and its model."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from attn.config import parse
from attn.config.schema import Config
from attn.errors import UserError, reason
from attn.kernels import Kernels, form_here
from attn.models import spec
from attn.models.create import check_input, create_model
from attn.runs import folder
from attn.runs.checkpoint import BadCheckpoint, non_finite

OTHER_FILES = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}  # options of timm


def load_config(content: Mapping[str, Any], path: str | Path) -> Config:
    """The config that a checkpoint holds, as plain values: nothing in it is interpolated.

    Raises:
        BadCheckpoint: it does not fit this version.
    """
    try:
        return parse.from_dict(content["config"])
    except UserError as error:
        raise BadCheckpoint(f"checkpoint {path}: its config does not fit this version: {error}") from None


def trusted(cfg: Config, trust: str | Collection[str], path: str | Path) -> Config:
    """Checks, before anything is imported, that the config of a file names only attentions of this package.

    Args:
        cfg: the config.
        trust: modules of the user's own, and packages, that it may name too.
        path: the file, for the message.

    Returns:
        The config without what makes timm read other files: the weights are in the checkpoint.

    Raises:
        BadCheckpoint: it names another module; importing it could execute anything.
    """
    modules = ("attn.modules", *([trust] if isinstance(trust, str) else trust))
    for where, target in spec.targets(cfg.attention):
        module = str(target).rpartition(".")[0]
        if not any(module == name or module.startswith(f"{name}.") for name in modules):
            raise BadCheckpoint(
                f"{path}: attention.{where}={target} is not of the package attn, and importing it may execute anything; if "
                f"you trust it, say so: trust=[{module or target}] on the command line of eval.py, --trust "
                f"{module or target} for scripts, attn.load(path, trust=[{(module or target)!r}]) in Python"
            )
    return replace(cfg, backbone={key: value for key, value in cfg.backbone.items() if key not in OTHER_FILES})


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads strictly.

    Raises:
        BadCheckpoint: keys, shapes or types differ, or a value is not finite; the message says how many and names some.
    """
    own = model.state_dict()
    expect_finite(weights, path)
    groups = {
        "missing": [k for k in own if k not in weights],
        "unexpected": [k for k in weights if k not in own],
        "of another shape": [k for k in own if k in weights and own[k].shape != weights[k].shape],
        "of another type": [k for k in own if k in weights and not same_kind(own[k], weights[k])],
    }
    wrong = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in groups.items()
        if keys
    ]
    if wrong:
        raise BadCheckpoint(f"checkpoint {path} is of another architecture: keys {'; '.join(wrong)}")
    model.load_state_dict(dict(weights))


def same_kind(own: Tensor, given: Tensor) -> bool:
    """Whether one tensor can take another's values: both floating point and in range, or both of the same integer type."""
    if own.is_floating_point():
        return given.is_floating_point() and (given.dtype == own.dtype or bool(torch.isfinite(given.to(own.dtype)).all()))
    return given.dtype == own.dtype


def expect_finite(weights: Mapping[str, Any], path: str | Path) -> None:
    """Checks that weights are tensors without a NaN or an infinity.

    Raises:
        BadCheckpoint: names the first that is something else.
    """
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise BadCheckpoint(f"checkpoint {path}: {name} is no dense tensor")
    bad = non_finite(weights)
    if bad is not None:
        raise BadCheckpoint(f"checkpoint {path}: {bad} is not finite (NaN or infinity): it cannot be used")


def load(
    path: str | Path,
    ema: bool | None = None,
    device: str | torch.device = "cpu",
    trust: str | Collection[str] = (),
) -> nn.Module:
    """The model of a checkpoint, in eval mode.

    Args:
        path: `last.pt` or `best.pt` of a run, a folder of `attn.save_pretrained`, or `hf-hub:organisation/name[@revision]`.
        ema: the averaged weights; by default where the checkpoint holds them.
        device: where to put it.
        trust: modules of your own whose attentions the checkpoint may name, such as `["mine"]`: importing one executes it.

    Raises:
        BadCheckpoint: the file is damaged, not one of `train.py`, or names a module that is neither of this package nor
            trusted.
        ValueError: there is no such device here, or an argument is of another type.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path={path!r} must be the path of a checkpoint")
    if ema is not None and not isinstance(ema, bool):
        raise ValueError(f"ema={ema!r} must be True, False, or None for whatever the checkpoint holds")
    if not isinstance(trust, Collection) or not all(isinstance(module, str) for module in trust):
        raise ValueError(f"trust={trust!r} must be names of modules, as in ['mine']")
    path = os.path.expanduser(path)
    device_here(device)
    content = folder.read(path, device)
    model = build(with_kernels_here(trusted(load_config(content, path), trust, f"checkpoint {path}"), device))
    load_weights(model, pick_weights(content, ema, path), path)
    return model.to(device).eval()


def device_here(device: str | torch.device) -> torch.device:
    """A device on which tensors can be made here.

    Raises:
        ValueError: there is none of this name.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used here: {reason(error).partition('. ')[0]}") from None


def with_kernels_here(cfg: Config, device: torch.device | str = "cpu") -> Config:
    """The config on this machine: a run trained fused stays fused if the device has a fused form here, else uses plain modules."""
    return cfg if cfg.kernels == "reference" else replace(cfg, kernels=form_here("auto", torch.device(device).type))


def pick_weights(content: Mapping[str, Any], ema: bool | None, path: str | Path) -> Mapping[str, Tensor]:
    """The averaged weights of a checkpoint, or the raw ones.

    Raises:
        BadCheckpoint: those that are asked for are not in it.
    """
    kind = kind_of(content, ema)
    if ema and kind != "ema":
        raise BadCheckpoint(f"checkpoint {path} has no averaged weights (schedule.ema_decay was off)")
    if ema is False and kind != "raw":
        raise BadCheckpoint(f"{path} has no raw weights: attn.save_pretrained wrote the averaged ones")
    return content["ema"] if kind == "ema" and "weights" not in content else content["model"]


def kind_of(content: Mapping[str, Any], ema: bool | None) -> str:
    """Whether `pick_weights` takes averaged weights (ema) or raw ones: a folder of `save_pretrained` has one of them, and says which."""
    return content.get("weights") or ("ema" if content.get("ema") is not None and ema is not False else "raw")


RESERVED = {
    "attention",
    "num_classes",
    "features_only",
    "out_indices",
    "pretrained",
    "in_chans",
    "checkpoint_path",
    "kernels",
    "device",
    "dtype",
}


def build(cfg: Config, pretrained: bool = False) -> nn.Module:
    """The model of a config.

    Raises:
        UserError: backbone, attention and images do not fit.
    """
    options = dict(cfg.backbone)
    name = options.pop("name")
    reserved = sorted(RESERVED & set(options))
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
