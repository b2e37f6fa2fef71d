"""The likeliest classes of images of the user's own: `attn.predict`, and the job of scripts/predict.py."""

from __future__ import annotations

import csv
import glob
import io
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attn import console
from attn.config.prediction import Request
from attn.config.schema import Config
from attn.data.imagefolder import UnreadableImage, is_image_name, read_rgb
from attn.data.transforms import eval_transform
from attn.data.workers import outlive_signals, worker_count
from attn.distributed import pick_device
from attn.errors import UserError, reason
from attn.evaluation.evaluate import autocast
from attn.runs import folder, load
from attn.runs.files import write_atomically
from attn.runs.outputs import expect_older

Transform = Callable[[Image.Image], Tensor]
Source = str | os.PathLike[str] | Image.Image


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, the likeliest first.

    Attributes:
        image: its path; for an image that was passed itself, its number from 0.
        labels: numbers of the classes; empty where the image cannot be read.
        names: their names; the numbers as strings where the checkpoint knows none.
        probabilities: softmax over all classes, from 0 to 1.
        problem: why the image cannot be read, or None.
    """

    image: str
    labels: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str | None = None


def predict(
    model: nn.Module | str | os.PathLike[str],
    images: Source | Iterable[Source],
    topk: int = 5,
    *,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    ema: bool | None = None,
    workers: int | None = 0,
    trust: str | Collection[str] = (),
) -> Iterator[Prediction]:
    """The likeliest classes of each image, in the order of the images, as they are computed.

    Args:
        model: a checkpoint, as `attn.load` takes it, which brings its test transform and the names of its classes; or a model, which is
            used on the device where it is.
        images: a folder (all images in it, at any depth), a pattern such as `photos/*.jpg`, a file, an image of Pillow, or
            several files and images.
        topk: classes per image; all, if there are fewer.
        transform: from an RGB image of Pillow to a tensor [3, H, W]; needed with a model, and in place of a checkpoint's
            own.
        classes: names in the order of the labels, in place of a checkpoint's own.
        batch_size: images per forward pass.
        device: where to compute with a checkpoint: auto (a GPU if there is one), cpu, cuda, cuda:1 ...
        ema: the averaged weights of a checkpoint; by default where it holds them.
        workers: loader processes; None: one per processor core, at most 4.
        trust: as in `attn.load`.

    Yields:
        one `Prediction` per image; one that cannot be read has a `problem` in place of classes.

    Raises:
        BadCheckpoint: as `attn.load` does.
        UserError, ValueError: there are no such images, or a model comes without a transform. All of this before the first
            image.
    """
    if topk < 1:
        raise ValueError(f"topk={topk} must be 1 or more")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")
    if workers is not None and workers < 0:
        raise ValueError(f"workers={workers} must be 0 or more, or None")
    if transform is not None and not callable(transform):
        raise ValueError(f"transform={transform!r} must be a function from an RGB image of Pillow to a tensor [3, H, W]")
    if not isinstance(model, (nn.Module, str, os.PathLike)):
        raise ValueError(f"model={model!r} must be a model or the path of a checkpoint")
    found = find_images(images)
    if isinstance(model, nn.Module):
        if transform is None:
            raise ValueError(
                "predict(model, ...) needs transform=, the test transform that the model was trained for: "
                "timm.data.create_transform(**timm.data.resolve_model_data_config(model)) makes timm's; the path of a "
                "checkpoint in place of the model brings its own"
            )
        network = _Network(model, transform, classes, _device_of(model), None, False)
    else:
        network = _of_checkpoint(Path(model).expanduser(), transform, classes, device, ema, trust)
    outputs = getattr(network.model, "num_classes", None)
    if classes is not None and outputs and len(classes) != outputs:
        raise ValueError(f"classes= has {len(classes)} names; expected {outputs}, one for each output of the model")
    return _predictions(network, found, topk, batch_size, workers)


@dataclass(frozen=True)
class _Network:
    """What predicts, and how its images are made."""

    model: nn.Module
    transform: Transform
    classes: Sequence[str] | None
    device: torch.device
    amp: str | None
    channels_last: bool


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _of_checkpoint(
    path: Path,
    transform: Transform | None,
    classes: Sequence[str] | None,
    device: str | torch.device,
    ema: bool | None,
    trust: str | Collection[str],
) -> _Network:
    where = pick_device(device) if device in ("auto", "cpu", "cuda") else load.device_here(device)
    content = folder.read(path)
    cfg: Config = load.trusted(load.load_config(content, path), trust, f"checkpoint {path}")
    model = load.build(load.with_kernels_here(cfg, where))
    load.load_weights(model, load.pick_weights(content, ema, path), path)
    layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
    model = model.to(where, memory_format=layout).eval()  # type: ignore[call-overload]
    names = classes or content.get("classes")
    return _Network(
        model, transform or eval_transform(cfg.data).normalised, names, where, cfg.schedule.amp, cfg.channels_last
    )


def find_images(images: Source | Iterable[Source]) -> list[str | Image.Image]:
    """The files that a folder, a pattern or a list stands for, in alphabetical order of each; images as they are.

    Raises:
        UserError: nothing is there; says what was looked for.
        ValueError: something is neither a path nor an image of Pillow.
    """
    if isinstance(images, Image.Image):
        return [images]
    if not isinstance(images, (str, os.PathLike)):
        images = list(images) if isinstance(images, Iterable) else [images]
        other = next((item for item in images if not isinstance(item, (str, os.PathLike, Image.Image))), None)
        if other is not None or any(item is None for item in images):
            raise ValueError(
                f"images has a {type(other).__name__} in it; expected paths and images of Pillow (of an array: PIL.Image.fromarray)"
            )
        found = [item if isinstance(item, Image.Image) else os.fspath(item) for item in images]
        if not found:
            raise UserError("images is empty: name a folder, a pattern or some files")
        return found
    path = Path(images).expanduser()
    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*") if is_image_name(file) and file.is_file())
        if not files:
            raise UserError(f"images={images}: no image in this folder; a pattern takes files of any name, as in {path}/*")
        return list(files)
    if path.exists():
        return [str(path)]
    files = sorted(file for file in glob.glob(str(path), recursive=True) if os.path.isfile(file))
    if not files:
        raise UserError(f"images={images}: no such folder or file, and no file fits it as a pattern (*.jpg, **/*.png)")
    return list(files)


class _Files(Dataset):
    """Images as tensors [3, H, W], or why one cannot be read."""

    def __init__(self, images: Sequence[str | Image.Image], transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor | str:
        image = self.images[index]
        try:
            tensor = self.transform(read_rgb(image) if isinstance(image, str) else image.convert("RGB"))
            if not isinstance(tensor, Tensor) or tensor.ndim != 3:
                made = f"a tensor {list(tensor.shape)}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
                raise ValueError(f"transform= made {made} of an image; expected a tensor [3, H, W]")
            return tensor
        except UnreadableImage as error:
            return str(error)
        except OSError as error:
            return f"{image}: {reason(error)}"


def _predictions(
    network: _Network, images: Sequence[str | Image.Image], topk: int, batch_size: int, workers: int | None
) -> Iterator[Prediction]:
    processes = 0 if len(images) <= batch_size else worker_count(workers)
    loader = DataLoader(
        _Files(images, network.transform),
        batch_size,
        num_workers=processes,
        worker_init_fn=outlive_signals,
        collate_fn=list,
    )
    names = [image if isinstance(image, str) else str(number) for number, image in enumerate(images)]
    at, training = 0, network.model.training
    network.model.eval()
    try:
        for loaded in loader:
            tensors = [item for item in loaded if isinstance(item, Tensor)]
            answers = _answers(network, torch.stack(tensors), topk) if tensors else iter(())
            for item in loaded:
                if isinstance(item, str):
                    yield Prediction(names[at], problem=item)
                else:
                    labels, probabilities = next(answers)
                    known = network.classes
                    found = tuple(known[label] if known and label < len(known) else str(label) for label in labels)
                    yield Prediction(names[at], tuple(labels), found, tuple(probabilities))
                at += 1
    finally:
        network.model.train(training)


@torch.inference_mode()
def _answers(network: _Network, images: Tensor, topk: int) -> Iterator[tuple[list[int], list[float]]]:
    layout = torch.channels_last if network.channels_last else torch.contiguous_format
    with autocast(network.amp, network.device):
        logits = network.model(images.to(network.device, memory_format=layout))
    best = logits.double().softmax(1).topk(min(topk, logits.shape[1]), 1)
    return zip(best.indices.tolist(), best.values.tolist(), strict=True)


def run(request: Request) -> int:
    """Predicts as the command says, writes the CSV file, and prints what was done.

    Returns:
        the exit code: 1 if not one image could be read.

    Raises:
        UserError: checkpoint, images or output are missing or do not fit; before any work.
    """
    output = Path(request.out).expanduser()
    older = expect_older(output, "out=", "image,label1,", "CSV file of predictions")
    images = find_images(request.images)
    ema = {"auto": None, "ema": True, "raw": False}[request.weights]
    path = Path(request.checkpoint).expanduser()
    network = _of_checkpoint(path, None, None, request.device, ema, request.trust)
    if not network.classes:
        console.say(f"{path} does not know the names of its classes: their numbers are written")
    found, unreadable = [], 0
    predictions = _predictions(network, images, request.topk, request.batch_size, request.workers)
    for prediction in console.bar(predictions, "predicting", len(images), delay=0.5):
        if prediction.problem is None:
            found.append(prediction)
        else:
            unreadable += 1
            console.warn(f"{prediction.problem}; left out")
    if found:
        try:
            write_atomically(output, as_csv(found))
        except OSError as error:
            raise UserError(f"out={output} cannot be written: {error.strerror}") from None
        replaced = ", in place of older predictions" if older else ""
        console.say(f"saved the likeliest {len(found[0].labels)} classes of {len(found)} images in {output}{replaced}")
    if unreadable:
        console.say(f"{unreadable} of {len(images)} files could not be read and are left out")
    if len(found) == 1:
        for name, probability in zip(found[0].names, found[0].probabilities, strict=True):
            console.say(f"  {100 * probability:6.2f} %  {name}")
    return 0 if found else 1


def as_csv(predictions: Sequence[Prediction]) -> str:
    """A line per image: its path, then number, name and probability of each class, the likeliest first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["image"]
    for place in range(1, len(predictions[0].labels) + 1):
        header += [f"label{place}", f"class{place}", f"probability{place}"]
    writer.writerow(header)
    for prediction in predictions:
        line: list[object] = [prediction.image]
        for label, name, probability in zip(prediction.labels, prediction.names, prediction.probabilities, strict=True):
            line += [label, name, f"{probability:.6f}"]
        writer.writerow(line)
    return text.getvalue()
