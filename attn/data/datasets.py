"""Data sets by name: each is map-style and gives (PIL image, label), before any transformation."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from attn.config.schema import Data
from attn.errors import UserError, reason


class Arrays(Dataset):
    """Images held in memory.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 3].
        labels: int [N].
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]).convert("RGB"), int(self.labels[index])


class Fake(Dataset):
    """Random images, each a function of its index."""

    def __init__(self, samples: int, num_classes: int, size: int) -> None:
        self.samples, self.num_classes, self.size = samples, num_classes, size

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.random.default_rng(index).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
        return Image.fromarray(pixels), index % self.num_classes


class Relabelled(Dataset):
    """A data set of torchvision or timm, whose pair is (image, label); the label must be one of `num_classes`."""

    def __init__(self, dataset: Any, num_classes: int) -> None:
        self.dataset, self.num_classes = dataset, num_classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.dataset[index]
        if not 0 <= int(label) < self.num_classes:
            raise UserError(f"image {index} has the label {label}, but data.num_classes={self.num_classes}")
        return image.convert("RGB"), int(label)


def load_dataset(data: Data, train: bool) -> Dataset:
    """The training or validation images of a config.

    Raises:
        ValueError, OSError: something is missing or does not fit; the message names the path and what is expected there.
    """
    return SOURCES[data.source](data, train)


def imagefolder(data: Data, train: bool) -> Dataset:
    from attn.data.imagefolder import Folder, class_folders

    root = _root(data)
    folder = Folder(root / (data.train_split if train else data.val_split), data.num_classes)
    other = root / data.train_split
    if not train and other.is_dir():  # a label is the place of its class in the alphabet
        missing = sorted(set(class_folders(other)) ^ set(folder.classes))
        if missing:
            raise ValueError(
                f"{root}: {data.train_split} and {data.val_split} have other classes, {', '.join(missing[:3])} is in one alone: "
                "the labels would not agree"
            )
    return folder


def cifar100(data: Data, train: bool) -> Dataset:
    from torchvision.datasets import CIFAR100

    root = _root(data)
    if not (root / "cifar-100-python").is_dir():
        raise ValueError(f"data.root={root}: no folder cifar-100-python in it (unpack cifar-100-python.tar.gz there)")
    _expect_classes(data, 100)
    try:
        dataset = CIFAR100(str(root), train=train)
    except Exception as error:  # its files are pickles: a damaged one raises nearly anything
        raise ValueError(
            f"data.root={root}: the files of cifar-100-python cannot be read ({reason(error)}); "
            "unpack cifar-100-python.tar.gz there again"
        ) from error
    return Relabelled(dataset, data.num_classes)


def digits(data: Data, train: bool) -> Dataset:
    from sklearn.datasets import load_digits

    _expect_classes(data, 10)
    bunch = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)
    rows = stratified(bunch.target, every=5, held_out=not train)
    return Arrays(images[rows], bunch.target[rows])


def elpv(data: Data, train: bool) -> Dataset:
    if importlib.util.find_spec("elpv_dataset") is None:
        raise ValueError("data=elpv needs the package elpv-dataset: pip install 'attn[elpv]' (CC BY-NC-SA)")
    from elpv_dataset.utils import load_dataset as load_elpv

    _expect_classes(data, 4)
    images, probabilities, _ = load_elpv()
    labels = np.rint(np.asarray(probabilities, dtype=np.float64) * 3).astype(np.int64)
    rows = stratified(labels, every=4, held_out=not train)
    return Arrays(np.asarray(images)[rows], labels[rows])


def fake(data: Data, train: bool) -> Dataset:
    return Fake(data.samples, data.num_classes, data.image_size)


def from_timm(data: Data, train: bool) -> Dataset:
    from timm.data import create_dataset

    if not data.dataset:
        raise ValueError(
            "data=timm needs data.dataset, a name of timm's dataset factory such as hfds/cifar10 or torch/cifar10"
        )
    split = data.train_split if train else data.val_split
    said = io.StringIO()
    try:
        root = None if data.root is None else str(Path(data.root).expanduser())
        with contextlib.redirect_stdout(said):
            dataset = create_dataset(data.dataset, root=root, split=split, is_training=train)
    except Exception as error:  # as many kinds as there are libraries below timm
        if data.root is None and isinstance(error, TypeError):
            raise ValueError(f"data.dataset={data.dataset} needs data.root, the folder where it lies") from error
        reason = " ".join(f"{error} {said.getvalue()}".split())
        reason = reason or f"no such data set, or data.root is no folder with {split!r} in it"
        raise ValueError(
            f"data.dataset={data.dataset} data.root={data.root}: timm cannot open {split!r}: {reason}"
        ) from error
    if said.getvalue():
        print(said.getvalue(), end="")
    if not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"data.dataset={data.dataset} is a stream: batches would depend on the number of workers, and a run could not be "
            "resumed exactly; use its indexed form (hfds/ instead of hfids/, tar/ or a folder instead of wds/)"
        )
    known = getattr(dataset, "classes", None) or getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if known:
        _expect_classes(data, len(known))
    return Relabelled(dataset, data.num_classes)


SOURCES: dict[str, Callable[[Data, bool], Dataset]] = {
    "imagefolder": imagefolder,
    "cifar100": cifar100,
    "digits": digits,
    "elpv": elpv,
    "fake": fake,
    "timm": from_timm,
}


def stratified(labels: np.ndarray, every: int, held_out: bool) -> np.ndarray:
    """Row numbers of a fixed split: of each class, every `every`-th image in order is held out."""
    position = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        position[rows] = np.arange(len(rows))
    out = position % every == every - 1
    return np.flatnonzero(out if held_out else ~out)


def _root(data: Data) -> Path:
    if not data.root:
        raise ValueError(f"data.root must be set for data={data.name}, as in data.root=/data/{data.name}")
    root = Path(data.root).expanduser()
    if not root.is_dir():
        variable = {"imagefolder": "IMAGENET_ROOT", "cifar100": "CIFAR100_ROOT"}.get(data.source)
        raise ValueError(
            f"data.root={data.root}: no such folder; set data.root=" + (f", or export {variable}" if variable else "")
        )
    return root


def _expect_classes(data: Data, present: int) -> None:
    if data.num_classes != present:
        raise ValueError(
            f"data.num_classes={data.num_classes}, but data={data.name} has {present} classes: set data.num_classes={present}"
        )
