"""Data sets by name: each is map-style and returns (PIL image or `Encoded`, label), before any transformation."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data.dataset import ImageDataset
from torch.utils.data import Dataset

from attn import console
from attn.config.schema import Data
from attn.data.imagefolder import Encoded, Folder, UnreadableImage, class_folders
from attn.data.packed import Packed
from attn.data.root import check_place, data_root
from attn.data.splits import stratified
from attn.errors import UserError, reason


class Arrays(Dataset):
    """Images held in memory.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 3].
        labels: int [N].
        classes: names in the order of the labels.
        weights: of each image in the loss, float [N]; None: all are 1.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], weights: np.ndarray | None = None
    ) -> None:
        self.images, self.labels, self.classes, self.weights = images, labels, list(classes), weights

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


class CheckedLabels(Dataset):
    """A data set of torchvision or timm that returns (image, label); checks that 0 <= label < `num_classes`.

    timm would replace an image that it cannot read by another one, so its reader is asked for the bytes, which are decoded
    here.

    Attributes:
        classes: names in the order of their labels; None where the data set has none.
    """

    def __init__(self, dataset: Any, num_classes: int) -> None:
        self.dataset, self.num_classes = dataset, num_classes
        self.classes = _class_names(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image | Encoded, int]:
        image, label = self._read(index)
        if label is None or not 0 <= int(label) < self.num_classes:
            raise UserError(f"{self._place(index)} has the label {label}, but data.num_classes={self.num_classes}")
        return image, int(label)

    def _read(self, index: int) -> tuple[Image.Image | Encoded, Any]:
        """The image, as RGB if it is decoded, and its label, which may be None.

        Raises:
            UnreadableImage: the file is missing, damaged or no image.
        """
        try:
            if isinstance(self.dataset, ImageDataset):
                content, label = self.dataset.reader[index][:2]
                with content:
                    return Encoded(content.read(), self._place(index)), label
            image, label = self.dataset[index]
            return image.convert("RGB"), label
        except Exception as error:  # a damaged file makes decoders raise nearly anything
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EACCES, errno.EISDIR):
                raise  # the file system fails, not the image
            raise UnreadableImage(f"{self._place(index)}: cannot be read as an image ({error})") from error

    def _place(self, index: int) -> str:
        """The file of an image where the data set knows it, else its number."""
        if isinstance(self.dataset, ImageDataset):
            return f"{self.dataset.filename(index, absolute=True)} (image {index})"
        samples = getattr(self.dataset, "samples", None)
        root = getattr(self.dataset, "root", None)
        where = f"{type(self.dataset).__name__}" + (f" in {root}" if root else "")
        return f"{samples[index][0]} (image {index})" if samples else f"image {index} of {where}"


def _class_names(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "classes", None) or getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if isinstance(names, dict):
        names = sorted(names, key=names.__getitem__)
    return [str(name) for name in names] if names else None


def class_names(dataset: Dataset) -> list[str] | None:
    """The names of a data set's classes in the order of their labels; None where it has none."""
    return getattr(dataset, "classes", None)


def sample_weights(dataset: Dataset) -> np.ndarray | None:
    """The weight of each image of a data set in the loss, float [N]; None: all are 1."""
    return getattr(dataset, "weights", None)


def image_names(dataset: Dataset) -> list[str] | None:
    """The files of a data set's images in its order; None where they are no files of their own."""
    inner = dataset.dataset if isinstance(dataset, CheckedLabels) else dataset
    if isinstance(inner, ImageDataset):
        return [inner.filename(index, absolute=True) for index in range(len(inner))]
    samples = getattr(inner, "samples", None)
    return [str(path) for path, _ in samples] if isinstance(samples, list) else None


def expect_same_classes(first: list[str] | None, second: list[str] | None, what: str) -> None:
    """Checks that a label means the same in two data sets, where both name their classes.

    Args:
        first: names in the order of their labels.
        second: those of the other one.
        what: names both data sets, for the message.

    Raises:
        ValueError: the names differ; says which label is the first that differs.
    """
    if not first or not second or first == second:
        return
    label = next(
        (i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), min(len(first), len(second))
    )
    there = [names[label] if label < len(names) else "absent" for names in (first, second)]
    raise ValueError(
        f"{what} have other classes, label {label} is {there[0]!r} in one and {there[1]!r} in the other: the labels would "
        "not agree"
    )


def load_dataset(data: Data, train: bool) -> Dataset:
    """The training or validation images of a config.

    Raises:
        ValueError, OSError: something is missing or does not fit; the message names the path and what is expected there.
    """
    return SOURCES[data.source](data, train)


