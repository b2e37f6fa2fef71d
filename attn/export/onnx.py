"""ONNX by torch's dynamo exporter, checked in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from attn.errors import UserError, reason
from attn.export.about import KEY
from attn.export.program import quietly

INPUT, OUTPUT = "images", "logits"


def write(exported: torch.export.ExportedProgram, about: str, path: Path) -> None:
    """Writes one file, weights included.

    Raises:
        UserError: an operator has no form in ONNX.
    """
    try:
        with quietly():
            written = torch.onnx.export(
                exported, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT], optimize=True
            )
        assert written is not None
        written.model.metadata_props[KEY] = about
        written.save(path, external_data=False)
    except Exception as error:
        raise UserError(f"format=onnx: the exporter cannot write this network: {reason(error)[:300]}") from error


def read(path: Path) -> Callable[[Tensor], Tensor]:
    """Runs the file in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
