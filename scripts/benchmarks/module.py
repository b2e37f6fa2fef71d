"""Every attention alone, forward and backward, beside what it is attached to: what it costs of its block, not of the network.

A row is a slot, the size of the map there (channels@side, of a convolution's input; /2 is its stride), how many of the network's blocks
have it, and the contender; `plain` is the same without attention. Rows `all` are all blocks one after the other.

    conv   the convolution, with its norm and activation if the attention brings its own: AW, SK, AA, SASA, EA
    block  the end of the block: last convolution, norm, attention, shortcut, ReLU

    naive      AW with one group per sample, its definition
    reference  plain modules (--kernels reference)
    fused      the operators of attn.kernels, for what they support

With --size 224 the conv rows of AW are ResNet-50's sixteen 3x3. `peak` is the most that forward and backward hold at once."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from attn.config.scripts import positive
from benchmarks import measure
from benchmarks.measure import Contender
from benchmarks.step import check_device, compiled, finish, peak_bytes

FORMS = ("naive", "reference", "fused")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="resnet50", help="of the ResNet family (default resnet50)")
    parser.add_argument("--attentions", type=names, default=["aw"], help="with commas (default aw)")
    parser.add_argument("--forms", type=forms, default=list(FORMS), help=f"some of {','.join(FORMS)} (default all)")
    parser.add_argument("--shape", type=shape, help="only this map, as CHANNELS,SIDE, in place of the network's stages")
    parser.add_argument("--only-all", action="store_true", help="only the rows of all blocks together")
    parser.add_argument("--compile", action="store_true", help="also torch.compile each contender")
    parser.add_argument("--batch", type=positive, default=16, help="images per batch (default 16)")
    parser.add_argument("--size", type=positive, default=128, help="side of the images in pixels (default 128)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default cpu)")
    parser.add_argument("--amp", choices=["bf16"], help="autocast")
    parser.add_argument(
        "--layout",
        choices=["channels_last", "contiguous"],
        default="channels_last",
        help="of the maps in memory (default channels_last)",
    )
    measure.add_options(parser, pairs=5)


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def forms(text: str) -> list[str]:
    wrong = [form for form in names(text) if form not in FORMS]
    if wrong or not names(text):
        raise argparse.ArgumentTypeError(f"{','.join(wrong) or 'none'!r}: choose from {', '.join(FORMS)}")
    return names(text)


def shape(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected CHANNELS,SIDE, such as 256,14")
    return int(parts[0]), int(parts[1])


def run(options: argparse.Namespace) -> int:
    import torch

    check_device(options.device)
    torch.set_num_threads(options.threads)
    title = f"Attention beside its block, {options.backbone}, {options.device}"
    return measure.compare(contenders(options), options, title, warmup=1)


@dataclass
class Part:
    """A part of a block, and what an attention makes of it.

    Attributes:
        slot, size: of the attention; of its map, as in a row's name.
        plain: forward and backward without the attention.
        attended: with it.
    """

    slot: str
    size: str
    plain: Timed
    attended: Timed


def contenders(options: argparse.Namespace) -> list[Contender]:
    """For every size of map the plain part first, then what is compared with it.

    Raises:
        ValueError: an unknown name, another family, an attention outside of these slots, or the fused form is not built.
    """
    plain = network(options, None, "reference")
    passages = traced(plain, options)
    rows: dict[str, dict[str, list[Timed]]] = {}
    for name in options.attentions:
        if not any(parts(traced(network(options, name, "reference"), options), passages, options)):
            raise ValueError(f"--attentions={name}: it fills neither the conv nor the block slot")
        for form in options.forms:
            model = network(options, name, form)
            if model is None:
                continue
            for part in parts(traced(model, options), passages, options):
                for row in (f"{part.slot} {part.size}", f"{part.slot} all"):
                    runs = rows.setdefault(row, {"plain": []})
                    taken = runs.setdefault(f"{name} {form}", [])
                    taken.append(part.attended)
                    if len(runs["plain"]) < len(taken):
                        runs["plain"].append(part.plain)
    return [c for row, runs in sorted(rows.items(), key=last_all) for c in in_a_row(row, runs, options)]


def network(options: argparse.Namespace, name: str | None, form: str) -> Any:
    """A network in training mode; None if the attention has no such form."""
    import torch

    import attn
    from attn.models.create import fused_blocks
    from attn.modules.aw import AWConv2d

    given = {} if options.shape is None else {"layers": (1, 1, 1, 1), "channels": (options.shape[0],) * 4}
    torch.manual_seed(0)
    kernels: Any = "fused" if form == "fused" else "reference"
    model = attn.create_model(options.backbone, name, kernels=kernels, **given)
    device, dtype = torch.device(options.device), torch.bfloat16 if options.amp else torch.float32
    if form == "fused" and not fused_blocks(model, device, dtype)[0]:
        return None
    if form == "naive":
        weighed = [m for m in model.modules() if isinstance(m, AWConv2d) and m.forms[-1] == "taps"]
        for module in weighed:
            module.form = "grouped"
        if not weighed:
            return None
    layout = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    return model.to(device, memory_format=layout).train()


def traced(model: Any, options: argparse.Namespace) -> list[Any]:
    """The blocks of a forward pass, with what their slots got."""
    import torch

    from attn.backbones.resnet import ResNet

    if not isinstance(model, ResNet):
        raise ValueError(f"--backbone={options.backbone}: this measurement knows the ResNet family only")
    side = options.size if options.shape is None else 4 * options.shape[1]
    layout = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    images = torch.randn(options.batch, 3, side, side).to(options.device).contiguous(memory_format=layout)
    with torch.no_grad():
        found = [passage for passage in model.trace(images).passages if len(passage.calls) == 2]
    return found if options.shape is None else found[:1]


def parts(passages: list[Any], plain: list[Any], options: argparse.Namespace) -> Iterator[Part]:
    """What a network's attentions are attached to, from its blocks and those of the plain network."""
    from attn.attention import Attention

    for passage, without in zip(passages, plain, strict=True):
        conv, end = passage.calls
        feats = without.calls[1].feats
        block, other = passage.block, without.block
        stride = f"/{other.stride}" if getattr(other, "stride", 1) != 1 else ""
        if isinstance(conv.module, Attention):
            x = without.calls[0].feats[-1]
            own = conv.module.takes_norm_act
            name = "conv2" if hasattr(other, "conv3") else "conv1"
            inner = [getattr(other, part + name[-1]) for part in ("conv", "bn", "act")][: 3 if own else 1]
            size = f"{feats[-2].shape[1]}@{x.shape[2]}{stride}"
            yield Part(
                "conv+norm" if own else "conv",
                size,
                Timed(chained(inner), (x,), inner, options),
                Timed(lambda x, conv=conv: conv.module((x,), conv.state)[0], (x,), [conv.module], options),
            )
        if isinstance(end.module, Attention):
            x, *inner_maps = feats[:-1]
            shortcut = x if other.downsample is None else other.downsample(x)
            maps = (x, *inner_maps, shortcut)
            yield Part(
                "block",
                f"{feats[-1].shape[1]}@{feats[-1].shape[2]}",
                Timed(end_of(other, None, maps), maps, [other], options),
                Timed(end_of(block, end.state, maps), maps, [block], options),
            )


