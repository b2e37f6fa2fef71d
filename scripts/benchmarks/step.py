"""One training step, forward, backward and SGD, beside the plain backbone's.

The contenders are the plain backbone, timm's own squeeze-and-excitation where timm has the pair, and every attention in its
reference and its fused form; with --compile each of them compiled, too. `kept` is the memory that the forward keeps for the backward
(eager only), `peak` the most that a step holds at once beyond what it starts with."""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from attn.config.scripts import positive
from benchmarks import measure
from benchmarks.measure import Contender

TIMM_SE = {"resnet18": "seresnet18", "resnet34": "seresnet34", "resnet50": "seresnet50", "resnet101": "seresnet101"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="resnet50", help="name of the backbone (default resnet50)")
    parser.add_argument(
        "--attentions",
        type=lambda text: text.split(","),
        default=["se", "eca", "ba", "dca_se"],
        help="with commas (default se,eca,ba,dca_se)",
    )
    parser.add_argument(
        "--forms",
        type=lambda text: text.split(","),
        default=["reference", "fused"],
        help="forms of each attention (default reference,fused)",
    )
    parser.add_argument("--compile", action="store_true", help="also torch.compile each contender: minutes per model")
    parser.add_argument("--batch", type=positive, default=16, help="images per batch (default 16)")
    parser.add_argument("--size", type=positive, default=128, help="side of the images in pixels (default 128)")
    parser.add_argument("--classes", type=positive, default=1000, help="of the classifier (default 1000)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default cpu)")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast (default fp32)")
    parser.add_argument("--amp", choices=["bf16"], dest="dtype", default=argparse.SUPPRESS, help="the same as --dtype")
    parser.add_argument(
        "--layout",
        choices=["channels_last", "contiguous"],
        default="channels_last",
        help="of the maps in memory (default channels_last)",
    )
    measure.add_options(parser)


def run(options: argparse.Namespace) -> int:
    import torch

    check_device(options.device)
    torch.set_num_threads(options.threads)
    return measure.compare(contenders(options), options, f"Training step, {options.backbone}, {options.device}")


def check_device(device: str) -> None:
    """
    Raises:
        ValueError: there is none.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: torch finds no GPU here; use --device cpu")


def contenders(options: argparse.Namespace) -> list[Contender]:
    """The plain backbone first.

    Raises:
        ValueError: an unknown name, or the fused form is not built.
    """
    import timm
    import torch

    import attn

    models = {"plain": lambda: attn.create_model(options.backbone, None, options.classes)}
    if options.backbone in TIMM_SE:
        models["timm se"] = lambda: timm.create_model(TIMM_SE[options.backbone], num_classes=options.classes)
    for name in options.attentions:
        for form in options.forms:
            models[f"{name} {form}"] = lambda name=name, form=form: attn.create_model(
                options.backbone, name, options.classes, kernels=form
            )
    layout = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    device, bf16 = torch.device(options.device), options.dtype == "bf16"
    images = torch.randn(options.batch, 3, options.size, options.size).contiguous(memory_format=layout).to(device)
    targets = torch.randint(options.classes, (options.batch,)).to(device)
    built = {}
    for name, build in models.items():  # all of them first: what cannot be built is named before the first measurement
        torch.manual_seed(0)
        built[name] = build().train()
    found = []
    for name, model in built.items():
        model.to(device, memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        step = training_step(model, optimizer, images, targets, bf16)
        step()  # the optimizer makes its state, which is not a step's memory
        memory = {"kept": kept_bytes(model, images, bf16)}
        optimizer.zero_grad(set_to_none=True)  # a step's gradients are its own
        memory["peak"] = peak_bytes(step, device)
        found.append(Contender(name, step, memory))
        if options.compile:
            step = training_step(compiled(model), optimizer, images, targets, bf16)
            step(), step()
            optimizer.zero_grad(set_to_none=True)
            found.append(Contender(f"{name} compiled", step, {"peak": peak_bytes(step, device)}))
    return found


def compiled(function: Any, options: dict[str, Any] | None = None) -> Any:
    """torch.compile of a model or function. Every model counts as another form of the same code: networks share their classes."""
    import torch
    import torch._dynamo.config

    torch._dynamo.config.cache_size_limit = torch._dynamo.config.accumulated_cache_size_limit = 256
    return torch.compile(function, options=options)


def training_step(model: Any, optimizer: Any, images: Any, targets: Any, bf16: bool) -> Callable[[], Any]:
    import torch
    from torch.nn.functional import cross_entropy

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        finish(images.device)

    return step


def finish(device: Any) -> None:
    """Waits until a device has done all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


@dataclass(eq=False)
class Saved:
    """Holds a tensor that the graph saves; it lives as long as the graph keeps it."""

    tensor: Any


def kept_bytes(model: Any, images: Any, bf16: bool) -> int:
    """Bytes of all that one forward keeps for its backward, parameters and buffers aside."""
    import torch

    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: Any) -> Saved:
        alive.add(holder := Saved(tensor))
        return holder

    context = torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor)
    with context, torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        output = model(images)
    storages = {h.tensor.untyped_storage().data_ptr(): h.tensor.untyped_storage().nbytes() for h in alive}
    del output  # only now: it holds the graph
    return sum(size for address, size in storages.items() if address not in own)


def peak_bytes(step: Callable[[], Any], device: Any) -> int:
    """The most bytes that a step holds at once on a device, beyond what is held when it starts; by torch's allocator."""
    import torch
    from torch._C._profiler import _EventType

    if device.type == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - held
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [
        e for e in tree(profile.profiler.kineto_results.experimental_event_tree()) if e.typed[0] == _EventType.Allocation
    ]
    held = peak = 0
    alive: dict[int, int] = {}
    for event in sorted(events, key=lambda e: e.start_time_ns):
        address, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        # The profiler goes by addresses, from one profile to the next: it may report the end of an older block, with the size of another.
        size = -alive.pop(address, 0) if size < 0 else alive.setdefault(address, size)
        held += size
        peak = max(peak, held)
    return peak


def tree(events: Iterable[Any]) -> Iterator[Any]:
    """The profiler's events and all below them."""
    for event in events:
        yield event
        yield from tree(event.children)
