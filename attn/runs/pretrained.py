"""Writes the model of a run as a folder that others can load (`attn.runs.folder`), here or on the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from attn.config import groups, parse
from attn.config.schema import Config
from attn.errors import UserError, reason
from attn.models.spec import SETTINGS
from attn.runs import card, checkpoint, load
from attn.runs.checkpoint import BEST, LAST
from attn.runs.files import sync_folder, to_json
from attn.runs.folder import CARD, CONFIG, FORMAT, KEPT, WEIGHTS
from attn.runs.folder import hub as the_hub


def save_pretrained(
    source: str | Path, folder: str | Path, *, ema: bool | None = None, trust: str | Collection[str] = ()
) -> Path:
    """Writes the model of a run as a folder, which `attn.load` and, for attentions of this package, timm load.

    Args:
        source: a checkpoint of train.py or scripts/convert.py, or the folder of a run, for its best epoch.
        folder: the folder to write; must not exist, or be empty. At every moment it is absent or whole.
        ema: as in `attn.load`.
        trust: as in `attn.load`.

    Returns:
        The folder.

    Raises:
        UserError: the checkpoint is none, the folder is not empty, or cannot be written.
    """
    for name, value in (("source", source), ("folder", folder)):
        if not isinstance(value, (str, os.PathLike)) or not str(value):
            raise UserError(f"{name}={value!r} must be a path: of a run or checkpoint, and of the folder to write")
    folder = Path(folder).expanduser()
    path = checkpoint_of(source)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists: remove it, or name another folder")
    content = checkpoint.read(path)
    cfg = load.trusted(load.load_config(content, path), trust, f"checkpoint {path}")
    weights = load.pick_weights(content, ema, path)
    with torch.device("meta"):
        model: Any = load.build(load.with_kernels_here(cfg))
    load.load_weights(model.to_empty(device="cpu"), weights, path)
    kind = load.kind_of(content, ema)
    described: dict[str, Any] = {"format": FORMAT, "weights": kind, "config": parse.to_dict(cfg)}
    described |= {key: content[key] for key in KEPT if content.get(key) is not None}
    config = {**for_timm(cfg, model, content.get("classes")), "attn": described}
    text = card.card(cfg, content, path, kind, sum(p.numel() for p in model.parameters()))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            save_file(own_memory(weights), temporary / WEIGHTS, {"format": "pt"})
            (temporary / CONFIG).write_text(to_json(config, indent=2) + "\n")
            (temporary / CARD).write_text(text)
            temporary.chmod(0o755)
            os.replace(temporary, folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be written: {reason(error)}") from None
    return folder


def push_to_hub(
    source: str | Path,
    repo: str,
    *,
    private: bool = False,
    message: str = "Upload of a model of attn",
    ema: bool | None = None,
    trust: str | Collection[str] = (),
    api: Any = None,
) -> str:
    """Uploads the model of a run to the Hugging Face Hub, as `save_pretrained` writes it.

    Args:
        source, ema, trust: as in `save_pretrained`.
        repo: `organisation/name`; it is made if it is not there.
        private: make it private.
        message: of the commit.
        api: a `huggingface_hub.HfApi` with a token or an endpoint of its own; by default the one of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        UserError: as `save_pretrained`, or the Hub refuses or cannot be reached.
    """
    hub = the_hub()
    if not isinstance(repo, str) or repo.count("/") != 1 or not all(repo.split("/")):
        raise UserError(f"repo={repo!r}: must be organisation/name, as in me/ba_resnet50")
    with tempfile.TemporaryDirectory() as place:
        folder = save_pretrained(source, Path(place) / "model", ema=ema, trust=trust)
        api = hub.HfApi() if api is None else api
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message))
        except Exception as error:  # those of the HTTP client are of no common class, and it changes with the Hub's version
            raise UserError(f"{repo} cannot be uploaded: {reason(error)}") from None


def own_memory(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies: safetensors refuses tensors that share memory, as those of a module in several places do."""
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}


def checkpoint_of(source: str | Path) -> Path:
    """The file of a checkpoint: itself, or `best.pt` (else `last.pt`) of a run's folder."""
    path = Path(source).expanduser()
    return next((path / name for name in (BEST, LAST) if (path / name).exists()), path) if path.is_dir() else path


def for_timm(cfg: Config, model: Any, classes: list[str] | None) -> dict[str, Any]:
    """What `timm.create_model("local-dir:FOLDER")`, after `import attn.timm`, and transformers' TimmWrapper read of a config."""
    options = dict(cfg.backbone)
    name, data = options.pop("name"), cfg.data
    attention = {key: value for key, value in cfg.attention.items() if value is not None and SETTINGS.get(key) != value}
    if attention:
        known = cfg.attention_name in groups.names("attention")
        named = parse.without_partial(groups.load("attention", cfg.attention_name)) if known else None
        name = f"{cfg.attention_name}_{name}"
        options |= {} if named == attention else {"attention": attention}
    kept = ("first_conv", "classifier", "pool_size", "fixed_input_size")
    images = {
        "input_size": [3, data.image_size, data.image_size],
        "interpolation": data.test_interpolation,
        "crop_pct": data.image_size / data.test_resize,
        "crop_mode": "center",
        "mean": list(data.mean),
        "std": list(data.std),
        "num_classes": data.num_classes,
        **{key: model.pretrained_cfg[key] for key in kept if key in model.pretrained_cfg},
    }
    found: dict[str, Any] = {"architecture": name, "num_classes": data.num_classes, "num_features": model.num_features}
    found |= {"model_args": options} if options else {}
    found |= {"label_names": classes} if classes else {}
    return found | {"pretrained_cfg": images}
