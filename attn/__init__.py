"""attn: channel attention in convolutional networks, trained, measured and compared in one framework.

`attn.create_model("resnet50", "ba")`, `attn.list_backbones()`, `attn.list_attentions()`, `attn.load("runs/.../best.pt")`,
`attn.predict("runs/.../best.pt", "photos")`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attn.config import run_name as _run_name  # noqa: F401  # resolvers that hydra.compose("train") needs

if TYPE_CHECKING:
    from attn.evaluation.predict import predict as predict
    from attn.models.create import create_model as create_model
    from attn.models.create import list_attentions as list_attentions
    from attn.models.create import list_backbones as list_backbones
    from attn.models.fuse import fuse as fuse
    from attn.runs.load import load as load
    from attn.runs.pretrained import push_to_hub as push_to_hub
    from attn.runs.pretrained import save_pretrained as save_pretrained

__version__ = "0.1.0"
__all__ = ["create_model", "fuse", "list_attentions", "list_backbones", "load", "predict", "push_to_hub", "save_pretrained"]

_HOMES = {
    "create_model": "attn.models.create",
    "fuse": "attn.models.fuse",
    "list_attentions": "attn.models.create",
    "list_backbones": "attn.models.create",
    "load": "attn.runs.load",
    "predict": "attn.evaluation.predict",
    "push_to_hub": "attn.runs.pretrained",
    "save_pretrained": "attn.runs.pretrained",
}


def __getattr__(name: str) -> Any:
    # torch and timm take seconds to import: only who needs them pays.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'attn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
