"""Packed copies: the same images under the same numbers, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command
from PIL import Image

from attn.config.schema import Data
from attn.data import pack as packing_module
from attn.data import packed
from attn.data.datasets import load_dataset
from attn.data.imagefolder import UnreadableImage
from attn.data.loader import evaluation_data, train_data
from attn.data.pack import Packing, pack
from attn.data.packed import Packed
from attn.data.settle import settled
from attn.distributed import Ranks
from attn.errors import UserError

ONE = Ranks(0, 1, torch.device("cpu"))
SMALL = {"image_size": 16, "test_resize": 20, "num_classes": 2, "workers": 0}
COUNT = 7


@pytest.fixture
def source(tmp_path: Path) -> Data:
    """An image folder: JPEG files of several sizes, a PNG, a CMYK file."""
    root = tmp_path / "images"
    for split in ("train", "val"):
        for label in range(2):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(COUNT):
                pixels = np.random.default_rng(i).integers(0, 256, (24 + 9 * i, 60, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                if i == 1:
                    image.save(folder / f"{i}.png")
                else:
                    (image.convert("CMYK") if i == 2 else image).save(folder / f"{i}.JPEG", "JPEG")
    return Data(source="imagefolder", root=str(root), **SMALL)


def copy_of(data: Data, out: Path, packing: Packing, workers: int = 0, splits: Iterable[str] = ("train", "val")) -> Data:
    for split in splits:
        assert pack(data, split == "train", out / split, packing, workers, lambda _: None)
    return Data(source="packed", root=str(out), **SMALL)


def test_the_original_files_give_the_same_batches(source: Data, tmp_path: Path) -> None:
    other = copy_of(source, tmp_path / "packed", Packing(per_shard=4))
    for train in (True, False):
        one, two = load_dataset(source, train), load_dataset(other, train)
        assert [(i.content, label) for i, label in one] == [(i.content, label) for i, label in two]
    batches = [list(train_data(data, 4, 1, 0, ONE).batches(1, 5, ONE)) for data in (source, other)]
    assert len(batches[0]) == 4
    for before, after in zip(*batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(evaluation_data(source)[0, 3][0], evaluation_data(other)[0, 3][0])
    assert settled(other).packed == "original"


def test_the_files_do_not_depend_on_the_workers(source: Data, tmp_path: Path) -> None:
    packing = Packing(side=32, quality=80, per_shard=4)
    for name, workers in (("one", 0), ("two", 2)):
        copy_of(source, tmp_path / name, packing, workers, ["train"])
    one, two = (sorted((tmp_path / name / "train").iterdir()) for name in ("one", "two"))
    assert [path.name for path in one] == [f"0000{i}.shard" for i in range(4)] + ["index.npy", "split.json"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_larger_images_are_resized_once(source: Data, tmp_path: Path) -> None:
    other = copy_of(source, tmp_path / "packed", Packing(side=30))
    assert settled(other).packed == "side30-q90"
    for (before, _), (after, _) in zip(load_dataset(source, True), load_dataset(other, True), strict=True):
        old, new = before.rgb(), after.rgb()
        assert min(new.size) == min(30, *old.size)
        assert abs(new.size[0] / new.size[1] - old.size[0] / old.size[1]) < 0.06
        if min(old.size) <= 30 and before.content.startswith(b"\xff\xd8"):
            assert after.content == before.content


def test_images_in_memory_lose_nothing(tmp_path: Path) -> None:
    digits = Data(name="digits", source="digits", num_classes=10, image_size=16, test_resize=16)
    assert pack(digits, False, tmp_path / "val", Packing(), 0, lambda _: None)
    for (before, label), (after, same) in zip(load_dataset(digits, False), Packed(tmp_path / "val", 10), strict=True):
        assert label == same
        assert np.array_equal(np.asarray(before), np.asarray(after.rgb()))


def test_an_interrupted_packing_is_continued(source: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packing, out = Packing(per_shard=4), tmp_path / "packed" / "train"
    encoded, calls = packing_module.encoded, iter(range(100))

    def interrupted(*arguments):  # type: ignore[no-untyped-def]
        if next(calls) == 9:
            raise KeyboardInterrupt
        return encoded(*arguments)

    monkeypatch.setattr(packing_module, "encoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(source, True, out, packing, 0, lambda _: None)
    assert not list(out.glob("*.tmp"))
    with pytest.raises(ValueError, match="no finished packed split"):
        Packed(out, 2)
    with pytest.raises(UserError, match=r"is of another packing .*per_shard: 4 -> 5"):
        pack(source, True, out, Packing(per_shard=5), 0, lambda _: None)
    made: list[int] = []

    def progress(shards, total):  # type: ignore[no-untyped-def]
        made.append(total)
        return shards

    monkeypatch.setattr(packing_module, "encoded", encoded)
    assert pack(source, True, out, packing, 0, lambda _: None, progress)
    assert made == [2]  # of four
    whole = tmp_path / "whole"
    pack(source, True, whole, packing, 0, lambda _: None)
    assert [p.read_bytes() for p in sorted(out.iterdir())] == [p.read_bytes() for p in sorted(whole.iterdir())]
    assert not pack(source, True, out, packing, 0, lambda _: None)
    with pytest.raises(UserError, match="choose another folder"):
        pack(source, True, out, Packing(side=20), 0, lambda _: None)


def test_an_unreadable_image_follows_on_error(source: Data, tmp_path: Path) -> None:
    bad = Path(str(source.root)) / "train" / "class0" / "3.JPEG"
    bad.write_bytes(bad.read_bytes()[:-200])
    with pytest.raises(UserError, match=f"{bad}: .*data.on_error=replace"):
        pack(source, True, tmp_path / "one", Packing(), 0, lambda _: None)
    told: list[str] = []
    replace = Data(**{**vars(source), "on_error": "replace"})
    pack(replace, True, tmp_path / "two" / "train", Packing(), 0, told.append)
    assert len(told) == 1
    assert "image 3" in told[0]
    copy = Packed(tmp_path / "two" / "train", 2)
    assert len(copy) == 2 * COUNT
    with pytest.raises(UnreadableImage, match=r"image 3 of .* could not be read when it was packed"):
        copy[3]
    there = Data(**{**vars(replace), "source": "packed", "root": str(tmp_path / "two")})
    seen = [train_data(data, 4, 1, 0, ONE).dataset[0, 3] for data in (replace, there)]
    assert seen[0][1:] == seen[1][1:] == (0, 4, True)
    assert torch.equal(seen[0][0], seen[1][0])


def test_damage_is_named_and_never_replaced(source: Data, tmp_path: Path, in_process: Command) -> None:
    data = copy_of(source, tmp_path / "packed", Packing(per_shard=4))
    folder, shard = tmp_path / "packed" / "train", tmp_path / "packed" / "train" / "00001.shard"
    check = ["scripts/check_data.py", str(tmp_path / "packed"), "--workers=0"]
    sound = in_process(check)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert f"{4 * COUNT} images, all readable" in sound.stdout
    content = bytearray(shard.read_bytes())
    content[30] ^= 1
    shard.write_bytes(content)
    samples = train_data(Data(**{**vars(data), "on_error": "replace"}), 4, 1, 0, ONE).dataset
    with pytest.raises(UserError, match=rf"{shard} is damaged \(image 4\); copy it again .*scripts/pack.py"):
        samples[0, 4]
    assert samples[0, 3][2] == 3
    found = in_process(check)
    assert found.returncode == 1
    assert f"{shard} is damaged (its checksum differs)" in found.stdout
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"{shard} is damaged \(\d+ bytes instead of \d+\)"):
        Packed(folder, 2)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard}: no such file"):
        Packed(folder, 2)
    index = np.load(tmp_path / "packed" / "val" / "index.npy")
    index["label"][0] = 1
    np.save(tmp_path / "packed" / "val" / "index.npy", index)
    with pytest.raises(ValueError, match=r"index.npy is damaged"):
        Packed(tmp_path / "packed" / "val", 2)


def test_what_does_not_fit_is_refused(source: Data, tmp_path: Path) -> None:
    data = copy_of(source, tmp_path / "packed", Packing(), splits=["train"])
    with pytest.raises(ValueError, match=r"data.num_classes=3: set data.num_classes=2"):
        Packed(tmp_path / "packed" / "train", 3)
    copy_of(source, tmp_path / "packed", Packing(side=20), splits=["val"])
    with pytest.raises(ValueError, match="its splits are packed differently"):
        settled(data)
    asked = Data(**{**vars(data), "packed": "side20-q90"})
    with pytest.raises(ValueError, match=r"data.packed=side20-q90, but .* holds original"):
        settled(asked, ["train"])
    path = tmp_path / "packed" / "train" / "split.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": packed.FORMAT + 1}))
    with pytest.raises(ValueError, match="of format 2"):
        Packed(tmp_path / "packed" / "train", 2)
    shutil.rmtree(tmp_path / "packed" / "train")
    with pytest.raises(ValueError, match="no such folder"):
        settled(asked, ["train"])


def test_the_command(source: Data, tmp_path: Path, in_process: Command) -> None:
    keys = ["data=imagenet", f"data.root={source.root}", "data.num_classes=2"]
    command = ["scripts/pack.py", str(tmp_path / "out"), *keys, "--side=24", "--workers=0"]
    done = in_process(command)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"data=packed data.root={tmp_path / 'out'} data.num_classes=2" in done.stdout
    assert "was there already" in in_process(command).stdout
    for wrong, line in (
        ([*command, "--quality=101"], "must be at most 100"),
        (["scripts/pack.py", str(tmp_path / "o"), "--quality=50"], "needs --side"),
        (["scripts/pack.py", str(tmp_path / "o"), "seed=1"], "only data=NAME"),
        (["scripts/pack.py", str(tmp_path / "o"), "data=nothing"], "unknown data 'nothing'"),
        (["scripts/pack.py", str(tmp_path / "o"), "data.root=/nowhere"], "no such folder"),
        (["scripts/pack.py", str(tmp_path / "o"), "data=packed", f"data.root={tmp_path / 'out'}"], "packed already"),
    ):
        refused = in_process(wrong)
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert line in refused.stderr