def imagefolder(data: Data, train: bool) -> Dataset:
    root = data_root(data)
    folder = Folder(root / (data.train_split if train else data.val_split), data.num_classes)
    other = root / data.train_split
    if not train and other.is_dir():  # a label is the position of its class in alphabetical order
        missing = sorted(set(class_folders(other)) ^ set(folder.classes))
        if missing:
            raise ValueError(
                f"{root}: {data.train_split} and {data.val_split} have different classes, {', '.join(missing[:3])} is in "
                "only one of them: the labels would not agree"
            )
    return folder


def packed(data: Data, train: bool) -> Dataset:
    return Packed(data_root(data) / (data.train_split if train else data.val_split), data.num_classes)


def cifar100(data: Data, train: bool) -> Dataset:
    from torchvision.datasets import CIFAR100

    root = data_root(data)
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
    return CheckedLabels(dataset, data.num_classes)


def digits(data: Data, train: bool) -> Dataset:
    from sklearn.datasets import load_digits

    _expect_classes(data, 10)
    bunch = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)
    rows = stratified(bunch.target, every=5, held_out=not train)
    return Arrays(images[rows], bunch.target[rows], [str(name) for name in bunch.target_names])


def elpv(data: Data, train: bool) -> Dataset:
    from attn.data import elpv as cells

    names = cells.CLASSES[data.labels]
    images, thirds, types = cells.load()
    _expect_classes(data, len(names))
    rows = cells.rows_of(thirds, types, data.split, data.held_out, held_out=not train)
    weights = cells.confidence(thirds[rows]) if data.sample_weight == "confidence" else None
    return Arrays(images[rows], cells.labels_of(thirds, data.labels)[rows], names, weights)


def fake(data: Data, train: bool) -> Dataset:
    return Fake(data.samples, data.num_classes, data.image_size)


def from_timm(data: Data, train: bool) -> Dataset:
    from timm.data import create_dataset

    check_place(data)
    assert data.dataset is not None
    split = data.train_split if train else data.val_split
    _expect_split_folder(data, split)
    said = io.StringIO()
    try:
        root = None if data.root is None else os.path.expanduser(data.root)
        with contextlib.redirect_stdout(said):
            dataset = create_dataset(data.dataset, root=root, split=split, is_training=train)
    except Exception as error:  # as many kinds as there are libraries below timm
        if data.root is None and isinstance(error, TypeError):
            raise ValueError(f"data.dataset={data.dataset} needs data.root, the folder that holds it") from error
        reason = " ".join(f"{error} {said.getvalue()}".split())
        reason = reason or f"no such data set, or data.root is no folder with {split!r} in it"
        raise ValueError(
            f"data.dataset={data.dataset} data.root={data.root}: timm cannot open {split!r}: {reason}"
        ) from error
    if said.getvalue():
        console.say(said.getvalue().rstrip())
    if not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"data.dataset={data.dataset} is a stream: batches would depend on the number of workers, and a run could not "
            "be resumed exactly; use its indexed form (hfds/ instead of hfids/, tar/ or a folder instead of wds/)"
        )
    checked = CheckedLabels(dataset, data.num_classes)
    if checked.classes:
        _expect_classes(data, len(checked.classes))
    return checked


def _expect_split_folder(data: Data, split: str) -> None:
    """timm takes the whole root where a folder lacks the split: validation images would be trained on.

    Raises:
        ValueError: names the folder that is expected.
    """
    name, root = str(data.dataset).lower(), Path(os.path.expanduser(data.root or ""))
    by_folder = "/" not in name or name.startswith(("folder/", "torch/image_folder", "torch/folder", "tar/"))
    if data.root is None or not by_folder or not root.is_dir() or data.train_split == data.val_split:
        return
    folder = split.partition("[")[0]
    words = next((group for group in SYNONYMS if folder in group), (folder,))
    if not any((root / word).exists() for word in words):
        raise ValueError(
            f"data.dataset={data.dataset} data.root={data.root}: timm cannot open {split!r}: no folder of that name in it, "
            f"and timm would take the whole of {data.root} for it; set data.train_split and data.val_split to folders in it"
        )


SYNONYMS = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))  # to timm


SOURCES: dict[str, Callable[[Data, bool], Dataset]] = {
    "imagefolder": imagefolder,
    "packed": packed,
    "cifar100": cifar100,
    "digits": digits,
    "elpv": elpv,
    "fake": fake,
    "timm": from_timm,
}


def _expect_classes(data: Data, present: int) -> None:
    if data.num_classes != present:
        raise ValueError(
            f"data.num_classes={data.num_classes}, but data={data.name} has {present} classes: set "
            f"data.num_classes={present}"
        )
