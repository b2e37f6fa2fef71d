"""Helpers that several papers share; papers import nothing else from each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from torch import nn

import attn.modules
from attn.modules._layers import activation

FILES = sorted(path for path in Path(attn.modules.__file__).parent.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_paper_imports_the_helper_of_another(path: Path) -> None:
    """Of another paper's file only classes: an attention may be built on another. Files of one paper begin with its name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attn.modules."):
            source = str(node.module).removeprefix("attn.modules.")
            if source.startswith("_") or path.stem.startswith(f"{source}_"):
                continue
            assert not path.stem.startswith("_"), f"{path.name} is for all papers, and imports {source}"
            helpers = [alias.name for alias in node.names if not alias.name[0].isupper()]
            assert not helpers, f"{path.name} imports {helpers} from {source}.py: move them to _layers.py"


def test_an_activation_has_its_name_in_timm_or_is_refused() -> None:
    assert activation("silu", "BA: act") is nn.SiLU
    for name in ("siluu", ""):
        with pytest.raises(ValueError, match=f"BA: gate='{name}' is not an activation of timm; use relu"):
            activation(name, "BA: gate")


def test_the_norms_keep_their_public_names() -> None:
    from attn.modules import _layers, norm

    assert norm.VectorBatchNorm is _layers.VectorBatchNorm
    assert norm.MapBatchNorm is _layers.MapBatchNorm
