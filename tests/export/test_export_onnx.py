"""Every attention leaves this package as ONNX, with any batch, and gives the same outputs in onnxruntime."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from commands import ROOT
from networks import PAIRS, build
from torch import nn

import attn

pytest.importorskip("onnx", reason="pip install 'attn[export]'")
pytest.importorskip("onnxscript", reason="pip install 'attn[export]'")
pytest.importorskip("onnxruntime", reason="pip install 'attn[export]'")

from attn.export import onnx, program

PAGE = ROOT / "docs" / "export.md"


def exported_onnx(attention: str, path: Path) -> nn.Module:
    """Writes a small network with an attention, whose parameters are not those of a new one; returns the network."""
    model = build("resnet18" if ("resnet18", attention) in PAIRS else "resnet50", attention).eval()
    for parameter in model.parameters():
        if parameter.ndim <= 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    images = torch.randn(2, 3, 32, 32)
    onnx.write(program.program(attn.fuse(model, images), images, any_batch=True), "{}", path)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("attention", attn.list_attentions())
def test_onnx_of_every_attention_at_batches_1_3_and_8(attention: str, tmp_path: Path) -> None:
    model = exported_onnx(attention, tmp_path / "model.onnx")
    assert program.BATCHES == (1, 3, 8)
    worst = program.check(model, onnx.read(tmp_path / "model.onnx"), (3, 32, 32), None, attention)
    assert worst <= 1e-4


def test_the_page_names_every_attention() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == attn.list_attentions()
    assert {answer for _, answer in rows} == {"yes"}, "the test above exports every one"


def test_a_file_that_differs_is_refused(tmp_path: Path) -> None:
    model = exported_onnx("se", tmp_path / "model.onnx")
    run = onnx.read(tmp_path / "model.onnx")
    with pytest.raises(attn.errors.UserError, match=r"format=onnx differs from the network by .* with 1 images"):
        program.check(model, lambda images: run(images) + 1e-2, (3, 32, 32), None, "format=onnx")
    with pytest.raises(attn.errors.UserError, match="differs from the network by nan"):
        program.check(model, lambda images: run(images) * float("nan"), (3, 32, 32), 2, "format=onnx")


def test_norms_are_folded_in_the_file(tmp_path: Path) -> None:
    import onnx as standard

    exported_onnx("ba", tmp_path / "model.onnx")
    graph = standard.load(tmp_path / "model.onnx").graph
    assert "Conv" in {node.op_type for node in graph.node}
    assert not {"BatchNormalization", "Dropout"} & {node.op_type for node in graph.node}
    assert not graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value"), "any number of images"
