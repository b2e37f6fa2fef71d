"""Checkpoints into detectors, without ever executing what a file holds."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import get_torch_safe_globals
from torch import Tensor, nn

from attn import tables
from attn.attention import Attention
from attn.errors import UserError
from attn.runs import folder
from attn.runs.checkpoint import BadCheckpoint
from attn.runs.load import expect_finite, kind_of, pick_weights, same_kind

TIMM, TORCHVISION = "timm://", "torchvision://"


def load_backbone(
    model: nn.Module, backbone: str, pruned: Collection[str], checkpoint: str, ema: bool | None = None
) -> list[str]:
    """Loads the weights of a classifier into a timm network without its classifier.

    Everything but attentions must be there and fit: only parameters of attentions may be absent, as when a network of
    another paper's method starts from plain weights.

    Args:
        model: the network; changed in place.
        backbone: its name.
        pruned: names of what the network had before unused layers were removed; they may be in the checkpoint.
        checkpoint: a checkpoint, as `attn.load` takes it, `timm://NAME` for timm's weights, or `torchvision://NAME` for torchvision's;
            without NAME those of the backbone.
        ema: the averaged weights of a checkpoint; by default where it holds them.

    Returns:
        Names of the attentions' parameters that were absent.

    Raises:
        BadCheckpoint: the file is missing, damaged, holds code, or is of another architecture; says which keys differ.
        UserError: timm does not have the weights, or they cannot be downloaded.
    """
    if checkpoint.startswith((TIMM, TORCHVISION)):
        weights = _timm_weights(checkpoint, backbone)
    else:
        check_present(checkpoint)
        content = folder.read(checkpoint)
        weights = pick_weights(content, ema, checkpoint)
        print_log(f"backbone starts from {checkpoint} ({kind_of(content, ema)})", "current")
    expect_finite(weights, checkpoint)
    own = model.state_dict()
    extra = ("fc.", "classifier.", "head.", "head_")
    unexpected = [k for k in weights if k not in own and k not in pruned and not k.startswith(extra)]
    absent = [k for k in own if k not in weights]
    attentions = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Attention))
    groups = {
        "missing": [k for k in absent if not k.startswith(attentions)],
        "unexpected": unexpected,
        "of another shape": [k for k in own if k in weights and own[k].shape != weights[k].shape],
        "of another type": [k for k in own if k in weights and not same_kind(own[k], weights[k])],
    }
    wrong = [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in groups.items() if keys]
    if wrong:
        raise BadCheckpoint(f"checkpoint {checkpoint} is of another backbone or attention: keys {'; '.join(wrong)}")
    model.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)
    parameters = {name for name, _ in model.named_parameters()}
    return [k for k in absent if k in parameters]


def check_present(checkpoint: str | None) -> None:
    """Refuses a missing file, and names the command that makes it.

    Raises:
        BadCheckpoint: there is no such file; names the command that leaves it there, where one is known.
    """
    if checkpoint is None or "://" in checkpoint or checkpoint.startswith(folder.HUB) or Path(checkpoint).exists():
        return
    command = tables.training_command(checkpoint)
    made = f"; it is made by: {command}" if command else ""
    raise BadCheckpoint(f"checkpoint {checkpoint}: no such file{made}")


def _timm_weights(checkpoint: str, backbone: str) -> Mapping[str, Tensor]:
    scheme, _, name = checkpoint.partition("://")
    name = (name or backbone) + (".tv_in1k" if scheme == "torchvision" else "")
    if not timm.is_model(name) or not timm.models.is_model_pretrained(name):
        raise UserError(f"checkpoint {checkpoint}: timm has no weights {name}; see timm.list_pretrained()")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's errors have no common base
        raise UserError(f"checkpoint {checkpoint} cannot be downloaded: {error}") from error


def read_detector(path: str | Path) -> Mapping[str, Any]:
    """A checkpoint of MMEngine, read as plain data.

    MMEngine itself executes what a file holds when it cannot be read as data; this never does.

    Raises:
        BadCheckpoint: the file is missing, damaged, holds more than data, or is no checkpoint of a detector.
    """
    try:
        with torch.serialization.safe_globals(get_torch_safe_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadCheckpoint(f"checkpoint {path}: no such file") from None
    except IsADirectoryError:
        raise BadCheckpoint(f"checkpoint {path} is a folder; name a file in it") from None
    except pickle.UnpicklingError as error:
        reason = str(error).partition("Unsupported")[2].split("\n")[0] or "it holds more than tensors and plain data"
        raise BadCheckpoint(f"checkpoint {path} refused, nothing was executed: {reason.strip(' :')}") from None
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError) as error:
        raise BadCheckpoint(f"checkpoint {path} cannot be read (truncated, or no checkpoint): {error}") from None
    if isinstance(content, Mapping) and "model" in content and "config" in content:
        raise BadCheckpoint(
            f"checkpoint {path} is a classifier of train.py: give it as model.backbone.init_cfg.checkpoint={path}"
            " model.backbone.init_cfg.type=Pretrained"
        )
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise BadCheckpoint(f"checkpoint {path} holds no weights of a detector (state_dict)")
    expect_finite(weights, path)
    return content


def check_detector(model: nn.Module, content: Mapping[str, Any], path: str | Path, whole: bool) -> None:
    """Refuses weights that are not of this detector.

    Args:
        model: the detector.
        content: what `read_detector` gave.
        path: for the message.
        whole: everything must fit (testing, resuming); else only the backbone must, and heads may differ (fine-tuning).

    Raises:
        BadCheckpoint: keys or shapes differ; the message says how many and names some.
    """
    weights = {k.removeprefix("module."): v for k, v in content.get("state_dict", content).items()}
    own = model.state_dict()
    names = [k for k in own if whole or k.startswith("backbone.")]
    groups = {
        "missing": [k for k in names if k not in weights],
        "unexpected": [k for k in weights if k not in own and (whole or k.startswith("backbone."))],
        "of another shape": [k for k in names if k in weights and own[k].shape != weights[k].shape],
        "of another type": [k for k in names if k in weights and not same_kind(own[k], weights[k])],
    }
    wrong = [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in groups.items() if keys]
    if wrong:
        raise BadCheckpoint(f"checkpoint {path} is of another detector than the config: keys {'; '.join(wrong)}")


def _some(keys: Collection[str]) -> str:
    return ", ".join(list(keys)[:3]) + (", ..." if len(keys) > 3 else "")
