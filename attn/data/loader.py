"""Batches: which images at which step on which rank, as a function of (seed, epoch, step), whatever the workers do."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from attn import console, rng
from attn.config.schema import Data
from attn.data.datasets import load_dataset
from attn.data.imagefolder import UnreadableImage
from attn.data.transforms import Pixels, Transform, eval_transform, train_transform
from attn.data.workers import outlive_signals, worker_count
from attn.distributed import Ranks
from attn.errors import UserError

Key = tuple[int, int]  # epoch, index of the image


class Batch(NamedTuple):
    """Images [N, 3, S, S], labels [N], their indices in the data set [N], and whether each replaces an unreadable one [N].

    The images are uint8, or normalised already; `to_device` normalises them.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    replaced: Tensor


class Seeded(Dataset):
    """A data set with a transform, whose randomness is a function of (seed, epoch, index).

    The item of the key (epoch, index) is (image [3, S, S], label, index of the image, whether it replaces an unreadable
    image). With `replace_unreadable` the next readable image takes the place of an unreadable one; without it a UserError
    names the file.
    """

    def __init__(
        self, dataset: Dataset, transform: Transform, seed: int, replace_unreadable: bool = False, training: bool = True
    ) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.replace_unreadable, self.training = replace_unreadable, training

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    @property
    def pixels(self) -> Pixels:
        """How the images are normalised."""
        return self.transform.pixels

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int, bool]:
        epoch, index = key
        for offset in range(len(self)):
            found = (index + offset) % len(self)
            # Before each: a damaged image may have drawn numbers before its damage showed.
            rng.seed_sample(self.seed, "sample", epoch, index)
            try:
                image, label = self.dataset[found]
                return self.transform(image), label, found, found != index
            except UnreadableImage as error:
                if not self.replace_unreadable:
                    other = (
                        "or set data.on_error=replace"
                        if self.training
                        else "for a test image is never replaced: the score would count another one"
                    )
                    raise UserError(f"{error}; repair or remove it, {other}") from None
                print(f"warning: {error}; replaced by the next image", file=sys.stderr)
        raise UserError("data.on_error=replace: not one image of the data set can be read")


@dataclass(frozen=True)
class TrainData:
    """The training images, cut into batches.

    Attributes:
        dataset: for the key (epoch, index) it returns (image [3, S, S], label, index of the image, whether that image
            replaces an unreadable one); see `Seeded`.
        batch_size: images per step over all ranks and accumulated parts.
        accumulate: parts into which a rank's share of a batch is split.
        seed: seed of the permutations.
        workers: loader processes of this rank; None: one per processor core, at most 4.
    """

    dataset: Seeded
    batch_size: int
    accumulate: int
    seed: int
    workers: int | None

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; the images that are left over appear in other epochs, whose permutations differ."""
        return len(self.dataset) // self.batch_size

    def keys(self, step: int, ranks: Ranks) -> list[list[Key]]:
        """The (epoch, index) keys of this rank at a step: one list per accumulated part."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = rng.permutation(len(self.dataset), self.seed, "permutation", epoch)
        batch = order[position * self.batch_size : (position + 1) * self.batch_size]
        parts = batch.view(self.accumulate, ranks.world, -1)[:, ranks.rank]
        return [[(epoch, index) for index in part.tolist()] for part in parts]

    def batches(self, start: int, stop: int, ranks: Ranks) -> Generator[Batch, None, None]:
        """All parts of this rank's batches at steps `start` to `stop`, in order, loaded ahead."""
        keys = (part for step in range(start, stop) for part in self.keys(step, ranks))
        return _load(self.dataset, keys, self.workers, ranks)


def evaluation_batches(dataset: Seeded, batch_size: int, workers: int | None, ranks: Ranks) -> Generator[Batch, None, None]:
    """This rank's share of a data set, each image exactly once over all ranks; it may be empty."""
    workers = min(worker_count(workers), most_workers())  # a checkpoint may come from a larger machine
    mine = range(ranks.rank, len(dataset), ranks.world)
    keys = ([(0, i) for i in mine[at : at + batch_size]] for at in range(0, len(mine), batch_size))
    return _load(dataset, keys, workers, ranks)


