"""Comparing our networks with the authors' own, without their weights.

`parity.json` holds what the authors' networks compute (eval, float32, 2x3x64x64) for weights that anyone can make again: a
tensor comes from a generator seeded with the crc32 of its name in their network. The files `*_keys.json` hold the crc32 of the
listing of names and shapes of their checkpoints ("name shape" lines, sorted).
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FIXTURES = Path(__file__).parent / "fixtures"
PARITY: dict[str, dict[str, Any]] = json.loads((FIXTURES / "parity.json").read_text())

Tensors = dict[str, tuple[str, tuple[int, ...]]]  # our key: the authors' name and shape


def recorded_keys(name: str) -> dict[str, dict[str, Any]]:
    """A file of listings: per network its number of tensors, their crc32 and the number of parameters."""
    return json.loads((FIXTURES / f"{name}_keys.json").read_text())


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of a name and shape in the authors' network."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_mean"):
        return 0.1 * noise
    if name.endswith("running_var"):
        return 1 + 0.1 * noise.abs()
    if len(shape) >= 2:
        return noise * math.sqrt(2 / math.prod(shape[1:]))
    return 0.1 * noise if name.endswith(".bias") else 1 + 0.1 * noise


def check_listing(model: nn.Module, tensors: Tensors, recorded: dict[str, Any]) -> None:
    """Names, shapes and sizes are those of the authors' checkpoint; the model may be on the meta device."""
    lines = sorted(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in tensors.values())
    assert len(lines) == recorded["tensors"]
    assert zlib.crc32("\n".join(lines).encode()) == recorded["crc32"]
    assert sum(p.numel() for p in model.parameters()) == recorded["params"]


def check_outputs(model: nn.Module, tensors: Tensors, network: str) -> None:
    """With the authors' weights the logits are theirs, to 1e-4 of their norm."""
    assert sum(p.numel() for p in model.parameters()) == PARITY[network]["params"]
    own = model.eval().state_dict()
    model.load_state_dict({key: fill(*tensors[key]).reshape(own[key].shape) for key in own})
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    norm = torch.tensor(PARITY[network]["norm"])
    torch.testing.assert_close(logits.norm(dim=1), norm, rtol=1e-4, atol=0)
    difference = (logits[:, :12] - torch.tensor(PARITY[network]["logits"])).norm(dim=1)
    assert (difference / norm).max() < 1e-4
