"""A model in a folder, as `attn.runs.pretrained` writes it, or on the Hugging Face Hub: read like a checkpoint.

model.safetensors   the weights, averaged ones where the run has them
config.json         what timm reads of a network of its own, and under `attn` what this package needs
README.md           the model card (`attn.runs.card`)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from attn.errors import UserError, reason
from attn.runs import checkpoint, entries
from attn.runs.checkpoint import BadCheckpoint

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HUB = "hf-hub:"
FORMAT = 1
KEPT = ("step", "evaluated", "best", "classes", "versions", "origin")  # of a checkpoint, beside config and weights


def read(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """A checkpoint: a file as `checkpoint.read` takes it, a folder of `save_pretrained`, or `hf-hub:organisation/name[@revision]`.

    Nothing of it is executed.

    Raises:
        BadCheckpoint: it is missing, damaged or something else.
        UserError: the Hub has no such model, or cannot be reached.
    """
    folder = fetch(str(path)) if str(path).startswith(HUB) else Path(path)
    if not (folder.is_dir() and (folder / CONFIG).exists()):
        return checkpoint.read(path, device)
    return read_folder(folder, device)


def beside(path: str | Path) -> Path:
    """Where files that are made of a checkpoint go, and how their names begin.

    Returns:
        `run/best` for `run/best.pt`, `models/ba` for the folder `models/ba`, and `me-ba` in the current folder for `hf-hub:me/ba`.
    """
    if str(path).startswith(HUB):
        return Path(str(path).removeprefix(HUB).replace("/", "-"))
    path = Path(path)
    return path if path.is_dir() else path.with_suffix("")


def fetch(name: str) -> Path:
    """The local copy of a model on the Hub: only its weights and config are downloaded.

    Args:
        name: `hf-hub:organisation/name`, with `@revision` after it for another than the newest.

    Raises:
        UserError: there is none, or the Hub cannot be reached and there is no copy.
    """
    repo, _, revision = name.removeprefix(HUB).partition("@")
    try:
        found = hub().snapshot_download(repo, revision=revision or None, allow_patterns=[WEIGHTS, CONFIG])
    except Exception as error:  # those of the HTTP client are of no common class, and it changes with the Hub's version
        raise UserError(f"{name} cannot be loaded: {reason(error)}") from None
    return Path(found)


def read_folder(folder: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """What `save_pretrained` wrote, in the form of a checkpoint.

    Raises:
        BadCheckpoint: a file is missing, damaged or of something else.
    """
    try:
        described = json.loads((folder / CONFIG).read_text()).get("attn")
        if not (isinstance(described, dict) and isinstance(described.get("config"), dict)):
            raise BadCheckpoint(f"{folder / CONFIG} is not of attn.save_pretrained: it has no entry attn with a config")
        if not (isinstance(described.get("format"), int) and 0 < described["format"] <= FORMAT):
            raise BadCheckpoint(f"{folder / CONFIG} has format {described.get('format')!r}; this version reads {FORMAT}")
        weights: dict[str, Tensor] = load_file(folder / WEIGHTS, str(device))
    except (AttributeError, ValueError, OSError, SafetensorError) as error:
        raise BadCheckpoint(f"{folder} cannot be read (incomplete, damaged, or no model of attn): {reason(error)}") from None
    kind = {"weights": described.get("weights", "raw")}
    content = {"config": described["config"], "model": weights, **kind, **{k: described[k] for k in KEPT if k in described}}
    wrong = next(entries.problems(content), None)
    if wrong is not None:
        raise BadCheckpoint(f"{folder / CONFIG} is damaged, or not of attn.save_pretrained: {wrong}")
    return content


def hub() -> Any:
    """The package huggingface_hub.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("the Hugging Face Hub needs huggingface_hub: pip install 'attn[hub]'") from None
    return huggingface_hub
