"""The job of scripts/export.py: a checkpoint's network, folded, written, checked."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from attn import console
from attn.config.export import Request
from attn.config.schema import Config, Data
from attn.data.datasets import class_names, load_dataset
from attn.data.loader import Seeded
from attn.data.transforms import eval_transform
from attn.errors import UserError, as_user_errors
from attn.evaluation.job import with_data
from attn.export import int8, onnx, program
from attn.export.about import About, about
from attn.models.create import check_input
from attn.models.fuse import fuse
from attn.runs import folder, load
from attn.runs.files import sync_folder
from attn.runs.outputs import expect_place, is_weights

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".aoti.pt2", "int8": ".int8.pt2"}
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "int8": ("torchao",)}
INSTALL = "pip install 'attn[export]'"
BATCH = 32  # images at once in calibration and validation


def run(request: Request) -> Path:
    """Writes the file; nothing is at its place before it is whole and checked.

    Raises:
        UserError: the checkpoint, the data or a package is missing, or the network cannot be written in this format.
    """
    missing = [name for name in NEEDED.get(request.format, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"format={request.format} needs {', '.join(missing)}: {INSTALL}")
    path = Path(request.checkpoint).expanduser()
    made_of = folder.beside(path)
    out = Path(request.out).expanduser() if request.out else made_of.with_name(made_of.name + SUFFIXES[request.format])
    expect_free(out, request)
    content = folder.read(path)
    cfg = load.trusted(with_data(load.load_config(content, path), request.data), request.trust, f"checkpoint {path}")
    model = network(cfg, load.pick_weights(content, {"auto": None, "ema": True, "raw": False}[request.weights], path), path)
    size = request.image_size or cfg.data.image_size
    with as_user_errors():
        check_input(model, size)
        data = (
            (load_dataset(cfg.data, train=True), load_dataset(cfg.data, train=False)) if request.format == "int8" else None
        )

    channels = next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    image = (channels, size, size)
    images = torch.randn(request.batch_size or 2, *image, generator=torch.Generator().manual_seed(0))
    names = content.get("classes") or (class_names(data[0]) if data else None)
    meaning = about(
        cfg.data,
        names,
        size,
        request.batch_size,
        str(cfg.backbone["name"]),
        cfg.attention_name,
        versions={name: version(name) for name in ("torch", "timm")},
    )
    # Its 8-bit weights would be kept a second time in float32.
    fused = fuse(model, images, blocks=request.format != "int8")
    with as_user_errors():
        out.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that it can be moved there in one step.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as place:
        temporary = Path(place) / out.name
        if data is None:
            said = exact(request, model, fused, images, meaning, temporary)
        else:
            said = approximate(request, model, fused, images, meaning, temporary, cfg.data, data)
        os.replace(temporary, out)
    sync_folder(out.parent)
    console.say(f"{out}: {request.format}, {out.stat().st_size / 1e6:.1f} MB, {said}")
    return out


def expect_free(out: Path, request: Request) -> None:
    """Checks, before any work, that the file can be written and replaces none.

    Raises:
        UserError: it exists, is a folder or a checkpoint, or cannot be written.
    """
    if out.is_dir():
        raise UserError(f"out={out} is a folder; name a file, such as {out / ('model' + SUFFIXES[request.format])}")
    expect_place(out, "out=")
    if out.exists() and not request.force:
        raise UserError(f"{out} exists: name another file with out=, or replace it with force=true")
    if is_weights(out):
        raise UserError(f"out={out} is a checkpoint, which force=true does not replace: name another file with out=")
    if request.format != "onnx" and out.suffix != ".pt2":
        raise UserError(f"out={out}: a file of format={request.format} must end in .pt2, or torch does not load it")


def network(cfg: Config, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    load.expect_finite(weights, path)
    model = load.build(load.with_kernels_here(cfg))
    load.load_weights(model, weights, path)
    return model.eval()


def exact(request: Request, model: nn.Module, fused: nn.Module, images: Tensor, meaning: About, path: Path) -> str:
    """Writes a file that gives the network's outputs, and says how well."""
    exported = program.program(fused, images, request.batch_size is None)
    if request.format == "onnx":
        onnx.write(exported, meaning.to_json(), path)
        read = onnx.read
    elif request.format == "pt2":
        program.write_pt2(exported, meaning.to_json(), path)
        read = program.read_pt2
    else:
        program.write_aoti(exported, meaning.to_json(), path)
        read = program.read_aoti
    worst = program.check(model, read(path), tuple(images.shape[1:]), request.batch_size, f"format={request.format}")
    batches = "any batch" if request.batch_size is None else f"batches of {request.batch_size}"
    return f"{batches}, equal to the checkpoint up to {worst:.0e}"


def approximate(
    request: Request,
    model: nn.Module,
    fused: nn.Module,
    images: Tensor,
    meaning: About,
    path: Path,
    data: Data,
    sets: tuple[Dataset, Dataset],
) -> str:
    """Writes an 8-bit file, and says which share of the validation images it and the network classify correctly."""
    any_batch = request.batch_size is None
    calibration = [batch for batch, _ in batches_of(sets[0], data, meaning, request.calibration)]
    exported = int8.quantise(fused, calibration if any_batch else of_size(calibration, len(images)), images, any_batch)
    program.write_pt2(exported, meaning.to_json(calibration_images=min(request.calibration, len(sets[0]))), path)  # type: ignore[arg-type]
    if not any_batch:
        return f"batches of {request.batch_size}"
    before, after = (int8.top1(each, batches_of(sets[1], data, meaning, None)) for each in (model, program.read_pt2(path)))
    return f"any batch, top-1 of the validation images {after:.2f} % (float32: {before:.2f} %)"


def batches_of(dataset: Dataset, data: Data, meaning: About, count: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and labels, transformed as test images: all, or `count` that are spread over the data set."""
    total = len(dataset)  # type: ignore[arg-type]
    chosen = range(total) if count is None or count >= total else [i * total // count for i in range(count)]
    transform = eval_transform(replace(data, image_size=meaning.image_size, test_resize=meaning.resize))
    seeded = Seeded(dataset, transform, seed=0, training=False)
    subset = Subset(seeded, [(0, i) for i in chosen])  # type: ignore[misc]
    for images, labels, *_ in DataLoader(subset, BATCH):
        yield transform.pixels.normalised(images, torch.contiguous_format), labels


def of_size(batches: list[Tensor], size: int) -> list[Tensor]:
    """The same images in batches of one size; what is left over is left out, unless it is all."""
    images = torch.cat(batches)
    if len(images) < size:
        images = images.repeat(-(-size // len(images)), 1, 1, 1)
    return [images[i : i + size] for i in range(0, len(images) - size + 1, size)]
