"""Which images a figure looks at, and how they come into batches."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from attn import rng
from attn.config.groups import unknown
from attn.config.schema import Data
from attn.data.datasets import Arrays, CheckedLabels, Fake
from attn.data.imagefolder import Folder, UnreadableImage
from attn.data.loader import Batch, Seeded, evaluation_batches, to_device
from attn.distributed import Ranks
from attn.errors import UserError

# The classes of BA-Net's Figure 4 by their folders in ImageNet.
PAPER_CLASSES = {
    "n01682714": "American chameleon",
    "n02980441": "castle",
    "n03876231": "paintbrush",
    "n03998194": "prayer mat",
}


def bar(items: Any, what: str, total: int | None = None) -> Any:
    """A progress bar over `items`, on a terminal only."""
    return tqdm(items, what, total, leave=False, disable=not sys.stderr.isatty())


def labels_of(dataset: Dataset) -> np.ndarray:
    """The labels of a data set, [N]; images are read only where nothing else tells them."""
    if isinstance(dataset, Arrays):
        return np.asarray(dataset.labels)
    if isinstance(dataset, Fake):
        return np.arange(len(dataset)) % dataset.num_classes
    if isinstance(dataset, Folder):
        return np.array([label for _, label in dataset.samples])
    inner = dataset.dataset if isinstance(dataset, CheckedLabels) else dataset
    known = getattr(inner, "targets", None)
    if known is not None:
        return np.asarray(known)
    try:
        return np.array([inner[i][1] for i in bar(range(len(inner)), "labels")])  # type: ignore[arg-type]
    except UnreadableImage as error:
        raise UserError(str(error)) from None


def choose_classes(wanted: Sequence[str], names: Sequence[str] | None, count: int, default: int = 4) -> dict[int, str]:
    """Labels with the names to show.

    Args:
        wanted: names of classes, or labels as numbers; empty for the classes of BA-Net's Figure 4 where the data set has them, else
            the first `default` ones.
        names: the data set's names in the order of the labels, or None.
        count: number of classes.

    Raises:
        UserError: there is no such class.
    """
    known = list(names) if names else [str(i) for i in range(count)]
    if not wanted:
        wanted = [n for n in PAPER_CLASSES if n in known] if set(PAPER_CLASSES) <= set(known) else known[:default]
    chosen = {}
    for name in wanted:
        if name in known:
            label = known.index(name)
        elif name in PAPER_CLASSES.values() and (folder := _folder_of(name)) in known:
            label = known.index(folder)
        elif name.isdecimal() and int(name) < count:
            label = int(name)
        else:
            raise UserError(f"classes: {unknown('class', name, known if count <= 30 else [*known[:10], '...'])}")
        chosen[label] = PAPER_CLASSES.get(known[label], known[label]) if names else f"class {label}"
    return chosen


def _folder_of(name: str) -> str:
    return next(folder for folder, shown in PAPER_CLASSES.items() if shown == name)


def of_classes(labels: np.ndarray, classes: Sequence[int], each: int) -> np.ndarray:
    """The first `each` images of each class, by their indices, class after class.

    Raises:
        UserError: a class has no image.
    """
    found = [np.flatnonzero(labels == label)[:each] for label in classes]
    empty = [str(label) for label, rows in zip(classes, found, strict=True) if not len(rows)]
    if empty:
        raise UserError(f"classes: there is no image with the label {', '.join(empty)}")
    return np.concatenate(found)


def sample(count: int, wanted: int | None, seed: int) -> np.ndarray:
    """Indices of `wanted` of `count` images without repetition, in order; of all, if `wanted` is None or more."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.sort(rng.permutation(count, seed, "analysis")[:wanted].numpy())


def batches(
    data: Seeded,
    indices: Sequence[int] | np.ndarray,
    batch_size: int,
    device: torch.device,
    what: str,
    workers: int | None = 0,
) -> Iterator[Batch]:
    """The images at `indices` with the transform of `data`, in their order, on the device; `what` names the progress bar.

    `Batch.indices` are positions in `indices`.
    """
    part = Seeded(Subset(data.dataset, [int(i) for i in indices]), data.transform, seed=0, training=False)
    loaded = evaluation_batches(part, batch_size, workers, Ranks(0, 1, device))
    for batch in bar(loaded, what, -(-len(part) // batch_size)):
        yield to_device(batch, device, channels_last=False, pixels=data.pixels)


def pixels(images: torch.Tensor, data: Data) -> np.ndarray:
    """Normalised images [N, 3, H, W] as they look, [N, H, W, 3] from 0 to 1."""
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (data.mean, data.std))
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
