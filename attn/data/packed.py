"""A packed data set: the image files of a split, one after the other in a few large files, with an index and checksums.

    ROOT/SPLIT/split.json     what it holds; written last, so that a split without it is not finished
    ROOT/SPLIT/index.npy      for each image its place in its shard, its length, its CRC-32 and its label
    ROOT/SPLIT/00000.shard    the files of the first `per_shard` images, then those of the next ones ...

`scripts/pack.py` makes it (attn/data/pack.py). Images are read by their number, so batches are those of the data set it was made of.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from attn.data.imagefolder import Encoded, UnreadableImage
from attn.errors import UserError

FORMAT = 1
DESCRIPTION, INDEX = "split.json", "index.npy"
# An image that could not be read when it was packed has length 0.
ROW = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc", "<u4"), ("label", "<i4")])
OPEN_FILES = 64
REMEDY = "copy it again from where it is whole, or remove the folder and make it again with scripts/pack.py"


def shard_name(number: int) -> str:
    return f"{number:05}.shard"


def is_packed(folder: Path) -> bool:
    """Whether a folder holds a packed split that is finished."""
    return (folder / DESCRIPTION).is_file()


def description(folder: Path) -> dict[str, Any]:
    """What `split.json` says.

    Raises:
        ValueError: it is missing, damaged, or of a newer format.
    """
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; scripts/pack.py makes it")
    if not path.is_file():
        raise ValueError(f"{folder}: no {DESCRIPTION} in it, so it is no finished packed split; run scripts/pack.py (again)")
    try:
        found = json.loads(path.read_text())
        kind = found["format"]
        if kind == FORMAT:
            _ = [found[key] for key in ("images", "packing", "classes", "num_classes", "per_shard", "shards", "index")]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged; {REMEDY}") from error
    if kind != FORMAT:
        raise ValueError(f"{path} is of format {kind}, and this version of attn reads format {FORMAT}")
    return found


def packing(folder: Path) -> str:
    """How the images of a split were packed: `original`, or such as `side256-q90`; see `description` for what it raises."""
    return str(description(folder)["packing"])


class Packed(Dataset):
    """The images of a packed split: (`Encoded`, label).

    Args:
        folder: of the split.
        num_classes: of the config.

    Attributes:
        classes: names in the order of their labels; None where the data set had none.

    Raises:
        ValueError: the split is not finished, files are missing or of another size, or the classes are not `num_classes`.
    """

    def __init__(self, folder: Path, num_classes: int) -> None:
        found = description(folder)
        if found["num_classes"] != num_classes:
            raise ValueError(
                f"{folder}: has {found['num_classes']} classes, but data.num_classes={num_classes}: set data.num_classes="
                f"{found['num_classes']}, or another data.root"
            )
        self.folder, self.classes, self.per_shard = folder, found["classes"], int(found["per_shard"])
        for file in (found["index"], *found["shards"]):
            expect_size(folder / file["file"], file["bytes"])
        index = folder / found["index"]["file"]
        if sha256(index) != found["index"]["sha256"]:
            raise ValueError(f"{index} is damaged (its checksum differs); {REMEDY}")
        self.rows = np.load(index, mmap_mode="r")
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Encoded, int]:
        """
        Raises:
            UnreadableImage: it could not be read when it was packed.
            UserError: the shard is damaged; never replaced by another image.
            OSError: the file system fails.
        """
        offset, length, crc, label = (int(value) for value in self.rows[index])
        name = f"image {index} of {self.folder}"
        if not length:
            raise UnreadableImage(f"{name}: could not be read when it was packed")
        shard = index // self.per_shard
        content = self._read(shard, offset, length)
        if len(content) != length or zlib.crc32(content) != crc:
            raise UserError(f"{self.folder / shard_name(shard)} is damaged (image {index}); {REMEDY}")
        return Encoded(content, name), label

    def _read(self, shard: int, offset: int, length: int, attempts: int = 4) -> bytes:
        """Part of a shard; after an error of a network file system it is read again for a few seconds."""
        for attempt in range(attempts):
            try:
                return os.pread(self._file(shard), length, offset)
            except FileNotFoundError:
                raise UserError(f"{self.folder / shard_name(shard)}: is gone; {REMEDY}") from None
            except OSError:
                self._close(shard)  # the handle of a file that was replaced on a server stays stale
                if attempt == attempts - 1:
                    raise
                time.sleep(0.5 * 2**attempt)
        raise AssertionError("unreachable")

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            if len(self._files) >= OPEN_FILES:
                self._close(next(iter(self._files)))
            self._files[shard] = os.open(self.folder / shard_name(shard), os.O_RDONLY | os.O_CLOEXEC)
        return self._files[shard]

    def _close(self, shard: int) -> None:
        handle = self._files.pop(shard, None)
        if handle is not None:
            os.close(handle)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": {}}

    def __del__(self) -> None:
        for shard in list(getattr(self, "_files", ())):
            self._close(shard)


def expect_size(path: Path, size: int) -> None:
    """
    Raises:
        ValueError: a file is missing or of another size.
    """
    try:
        there = path.stat().st_size
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, though {DESCRIPTION} lists it; {REMEDY}") from None
    if there != size:
        raise ValueError(f"{path} is damaged ({there} bytes instead of {size}); {REMEDY}")


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def damaged_files(folder: Path) -> list[str]:
    """A line for each file of a split that is missing or differs from its checksum; reads all of them."""
    found, lines = description(folder), []
    for file in (found["index"], *found["shards"]):
        path = folder / file["file"]
        try:
            expect_size(path, file["bytes"])
        except ValueError as error:
            lines.append(str(error))
            continue
        if sha256(path) != file["sha256"]:
            lines.append(f"{path} is damaged (its checksum differs); {REMEDY}")
    return lines