def chained(modules: list[Any]) -> Callable[[Any], Any]:
    def forward(x: Any) -> Any:
        for module in modules:
            x = module(x)
        return x

    return forward


def end_of(block: Any, state: Any, maps: tuple[Any, ...]) -> Callable[..., Any]:
    """The end of a block as a function of its features and its shortcut; fused, the norms before hand the means over."""
    from attn.backbones.resnet import known
    from attn.kernels.block import block_end, pooled_by

    last = "3" if hasattr(block, "conv3") else "2"
    conv, norm, act = (getattr(block, part + last) for part in ("conv", "bn", "act"))
    pooled = pooled_by(block.se, len(maps), maps[0], block.fused_on)
    means = [feature.mean((2, 3)) for feature in maps[1:-1]]

    def forward(*given: Any) -> Any:
        *features, shortcut = given
        y = conv(features[-1])
        return block_end(y, norm, block.se, tuple(features), known(pooled, *means), state, None, shortcut, act)[0]

    return forward


class Timed:
    """Forward and backward of a function of maps; called, it runs both."""

    def __init__(
        self, forward: Callable[..., Any], maps: tuple[Any, ...], modules: list[Any], options: argparse.Namespace
    ) -> None:
        self.forward, self.bf16 = forward, options.amp == "bf16"
        self.maps = [x.detach().requires_grad_() for x in maps]
        self.parameters = [p for module in modules for p in module.parameters()]
        self.grad: Any = None

    def compiled(self) -> Timed:
        other = copy.copy(self)
        other.forward = compiled(self.forward)
        return other

    def zero_grad(self) -> None:
        for tensor in (*self.maps, *self.parameters):
            tensor.grad = None

    def __call__(self) -> None:
        import torch

        device = self.maps[0].device
        self.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            out = self.forward(*self.maps)
        if self.grad is None:
            self.grad = torch.randn_like(out)
        out.backward(self.grad)
        finish(device)


def last_all(item: tuple[str, Any]) -> bool:
    return item[0].endswith(" all")


def in_a_row(row: str, runs: dict[str, list[Timed]], options: argparse.Namespace) -> Iterator[Contender]:
    """The contenders of a size of map: its first block, or all blocks one after the other; the plain one first."""
    together = row.endswith(" all")
    if (options.only_all or options.shape is not None) and not together:
        return
    first: Contender | None = None
    for name, found in runs.items():
        for form in ("", " compiled") if options.compile else ("",):
            taken = found if together else found[:1]
            if form:
                taken = [timed.compiled() for timed in taken]
            run = in_turn(taken)
            run()  # what is made once is no part of the memory, nor of the time
            for timed in taken:
                timed.zero_grad()
            memory = {"peak": peak_bytes(run, taken[0].maps[0].device)}
            contender = Contender(f"{row} x{len(found)} {name}{form}", run, memory)
            first = first or contender
            contender.against = first
            yield contender


def in_turn(runs: list[Timed]) -> Callable[[], None]:
    def run() -> None:
        for timed in runs:
            timed()

    return run
