"""Batches are a function of (seed, epoch, step), and data sets are what their configs say."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, composed
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as TF

from attn import rng
from attn.config.schema import Data
from attn.data import elpv
from attn.data.datasets import class_names, load_dataset, sample_weights
from attn.data.loader import Batch, Seeded, evaluation_batches, evaluation_data, train_data
from attn.data.splits import random_split, stratified
from attn.data.transforms import Pixels, eval_transform, train_transform
from attn.distributed import Ranks
from attn.errors import UserError

CPU = torch.device("cpu")
SMALL = {"image_size": 16, "test_resize": 16, "workers": 0}
DIGITS = Data(name="digits", source="digits", num_classes=10, crop="random_resized", color_jitter=0.4, rotate=10, **SMALL)


def ranks(world: int = 1) -> list[Ranks]:
    return [Ranks(rank, world, CPU) for rank in range(world)]


def some_batches(workers: int, start: int = 0, seed: int = 0) -> list[Batch]:
    data = Data(**{**vars(DIGITS), "workers": workers})
    return list(train_data(data, 32, 2, seed, ranks()[0]).batches(start, 3, ranks()[0]))


def test_batches_do_not_depend_on_the_workers() -> None:
    for one, other in zip(some_batches(0), some_batches(3), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_batches_do_not_depend_on_where_the_run_started() -> None:
    whole, rest = some_batches(0), some_batches(2, start=1)
    assert len(whole) == 6
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.images, other.images)


def test_another_seed_gives_other_batches() -> None:
    assert not torch.equal(some_batches(0)[0].indices, some_batches(0, seed=1)[0].indices)


@given(st.integers(0, 500), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]))
def test_ranks_share_the_batch_of_a_step(step: int, world: int, accumulate: int) -> None:
    data = train_data(DIGITS, 32, accumulate, 0, ranks(world)[0])
    alone = train_data(DIGITS, 32, 1, 0, ranks()[0])
    shared = [key for rank in ranks(world) for part in data.keys(step, rank) for key in part]
    assert sorted(shared) == sorted(alone.keys(step, ranks()[0])[0])


def test_an_epoch_shows_no_image_twice_and_the_next_one_differs() -> None:
    data = train_data(DIGITS, 32, 1, 0, ranks()[0])
    epochs = [
        [
            index
            for step in range(e * data.steps_per_epoch, (e + 1) * data.steps_per_epoch)
            for _, index in data.keys(step, ranks()[0])[0]
        ]
        for e in (0, 1)
    ]
    assert data.steps_per_epoch == 1442 // 32
    for seen in epochs:
        assert len(seen) == len(set(seen)) == data.steps_per_epoch * 32
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("world", [1, 2, 3, 400])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_evaluation_shows_every_image_once(world: int, batch_size: int) -> None:
    dataset = evaluation_data(DIGITS)
    seen = [
        i
        for rank in ranks(world)
        for batch in evaluation_batches(dataset, batch_size, 0, rank)
        for i in batch.indices.tolist()
    ]
    assert sorted(seen) == list(range(len(dataset)))


@pytest.mark.parametrize(("hflip", "expected"), [(0.0, 0), (0.5, 200), (1.0, 400)])
@pytest.mark.parametrize("crop", ["resize", "pad", "random_resized"])
def test_the_share_of_flipped_images(crop: str, hflip: float, expected: int) -> None:
    """Of 400 images, dark on the left and bright on the right."""
    image = Image.fromarray(np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))).convert("RGB")
    data = Data(name="x", crop=crop, pad=1, hflip=hflip, mean=[0.0] * 3, std=[1.0] * 3, crop_scale=[0.5, 1.0], **SMALL)
    samples = Seeded([(image, 0)] * 400, train_transform(data), seed=0)  # type: ignore[arg-type]
    flipped = 0
    for index in range(400):
        pixels = samples[0, index][0]
        flipped += bool(pixels[..., :4].float().mean() > pixels[..., -4:].float().mean())
    assert abs(flipped - expected) <= (40 if 0 < hflip < 1 else 0)  # four standard deviations


def test_seed_epoch_and_index_each_change_the_augmentation() -> None:
    """And nothing else does: neither what was drawn before, nor the image's place in the data set's order."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    transform = train_transform(Data(name="x", color_jitter=0.4, **SMALL))

    def crop(seed: int, epoch: int, index: int) -> bytes:
        return Seeded([(image, 0)] * 4, transform, seed)[epoch, index][0].numpy().tobytes()  # type: ignore[arg-type]

    keys = [(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in (0, 1)]
    assert len({crop(*key) for key in keys}) == len(keys)
    assert crop(0, 1, 0) == crop(0, 1, 0)


@pytest.mark.parametrize("seed", [rng.seed_everything, rng.seed_sample])
def test_a_key_seeds_python_numpy_and_torch(seed: Callable[..., None]) -> None:
    def draw(*key: int | str) -> tuple[float, float, float]:
        seed(*key)
        return random.random(), float(np.random.random()), float(torch.rand(()))

    one, other = draw(0, "sample", 1, 2), draw(0, "sample", 2, 1)
    assert one == draw(0, "sample", 1, 2)
    assert all(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("size", "interpolation"), [((60, 50), "bilinear"), ((41, 90), "bicubic"), ((30, 33), "bilinear")])
def test_evaluation_pixels_are_torchvisions(size: tuple[int, int], interpolation: str) -> None:
    """The shorter side to `test_resize`, the middle of `image_size`, and the mean and deviation of each channel."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    data = Data(image_size=32, test_resize=40, test_interpolation=interpolation, interpolation="nearest")
    resized = TF.resize(image, 40, {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[interpolation])
    assert min(resized.size) == 40
    pixels = TF.to_tensor(TF.center_crop(resized, [32, 32]))
    expected = TF.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    transform = eval_transform(data)
    torch.testing.assert_close(transform.pixels.normalised(transform(image)), expected, rtol=0, atol=1e-6)


def test_digits_are_real_and_split_by_class() -> None:
    train, val = load_dataset(DIGITS, True), load_dataset(DIGITS, False)
    assert (len(train), len(val)) == (1442, 355)
    labels = np.bincount([label for _, label in val])
    assert labels.min() >= 34
    image, _ = train[0]
    assert image.size == (8, 8)
    assert image.mode == "RGB"


def test_a_stratified_split_is_a_partition() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 103)
    out, kept = stratified(labels, 4, True), stratified(labels, 4, False)
    assert sorted([*out, *kept]) == list(range(103))
    for label in range(5):
        assert (labels[out] == label).sum() == (labels == label).sum() // 4


def write_folder(root: Path, splits: dict[str, int], classes: int = 2) -> None:
    for split, count in splits.items():
        for label in range(classes):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.JPEG")


def test_an_imagenet_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 3, "val": 2})
    data = Data(root=str(tmp_path), num_classes=2, **SMALL)
    train, val = load_dataset(data, True), load_dataset(data, False)
    assert (len(train), len(val)) == (6, 4)
    assert [label for _, label in train] == [0, 0, 0, 1, 1, 1]
    batch = next(iter(evaluation_batches(evaluation_data(data), 4, 0, ranks()[0])))
    assert batch.images.shape == (4, 3, 16, 16)


def test_a_folder_that_does_not_fit(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 1})
    with pytest.raises(ValueError, match=r"2 class folders, but data\.num_classes=3"):
        load_dataset(Data(root=str(tmp_path), num_classes=3), True)
    with pytest.raises(ValueError, match=r"val: no such folder"):
        load_dataset(Data(root=str(tmp_path), num_classes=2), False)
    next((tmp_path / "train" / "n00000001").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"n00000001: no image"):
        load_dataset(Data(root=str(tmp_path), num_classes=2), True)


def test_cifar100_as_torchvision_stores_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 20), ("test", 10), ("meta", 0)):
        content = {"data": np.zeros((count, 3072), np.uint8), "fine_labels": [i % 100 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(content | {"fine_label_names": [str(i) for i in range(100)]}))
    import torchvision.datasets.cifar as cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # the sums are those of the real files
    data = Data(name="cifar100", source="cifar100", root=str(tmp_path), num_classes=100)
    assert len(load_dataset(data, True)) == 20
    image, label = load_dataset(data, False)[7]
    assert (image.size, label) == ((32, 32), 7)
    with pytest.raises(ValueError, match="cifar-100-python"):
        load_dataset(Data(source="cifar100", root=str(folder), num_classes=100), True)


def test_timm_sources(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 2, "validation": 1})
    data = Data(name="timm", source="timm", dataset="folder/", root=str(tmp_path), num_classes=2, val_split="validation")
    assert (len(load_dataset(data, True)), len(load_dataset(data, False))) == (4, 2)
    with pytest.raises(ValueError, match="timm cannot open"):
        load_dataset(Data(source="timm", dataset="torch/nothing", root=str(tmp_path)), True)


def test_photographs_of_solar_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(name="elpv", source="elpv", num_classes=4)
    if importlib.util.find_spec("elpv_dataset") is None:
        with pytest.raises(ValueError, match="pip install"):
            load_dataset(data, True)
        return
    images = elpv.load()
    monkeypatch.setattr(elpv, "load", lambda: images)  # each time takes seconds
    train, val = load_dataset(data, True), load_dataset(data, False)
    assert len(train) + len(val) == 2624
    assert {label for _, label in val} == {0, 1, 2, 3}
    for name, classes, held_out in (("elpv_four", 4, 525), ("elpv_defect", 2, 656)):
        protocol = composed(f"data={name}", "seed=3").data
        assert (protocol.split, protocol.num_classes) == (3, classes)
        train, val = load_dataset(protocol, True), load_dataset(protocol, False)
        assert abs(len(val) - held_out) <= 4  # each of eight strata is rounded
        assert len(train) + len(val) == 2624
        assert class_names(train) == class_names(val)
        weights = sample_weights(train)
        if name == "elpv_four":
            assert weights is None
        else:
            assert weights is not None
            assert len(weights) == len(train)
            assert set(weights.round(3).tolist()) == set(np.float32([2 / 3, 1]).round(3).tolist())


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=80).map(np.array),
    st.floats(0.05, 0.95),
    st.integers(0, 5),
)
def test_a_random_split_is_a_partition_that_keeps_the_strata(strata: np.ndarray, fraction: float, number: int) -> None:
    out, kept = random_split(strata, fraction, number, True), random_split(strata, fraction, number, False)
    assert sorted([*out, *kept]) == list(range(len(strata)))
    for stratum in np.unique(strata):
        assert (strata[out] == stratum).sum() == round(fraction * (strata == stratum).sum())
    assert np.array_equal(out, random_split(strata, fraction, number, True))


def test_random_splits_are_those_that_results_were_published_with() -> None:
    """A split is a function of its number, on every machine and with every version."""
    strata = np.arange(40) % 4
    assert random_split(strata, 0.25, 0, True).tolist() == [0, 1, 11, 15, 17, 24, 26, 30]
    others = {tuple(random_split(strata, 0.25, number, True)) for number in range(20)}
    assert len(others) == 20


@pytest.mark.parametrize("name", ["elpv", "elpv_four", "elpv_defect"])
def test_published_splits_are_those_of_training(name: str) -> None:
    """Each holds out its share of each probability and type of cell, and trains on all others."""
    if importlib.util.find_spec("elpv_dataset") is None:
        pytest.skip("needs elpv-dataset")
    table = (importlib.resources.files("elpv_dataset") / "data" / "labels.csv").read_text().split()
    thirds = np.rint(np.array(table[1::3], dtype=float) * 3).astype(int)
    types = np.array(table[2::3])
    content = json.loads((ROOT / "docs" / "results" / "splits" / f"{name}.json").read_text())
    data = composed(f"data={name}").data
    assert list(content["held_out"]) == (["fixed"] if name == "elpv" else [str(number) for number in range(50)])
    assert content["images"] == len(thirds) == 2624
    for number, held_out in content["held_out"].items():
        split = None if number == "fixed" else int(number)
        if split not in (None, 0, 1, 49):  # each takes a while
            continue
        assert held_out == elpv.rows_of(thirds, types, split, data.held_out, held_out=True).tolist()
        trained = elpv.rows_of(thirds, types, split, data.held_out, held_out=False)
        assert sorted([*held_out, *trained]) == list(range(2624))
    for held_out in content["held_out"].values():
        out = np.isin(np.arange(2624), held_out)
        share = 0.25 if name == "elpv" else data.held_out
        for third in range(4):
            for kind in ("mono", "poly") if name != "elpv" else ("",):
                stratum = (thirds == third) & np.char.startswith(types, kind)
                assert abs((out & stratum).sum() - share * stratum.sum()) <= 1
    assert len({str(held_out) for held_out in content["held_out"].values()}) == len(content["held_out"])


def test_confidence_is_the_chance_that_the_label_is_right() -> None:
    thirds = np.array([0, 1, 2, 3])
    assert elpv.confidence(thirds) == pytest.approx([1, 2 / 3, 2 / 3, 1])
    with pytest.raises(UserError, match=r"schedule\.mixup=0"):
        composed("data=elpv_defect", "schedule.mixup=0.2")
    with pytest.raises(UserError, match=r"data\.sample_weight=confidence: data\.source=digits takes none"):
        composed("data=digits", "+data.sample_weight=confidence")


def test_labels_of_the_protocols() -> None:
    thirds = np.array([0, 1, 2, 3])
    assert elpv.labels_of(thirds, "probability").tolist() == [0, 1, 2, 3]
    assert elpv.labels_of(thirds, "defect").tolist() == [0, 0, 1, 1]


def test_fake_images_are_a_function_of_their_index() -> None:
    data = Data(source="fake", samples=5, num_classes=3, image_size=8)
    one, other = load_dataset(data, True), load_dataset(data, True)
    assert [label for _, label in (one[i] for i in range(5))] == [0, 1, 2, 0, 1]
    assert np.array_equal(np.asarray(one[4][0]), np.asarray(other[4][0]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, torch.preserve_format])
@pytest.mark.parametrize("stored", [torch.contiguous_format, torch.channels_last])
def test_a_batch_is_normalised_to_the_bits_of_its_images(stored: torch.memory_format, layout: torch.memory_format) -> None:
    pixels = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = torch.randint(0, 256, (5, 3, 7, 9), dtype=torch.uint8).contiguous(memory_format=stored)
    before = images.clone()
    batch = pixels.normalised(images, layout)
    assert batch.is_contiguous(memory_format=stored if layout == torch.preserve_format else layout)
    assert torch.equal(batch, torch.stack([pixels.normalised(image) for image in images]))
    assert torch.equal(images, before)
    assert pixels.normalised(images[:0], layout).shape == (0, 3, 7, 9)