PER_CORE = 8


def most_workers() -> int:
    """The most loader processes that a rank may have: more would take minutes to start, and memory that the images need."""
    return PER_CORE * max(os.cpu_count() or 1, 4)


def _load(dataset: Seeded, keys: Iterator[list[Key]], workers: int | None, ranks: Ranks) -> Generator[Batch, None, None]:
    pin = ranks.device.type == "cuda"
    loader = DataLoader(
        _Caught(dataset),
        batch_sampler=_Once(keys),
        num_workers=worker_count(workers),
        pin_memory=pin,
        worker_init_fn=outlive_signals,
        collate_fn=_collate,
    )
    watch = console.Watch()
    batches = iter(loader)
    try:
        while True:
            with watch.waiting("the next batch: the data is slow"):
                loaded = next(batches, None)
            if loaded is None:
                return
            if isinstance(loaded, UserError):
                raise loaded
            yield Batch(*loaded)
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise UserError(
                f"a loader process died, perhaps because memory ran out ({error}); try fewer data.workers"
            ) from None
        raise
    finally:
        watch.close()
        # An exception keeps the iterator alive, and its processes would live PATIENCE seconds longer than this one.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()


class _Caught(Dataset):
    """The data set, with a `UserError` as the item where there is one: a loader process hands it over as it is."""

    def __init__(self, dataset: Seeded) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int, bool] | UserError:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def _collate(items: list[Any]) -> Any:
    """The items as one batch, or the first error among them."""
    failed = next((item for item in items if isinstance(item, UserError)), None)
    if failed is not None:
        return failed
    images, *rest = zip(*items, strict=True)
    return [_stacked(images), *(default_collate(list(values)) for values in rest)]


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """Images [3, S, S] as a batch. Decoded pixels lie channel by channel within each pixel, and stay so: that copies whole lines."""
    if images[0].dtype != torch.uint8:
        return default_collate(list(images))
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


class _Once:
    """A batch sampler that iterates once over the batches of an iterator."""

    def __init__(self, keys: Iterator[list[Key]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[list[Key]]:
        return self.keys


def train_data(data: Data, batch_size: int, accumulate: int, seed: int, ranks: Ranks) -> TrainData:
    """Opens the training set.

    Raises:
        ValueError: the batch cannot be shared evenly, or is larger than the data set.
        OSError: files are missing.
    """
    if batch_size % (accumulate * ranks.world):
        raise ValueError(
            f"schedule.batch_size={batch_size} cannot be shared by {ranks.world} ranks x {accumulate} accumulated parts: "
            f"it must be a multiple of {accumulate * ranks.world}"
        )
    most = most_workers()
    if data.workers is not None and data.workers > most:
        raise ValueError(
            f"data.workers={data.workers}: more than {most}, {PER_CORE} for each of the processor cores here, would only "
            "wait for each other; lower it"
        )
    with console.told_if_slow(f"the training images of data={data.name} to be listed"):
        dataset = load_dataset(data, train=True)
    seeded = Seeded(dataset, train_transform(data), seed, data.on_error == "replace")
    if len(seeded) < batch_size:
        raise ValueError(
            f"schedule.batch_size={batch_size} is more than the {len(seeded)} training images of data={data.name}"
        )
    return TrainData(seeded, batch_size, accumulate, seed, data.workers)


def evaluation_data(data: Data) -> Seeded:
    """Opens the validation set; see `load_dataset` for what it raises."""
    with console.told_if_slow(f"the validation images of data={data.name} to be listed"):
        dataset = load_dataset(data, train=False)
    return Seeded(dataset, eval_transform(data), seed=0, training=False)


def to_device(batch: Batch, device: torch.device, channels_last: bool, pixels: Pixels) -> Batch:
    """Moves a batch, without waiting where the memory is pinned, and normalises its images there."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = pixels.normalised(batch.images.to(device, non_blocking=True), layout)
    return batch._replace(images=images, labels=batch.labels.to(device, non_blocking=True))
