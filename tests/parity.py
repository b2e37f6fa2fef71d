"""Comparing our networks with the authors' own, without their weights.

`parity.json` holds what the authors' networks compute (eval, float32, 2x3x64x64) for weights that anyone can make again: a
tensor comes from a generator seeded with the crc32 of its name in their network. `official_keys.json` holds, per network,
the crc32 of the listing of names and shapes of their checkpoint ("name shape" lines, sorted).
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import attn
from attn.config import parse
from attn.config.schema import Config
from attn.models import convert
from attn.models.convert.protocol import Architecture, Tensors
from attn.runs import load
from attn.runs.convert import config_of, convert_file, translate

FIXTURES = Path(__file__).parent / "fixtures"
PARITY: dict[str, dict[str, Any]] = json.loads((FIXTURES / "parity.json").read_text())
LISTINGS: dict[str, dict[str, int]] = json.loads((FIXTURES / "official_keys.json").read_text())
NETWORKS: dict[str, tuple[str, Architecture]] = {
    name: (source, network) for source, networks in convert.AUTHORS.items() for name, network in networks.items()
}


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


@cache
def theirs(network: str) -> Tensors:
    """Our keys with the authors' name and shape."""
    state = outline(network).state_dict()
    return NETWORKS[network][1].tensors({key: tuple(tensor.shape) for key, tensor in state.items()})


@cache
def outline(network: str) -> nn.Module:
    """Our network on the meta device."""
    with torch.device("meta"):
        return load.build(config(network))


@cache
def config(network: str) -> Config:
    """That of our network, as a checkpoint keeps it."""
    return parse.from_dict(parse.to_dict(config_of(NETWORKS[network][1], network)))


def dropped(network: str) -> dict[str, tuple[int, ...]]:
    """Tensors of the authors' checkpoint that take no part: the gates of ResNeXt-50, the DCT weights of FcaNet."""
    blocks = {"ba_resnext50": (3, 4, 6, 3), "fcanet50": (3, 4, 6, 3), "fcanet101": (3, 4, 23, 3)}.get(network, ())
    found: dict[str, tuple[int, ...]] = {}
    for i, count in enumerate(blocks):
        if network == "ba_resnext50":
            found |= {f"gate{i + 1}.0.weight": (16 << i, 32 << i)}
            found |= {f"layer{i + 1}.{block}.Gate.0.weight": (16 << i, 32 << i) for block in range(count)}
        else:
            side = 56 >> i
            found |= {f"layer{i + 1}.{b}.att.dct_layer.weight": (256 << i, side, side) for b in range(count)}
    return found


def listing(network: str) -> dict[str, tuple[int, ...]]:
    """All names and shapes of the authors' checkpoint."""
    return {**dict(theirs(network).values()), **dropped(network)}


# FcaNet's 16 best frequencies, by height and width, for maps of 7 x 7.
TOP16 = [(0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0), (5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2)]  # fmt: skip


def dct(channels: int, side: int) -> Tensor:
    """The buffer of FcaNet's authors, [C, S, S]: a frequency for each of 16 equal parts of the channels."""

    def wave(frequency: int) -> Tensor:
        t = torch.arange(side) + 0.5
        wave = torch.cos(math.pi * frequency * (side // 7) * t / side) / math.sqrt(side)
        return wave * math.sqrt(2) if frequency else wave

    maps = [torch.outer(wave(u), wave(v)) for u, v in TOP16]
    return torch.stack([maps[c * 16 // channels] for c in range(channels)])


def marked(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor that no other name or order of elements has; many times as fast as `fill`."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(zlib.crc32(name.encode()))
    return (torch.arange(math.prod(shape), dtype=torch.float32) + zlib.crc32(name.encode()) % 65521).reshape(shape)


def check_listing(network: str) -> None:
    """Names, shapes and sizes are those of the authors' checkpoint."""
    lines = sorted(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in listing(network).items())
    assert len(lines) == LISTINGS[network]["tensors"]
    assert zlib.crc32("\n".join(lines).encode()) == LISTINGS[network]["crc32"]
    assert sum(p.numel() for p in outline(network).parameters()) == LISTINGS[network]["params"]


def check_translation(network: str) -> None:
    """Every tensor of the authors' checkpoint becomes the one of ours that it is, and those without a part are dropped."""
    tensors = authors_tensors(network, marked)
    state, left_out = translate(tensors, NETWORKS[network][1], config(network), network)
    assert sorted(left_out) == sorted(dropped(network))
    own = outline(network).state_dict()
    assert {key: t.shape for key, t in state.items()} == {key: t.shape for key, t in own.items()}
    for key, (name, _) in theirs(network).items():
        assert torch.equal(state[key].flatten(), tensors[name].flatten()), key


def authors_tensors(network: str, values: Callable[[str, tuple[int, ...]], Tensor] = fill) -> dict[str, Tensor]:
    """The tensors of the authors' checkpoint by bare name."""
    shapes = listing(network).items()
    return {name: dct(*shape[:2]) if ".dct_layer." in name else values(name, shape) for name, shape in shapes}


def authors_file(network: str, path: Path, prefix: str = "module.") -> dict[str, Tensor]:
    """Saves a checkpoint as the authors' scripts do; returns its tensors by bare name."""
    tensors = authors_tensors(network)
    state = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    torch.save({"epoch": 100, "arch": network, "state_dict": state}, path)
    return tensors


def converted(network: str, folder: Path, prefix: str = "module.") -> nn.Module:
    """The model of the authors' checkpoint, converted and loaded as users do; its tensors are compared with the file's."""
    theirs_path, ours_path = folder / "model_best.pth.tar", folder / f"{network}.pt"
    tensors = authors_file(network, theirs_path, prefix)
    report = convert_file(NETWORKS[network][0], network, theirs_path, ours_path)
    assert sorted(report.dropped) == sorted(dropped(network))
    model = attn.load(ours_path)
    state = model.state_dict()
    assert len(report.matched) == len(state)
    for key, (name, _) in theirs(network).items():
        assert torch.equal(state[key].flatten(), tensors[name].flatten()), key
    theirs_path.unlink()
    ours_path.unlink()
    return model


def check_outputs(network: str, folder: Path) -> None:
    """With the authors' weights, converted, the logits are theirs, to 1e-4 of their norm."""
    recorded = PARITY[recorded_name(network)]
    model = converted(network, folder)
    assert sum(p.numel() for p in model.parameters()) == recorded["params"]
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    norm = torch.tensor(recorded["norm"])
    torch.testing.assert_close(logits.norm(dim=1), norm, rtol=1e-4, atol=0)
    difference = (logits[:, :12] - torch.tensor(recorded["logits"])).norm(dim=1)
    assert (difference / norm).max() < 1e-4


def recorded_name(network: str) -> str:
    """The name in `parity.json`, which has a source beside it instead of an ending."""
    return re.sub(r"_(bav2repo|dcanet)$", "", network)


def recorded(source: str) -> list[str]:
    """The networks of a source whose outputs are recorded."""
    return [
        name
        for name, (of, _) in NETWORKS.items()
        if of == source and recorded_name(name) in PARITY and PARITY[recorded_name(name)]["source"] == source
    ]
