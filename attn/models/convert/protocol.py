"""What a source of checkpoints says of each of its networks: which of ours it is, and what it calls the tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # of a state dict of ours
Tensors = dict[str, tuple[str, Shape]]  # our key: the name and shape in the source's checkpoint


@dataclass(frozen=True)
class Architecture:
    """A network of a source.

    Attributes:
        backbone, attention: choices of the config groups; a backbone without a config is named by timm's name.
        tensors: from our shapes to the source's names and shapes; each has as many elements in the same order.
        settings: dotted keys below `attention` that make it the source's network.
        data: keys of `data` with which the source tests it, where not ImageNet's usual 224 of 256.
        network: keys of `backbone` that make it the source's network.
        dropped: pattern of the tensors of the source that take no part in what its network computes; they may be absent.
        constants: from our model, on any device, to tensors that the source saves and that the settings determine here, by its
            names; they may be absent, and must else have these values.
    """

    backbone: str
    attention: str
    tensors: Callable[[Shapes], Tensors]
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    dropped: str | None = None
    constants: Callable[[nn.Module], dict[str, Tensor]] | None = None


def same(shapes: Shapes) -> Tensors:
    """The source has our names and shapes."""
    return {key: (key, tuple(shape)) for key, shape in shapes.items()}


def renamed(key: str, names: Mapping[str, str]) -> str:
    """A dotted key with its longest known beginning replaced, at a dot; as it is if none is known."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        theirs = names.get(".".join(parts[:end]))
        if theirs is not None:
            return ".".join([theirs, *parts[end:]])
    return key


def blocks(shapes: Shapes) -> dict[tuple[int, int], int]:
    """The depth of each (stage, block) of a timm EfficientNet or MobileNet, in the order of the forward pass."""
    found: dict[tuple[int, int], int] = {}
    for key in shapes:
        if key.startswith("blocks."):
            _, stage, block, _ = key.split(".", 3)
            found.setdefault((int(stage), int(block)), len(found))
    return found


def differences(given: Shapes, expected: Shapes, ignored: Callable[[str], bool]) -> Iterator[str]:
    """One string per kind of difference between a checkpoint and what it should hold, with some of the names."""
    kinds: dict[str, Iterable[str]] = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected and not ignored(name)],
        "of another shape": [
            f"{name} {list(given[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in given and not same_size(given[name], shape)
        ],
    }
    for kind, names in kinds.items():
        names = list(names)
        if names:
            yield f"{len(names)} {kind} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


def same_size(given: Shape, expected: Shape) -> bool:
    """Equal except for leading or trailing ones, which only some versions of an author's code have."""

    def trimmed(shape: Shape) -> list[int]:
        return [side for side in shape if side != 1]

    return math.prod(given) == math.prod(expected) and trimmed(given) == trimmed(expected)
