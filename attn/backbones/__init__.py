"""Backbone families: one timm family, one file, each with a `FAMILY`. This directory is their registry."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from torch import nn

from attn.backbones.family import Family


@cache
def families() -> tuple[Family, ...]:
    """Every family of this directory."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))


def family_of(model: nn.Module) -> Family | None:
    """The family whose network class `model` is, or None."""
    return next((family for family in families() if type(model) is family.network), None)
