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
    """A site, and the attribute that holds what stands there.

    Attributes:
        site: what the attention gets to know.
        owner: the module that calls it.
        name: the attribute (or, in a stage's `Sequential`, the child) to set.
        norm_act: attributes of `owner` with the norm and activation behind a convolution, for attentions that bring their own.
        make_room: changes in `owner` once the socket is to be filled (its own attention elsewhere in the block goes).
        leave: changes in `owner` if the attention leaves the socket empty (its own attention moves there).
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
        sockets: `sockets(model, slot, where)` yields the sockets of a slot in the order of the forward pass. `where` picks one
            of `block_positions` or `conv_kinds`; it is "" in the stage slot.
        block_positions: what `position` may be in the block slot; the first is the default.
        conv_kinds: what `convs` may be in the conv slot; the first is the default. Empty: the slot does not exist.
    """

    network: type[nn.Module]
    classes: dict[type[nn.Module], type[nn.Module]]
    sockets: Callable[[nn.Module, Slot, str], Iterable[Socket]]
    block_positions: tuple[str, ...] = ("native",)
    conv_kinds: tuple[str, ...] = ("spatial",)


def adopt(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    """Gives every module of a known class our subclass of it, in place. Parameters and names stay."""
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]


def blocks_of(
    stages: Iterable[Iterable[nn.Module]], infos: Iterable[dict[str, Any]]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The blocks of all stages, each with its position in the terms of `Site`.

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
