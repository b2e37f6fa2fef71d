"""One training step, forward, backward and SGD, beside the plain backbone's.

The contenders are the plain backbone, timm's own squeeze-and-excitation where timm has the pair, and every attention in its
reference and its fused form; with --compile each of them compiled, too. `kept` is the memory that the forward keeps for the backward
(eager only), `peak` the most that a step holds at once beyond what it starts with."""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attn.config.scripts import positive
from benchmarks import measure
from benchmarks.measure import Contender

TIMM_SE = {"resnet18": "seresnet18", "resnet34": "seresnet34", "resnet50": "seresnet50", "resnet101": "seresnet101"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--attentions", type=lambda text: text.split(","), default=["se", "eca", "ba", "dca_se"])
    parser.add_argument(
        "--forms",
        type=lambda text: text.split(","),
        default=["reference", "fused"],
        help="forms of each attention (default reference,fused)",
    )
    parser.add_argument("--compile", action="store_true", help="also torch.compile each contender: minutes per model")
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--size", type=positive, default=128, help="side of the images in pixels (default 128)")
    parser.add_argument("--classes", type=positive, default=1000)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")
    parser.add_argument("--layout", choices=["channels_last", "contiguous"], default="channels_last")
    measure.add_options(parser)


def run(options: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(options.threads)
    return measure.compare(contenders(options), options, f"Training step, {options.backbone}")


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
    images = torch.randn(options.batch, 3, options.size, options.size).contiguous(memory_format=layout)
    targets = torch.randint(options.classes, (options.batch,))
    found = []
    for name, build in models.items():
        torch.manual_seed(0)
        model = build().to(memory_format=layout).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        step = training_step(model, optimizer, images, targets, options.dtype == "bf16")
        step()  # the optimizer makes its state, which is not a step's memory
        memory = {"kept": kept_bytes(model, images, options.dtype == "bf16"), "peak": peak_bytes(step)}
        found.append(Contender(name, step, memory))
        if options.compile:
            step = training_step(torch.compile(model), optimizer, images, targets, options.dtype == "bf16")
            step(), step()
            found.append(Contender(f"{name} compiled", step, {"peak": peak_bytes(step)}))
    return found


def training_step(model: Any, optimizer: Any, images: Any, targets: Any, bf16: bool) -> Callable[[], Any]:
    import torch
    from torch.nn.functional import cross_entropy

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()

    return step


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
    with context, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(images)
    storages = {h.tensor.untyped_storage().data_ptr(): h.tensor.untyped_storage().nbytes() for h in alive}
    del output  # only now: it holds the graph
    return sum(size for address, size in storages.items() if address not in own)


def peak_bytes(step: Callable[[], Any]) -> int:
    """The most bytes that a step holds at once, beyond what is held when it starts; by torch's allocator."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
