"""What a backbone family provides: its classes, and the sockets where attentions may go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from attn.attention import Site

Slot = Literal["block", "conv", "stage"]


@dataclass(frozen=True)
class Socket:
    """A site, and the attribute that holds its module.

    Attributes:
        site: what the attention is told about the position.
        owner: the module that calls it.
        name: the attribute (or, in a stage's `Sequential`, the child) to set.
        norm_act: attributes of `owner` with the norm and activation after a convolution, for attentions with their own.
        make_room: changes `owner` before the socket is filled (removes the block's own attention).
        leave: changes `owner` if the attention leaves the socket empty (moves the block's own attention there).
    """

    site: Site
    owner: nn.Module
    name: str
    norm_act: tuple[str, ...] = ()
    make_room: Callable[[], None] | None = None
    leave: Callable[[], None] | None = None


@dataclass(frozen=True)
class Family:
    """One timm family.

    Attributes:
        network: timm's class of the whole network.
        classes: each of timm's classes (blocks, and the network itself) with our subclass, which overrides only forwards.
        sockets: `sockets(model, slot, where)` yields the sockets of a slot in the order of the forward pass. `where` picks
            one of `block_positions` or `conv_kinds`; it is "" in the stage slot.
        block_positions: the values of `position` in the block slot; the first is the default.
        conv_kinds: the values of `convs` in the conv slot; the first is the default. Empty: the slot does not exist.
    """

    network: type[nn.Module]
    classes: dict[type[nn.Module], type[nn.Module]]
    sockets: Callable[[nn.Module, Slot, str], Iterable[Socket]]
    block_positions: tuple[str, ...] = ("native",)
    conv_kinds: tuple[str, ...] = ("spatial",)


def adopt(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    """Changes the class of every module in `classes` to our subclass, in place. Parameters and names stay the same."""
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]


def blocks_of(
    stages: Iterable[Iterable[nn.Module]], infos: Iterable[dict[str, Any]]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The blocks of all stages, each with its position as keyword arguments of `Site`.

    Args:
        stages: the blocks of each stage.
        infos: timm's `feature_info` of the stages.
    """
    depth = 0
    for number, (stage, info) in enumerate(zip(stages, infos, strict=True), start=1):
        for index, block in enumerate(stage):
            yield block, {"stage": number, "block": index, "depth": depth, "stride": info["reduction"]}
            depth += 1


def stage_sockets(
    owners: Iterable[nn.Module], stages: Iterable[Iterable[nn.Module]], infos: Sequence[dict[str, Any]]
) -> Iterator[Socket]:
    """The sockets of the stage slot: `attn` at the end of each stage. `owners` are the modules that end with it."""
    ends = {position["stage"]: position for _, position in blocks_of(stages, infos)}
    for owner, info, position in zip(owners, infos, ends.values(), strict=True):
        yield Socket(Site(widths=(info["num_chs"],), **position), owner, "attn")
