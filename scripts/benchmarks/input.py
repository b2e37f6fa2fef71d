"""Images per processor core beside torchvision's ImageFolder over Pillow, for training or evaluation.

The images are JPEG files of 500 x 375 pixels, made from the photographs that scikit-learn and matplotlib install. One process
reads, decodes, crops, flips and normalises them to float batches, as the device would get them. `timm` is timm's own loader, with
Pillow and normalising of whole batches. A ratio of 0.5 is twice as fast."""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from attn.config.scripts import positive
from benchmarks import measure
from benchmarks.compose import composed
from benchmarks.measure import Contender

WIDTH, HEIGHT, QUALITY, CLASSES = 500, 375, 95, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--evaluation", action="store_true", help="test images instead of training images")
    parser.add_argument("--images", type=positive, default=128, help="JPEG files (default 128)")
    parser.add_argument("--batch", type=positive, default=32, help="images per batch (default 32)")
    parser.add_argument("--channels-last", action="store_true", help="batches of attn in this layout")
    measure.add_options(parser)


def run(options: argparse.Namespace) -> int:
    import torch

    from attn.data import region

    torch.set_num_threads(1)
    options.threads = 1
    if region.library() is None:
        raise ValueError(f"the region decoder is not built: {region.BUILD}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_images(folder / "images", options.images)
        found = contenders(folder, options)
        if options.evaluation:
            same = torch.equal(first_pixels(found[0]), first_pixels(found[3]))
            print(f"torchvision and attn region give the same pixels: {'yes' if same else 'NO'}")
        print(f"{options.images} images of {WIDTH} x {HEIGHT} pixels, {size / options.images / 1000:.0f} kB each")
        return measure.compare(found, options, "Evaluation input" if options.evaluation else "Training input", warmup=1)


def write_images(root: Path, count: int) -> int:
    """An ImageFolder with `count` files in each of two splits; returns the bytes of one split."""
    import random
    from importlib.resources import files

    from PIL import Image

    sources = [files("sklearn.datasets") / "images" / name for name in ("china.jpg", "flower.jpg")]
    sources.append(files("matplotlib") / "mpl-data" / "sample_data" / "grace_hopper.jpg")
    photographs = [Image.open(io.BytesIO(source.read_bytes())).convert("RGB") for source in sources]
    draw, total = random.Random(0), 0
    for index in range(count):
        image = photographs[index % len(photographs)]
        scale = draw.uniform(0.6, 1.0) * min(image.width / WIDTH, image.height / HEIGHT)
        width, height = int(WIDTH * scale), int(HEIGHT * scale)
        left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
        part = image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        buffer = io.BytesIO()
        part.save(buffer, "JPEG", quality=QUALITY)
        for split in ("train", "val"):
            path = root / split / f"class{index % CLASSES}" / f"{index:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
        total += len(buffer.getvalue())
    return total


def first_pixels(contender: Contender) -> Any:
    """The grey levels of its first batch, 0 to 255: torchvision's older ToTensor divides by 255 where the newer one multiplies."""
    import torch

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    batch = contender.run(1)  # type: ignore[call-arg]
    return ((batch * std + mean) * 255).round()


def contenders(folder: Path, options: argparse.Namespace) -> list[Contender]:
    """torchvision first. Each returns the last batch that it made."""
    from attn.data.pack import Packing, pack

    data = composed("data=imagenet", f"data.root={folder / 'images'}", f"data.num_classes={CLASSES}", "data.workers=0").data
    for name, packing in (("original", Packing()), ("side256", Packing(side=256))):
        pack(data, not options.evaluation, folder / name / split(options), packing, 0, lambda _: None)
    ways = {"pil": (data.root, "imagefolder", "pil"), "region": (data.root, "imagefolder", "region")}
    ways["packed, region"] = (str(folder / "original"), "packed", "region")
    ways["packed at 256, region"] = (str(folder / "side256"), "packed", "region")
    found = [Contender("torchvision", torchvision(folder / "images", options)), Contender("timm", timm(folder, options))]
    for name, (root, source, decoder) in ways.items():
        found.append(Contender(f"attn {name}", ours(replace(data, root=root, source=source, decoder=decoder), options)))
    return found


def split(options: argparse.Namespace) -> str:
    return "val" if options.evaluation else "train"


def torchvision(root: Path, options: argparse.Namespace) -> Callable[..., Any]:
    """The transformations of torchvision's ImageNet example."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    first = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    if options.evaluation:
        first = [transforms.Resize(256), transforms.CenterCrop(224)]
    dataset = datasets.ImageFolder(root / split(options), transforms.Compose([*first, *last]))
    return over(lambda: DataLoader(dataset, options.batch, shuffle=not options.evaluation))


def timm(folder: Path, options: argparse.Namespace) -> Callable[..., Any]:
    import torch
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("folder", root=str(folder / "images"), split=split(options))
    loader = create_loader(
        dataset,
        224,
        options.batch,
        is_training=not options.evaluation,
        color_jitter=0,
        interpolation="bilinear",
        train_crop_mode="rrc",
        crop_pct=0.875,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    return over(lambda: loader)


def over(batches: Callable[[], Any]) -> Callable[..., Any]:
    def passed(most: int | None = None) -> Any:
        images = None
        for number, batch in enumerate(batches()):
            images = batch[0]
            if number + 1 == most:
                break
        return images

    return passed


def ours(data: Any, options: argparse.Namespace) -> Callable[..., Any]:
    import torch

    from attn.data.loader import evaluation_batches, evaluation_data, to_device, train_data
    from attn.distributed import Ranks

    ranks = Ranks(0, 1, torch.device("cpu"))
    if options.evaluation:
        seeded = evaluation_data(data)
        loaded = lambda: evaluation_batches(seeded, options.batch, 0, ranks)  # noqa: E731
    else:
        training = train_data(data, options.batch, 1, 0, ranks)
        seeded = training.dataset
        epochs = iter(range(1_000_000))

        def loaded() -> Any:  # another epoch each time, with other crops
            start = next(epochs) * training.steps_per_epoch
            return training.batches(start, start + training.steps_per_epoch, ranks)

    def batches() -> Any:
        for batch in loaded():
            moved = to_device(batch, ranks.device, options.channels_last, seeded.pixels)
            yield moved.images, moved.labels

    return over(batches)
