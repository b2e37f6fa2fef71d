"""Inference on a batch, beside the plain backbone in eager mode.

The contenders are the plain backbone, timm's own squeeze-and-excitation where timm has the pair, and attentions of this
project, each in the chosen forms:

    eager     the model as it is
    folded    attn.fuse(model)
    compiled  torch.compile of the model
    frozen    torch.compile of attn.fuse(model), with freezing: the weights are constants of the compiled code

A compiled form takes a minute to make, which is not part of the time."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from attn.config.scripts import positive
from benchmarks import measure
from benchmarks.measure import Contender
from benchmarks.step import TIMM_SE, compiled

FORMS = ("eager", "folded", "compiled", "frozen")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="resnet50", help="name of the backbone (default resnet50)")
    parser.add_argument("--attentions", type=names, default=["se", "ba"], help="with commas; empty for none (default se,ba)")
    parser.add_argument("--forms", type=forms, default=list(FORMS), help=f"some of {','.join(FORMS)} (default all)")
    parser.add_argument("--no-timm", action="store_true", help="without timm's squeeze-and-excitation")
    parser.add_argument("--batch", type=positive, default=16, help="images per batch (default 16)")
    parser.add_argument("--size", type=positive, default=224, help="side of the images in pixels (default 224)")
    parser.add_argument(
        "--layout",
        choices=["channels_last", "contiguous"],
        default="channels_last",
        help="of the maps in memory (default channels_last)",
    )
    measure.add_options(parser)


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def forms(text: str) -> list[str]:
    wrong = [form for form in names(text) if form not in FORMS]
    if wrong or not names(text):
        raise argparse.ArgumentTypeError(f"{','.join(wrong) or 'none'!r}: choose from {', '.join(FORMS)}")
    return names(text)


def run(options: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        return measure.compare(contenders(options), options, f"Inference, {options.backbone}", warmup=3)


def contenders(options: argparse.Namespace) -> list[Contender]:
    """The plain backbone in eager mode first.

    Raises:
        ValueError: an unknown name.
    """
    import timm
    import torch

    import attn

    models: dict[str, Callable[[], Any]] = {"plain": lambda: attn.create_model(options.backbone)}
    if options.backbone in TIMM_SE and not options.no_timm:
        models["timm se"] = lambda: timm.create_model(TIMM_SE[options.backbone])
    for name in options.attentions:
        models[name] = lambda name=name: attn.create_model(options.backbone, name)
    layout = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    images = torch.randn(options.batch, 3, options.size, options.size).contiguous(memory_format=layout)
    found = []
    for name, build in models.items():
        torch.manual_seed(0)
        model = build().eval().to(memory_format=layout)
        wanted = options.forms if name != "plain" else ["eager", *(form for form in options.forms if form != "eager")]
        for form in wanted:
            called = formed(model, form, images)
            found.append(Contender(f"{name} {form}", lambda called=called: called(images)))
    return found


def formed(model: Any, form: str, images: Any) -> Callable[[Any], Any]:
    import attn

    if form in ("folded", "frozen"):
        model = attn.fuse(model, images)
    if form in ("compiled", "frozen"):
        return compiled(model, {"freezing": form == "frozen"})
    return model
