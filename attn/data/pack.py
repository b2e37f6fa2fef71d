"""Writes a packed copy of a data set (attn/data/packed.py), shard by shard, so that it can be interrupted and continued."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from attn.config.schema import Data
from attn.data.datasets import class_names, load_dataset
from attn.data.imagefolder import Encoded, UnreadableImage
from attn.data.packed import DESCRIPTION, FORMAT, INDEX, ROW, description, is_packed, sha256, shard_name
from attn.data.region import JPEG
from attn.errors import UserError

MAKING, LOCK = "making.json", "lock"


@dataclass(frozen=True)
class Packing:
    """How images are packed.

    Attributes:
        side: shorter side in pixels to which larger images are resized (bicubic); None keeps the original files.
        quality: of the JPEG files of resized images.
        per_shard: images in a shard.
    """

    side: int | None = None
    quality: int = 90
    per_shard: int = 4096

    @property
    def name(self) -> str:
        return "original" if self.side is None else f"side{self.side}-q{self.quality}"


@dataclass(frozen=True)
class Part:
    """What a finished shard holds: the rows of the index and the numbers of images that could not be read."""

    sha256: str
    bytes: int
    rows: list[list[int]]
    unreadable: list[int]


def pack(
    data: Data,
    train: bool,
    folder: Path,
    packing: Packing,
    workers: int,
    tell: Callable[[str], None],
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, _: items,
) -> bool:
    """Packs a split into a folder; shards that are finished already are kept.

    Args:
        data: what to pack; with `on_error=replace` an image that cannot be read keeps its number and stays unreadable.
        train: the training split, else the validation split.
        workers: processes; 0: none but this one.
        tell: takes a line about an image that cannot be read.
        progress: wraps the shards that are still to be made, and their number.

    Returns:
        False if all of it was there already.

    Raises:
        UserError, ValueError: the folder holds another packing, or an image cannot be read; the message names it.
        OSError: the disk is full, or something cannot be read.
    """
    dataset = load_dataset(data, train)
    count = len(dataset)  # type: ignore[arg-type]
    about = {"images": count, "packing": packing.name, "per_shard": packing.per_shard, "num_classes": data.num_classes}
    about["classes"] = class_names(dataset)
    if is_packed(folder):
        _expect_same(folder / DESCRIPTION, description(folder), about)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        making = folder / MAKING
        if making.exists():
            try:
                begun = json.loads(making.read_text())
            except ValueError:
                raise UserError(f"{making} is damaged: remove {folder} and pack again") from None
            _expect_same(making, begun, about)
        elif any(entry.name != LOCK for entry in folder.iterdir()):
            raise UserError(f"{folder} holds other files: choose another folder")
        else:
            _write(making, json.dumps(about).encode())
        todo = [shard for shard in range(-(-count // packing.per_shard)) if _finished(folder, shard) is None]
        replace = data.on_error == "replace"
        for part, shard in progress(_made(dataset, folder, packing, replace, todo, workers), len(todo)):
            for index in part.unreadable:
                tell(f"shard {shard}: image {index} cannot be read, and stays so in the copy (data.on_error=replace)")
        _finish(folder, about)
    return True


def _made(
    dataset: Dataset, folder: Path, packing: Packing, replace: bool, todo: list[int], workers: int
) -> Iterator[tuple[Part, int]]:
    if not workers:
        for shard in todo:
            yield _make_shard(dataset, folder, packing, replace, shard), shard
        return
    pool = ProcessPoolExecutor(workers, initializer=_settle, initargs=(dataset, folder, packing, replace))
    try:
        yield from zip(pool.map(_make_settled, todo), todo, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


_SETTLED: list[Any] = []  # of a worker process: the data set is handed over once, not with every shard


def _settle(*settings: Any) -> None:
    _SETTLED[:] = settings


def _make_settled(shard: int) -> Part:
    dataset, folder, packing, replace = _SETTLED
    return _make_shard(dataset, folder, packing, replace, shard)


def _make_shard(dataset: Dataset, folder: Path, packing: Packing, replace: bool, shard: int) -> Part:
    """Writes a shard and then the file that says that it is finished."""
    start, total, rows, unreadable = shard * packing.per_shard, hashlib.sha256(), [], []
    stop = min(start + packing.per_shard, len(dataset))  # type: ignore[arg-type]
    path, size = folder / shard_name(shard), 0
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            for index in range(start, stop):
                try:
                    image, label = dataset[index]
                    content = encoded(image, packing)
                except UnreadableImage as error:
                    if not replace:
                        raise UserError(
                            f"{error}; repair or remove it, or set data.on_error=replace to pack the others"
                        ) from None
                    content, label = b"", -1
                    unreadable.append(index)
                file.write(content)
                total.update(content)
                rows.append([size, len(content), zlib.crc32(content), label])
                size += len(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    part = Part(total.hexdigest(), size, rows, unreadable)
    _write(_part_path(folder, shard), json.dumps(asdict(part)).encode())
    return part


def encoded(image: Encoded | Image.Image, packing: Packing) -> bytes:
    """An image as it is packed. What is not in a file is stored as PNG, which loses nothing, unless it is resized.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    whole = image.rgb() if isinstance(image, Encoded) else image
    content = image.content if isinstance(image, Encoded) else b""
    shorter, side = min(whole.size), packing.side
    small = side is None or shorter <= side
    if small and content and (side is None or content.startswith(JPEG)):
        return content
    buffer = io.BytesIO()
    if side is None:
        whole.save(buffer, "PNG")
        return buffer.getvalue()
    if not small:
        sides = [side if length == shorter else round(length * side / shorter) for length in whole.size]
        whole = whole.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
    whole.save(buffer, "JPEG", quality=packing.quality)
    return buffer.getvalue()


def _part_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05}.json"


def _finished(folder: Path, shard: int) -> Part | None:
    """A shard that an earlier call has finished."""
    try:
        part = Part(**json.loads(_part_path(folder, shard).read_text()))
        return part if (folder / shard_name(shard)).stat().st_size == part.bytes else None
    except (OSError, ValueError, TypeError):
        return None


def _finish(folder: Path, about: dict[str, Any]) -> None:
    """Joins the parts to an index, then writes the description, with which the split is finished."""
    shards = range(-(-about["images"] // about["per_shard"]))
    parts = [_finished(folder, shard) for shard in shards]
    missing = [shard for shard, part in zip(shards, parts, strict=True) if part is None]
    if missing:
        raise UserError(f"{folder / shard_name(missing[0])} has changed while it was packed: pack again")
    rows = np.array([tuple(row) for part in parts if part is not None for row in part.rows], dtype=ROW)
    buffer = io.BytesIO()
    np.save(buffer, rows)
    _write(folder / INDEX, buffer.getvalue())
    files = [
        {"file": shard_name(shard), "bytes": part.bytes, "sha256": part.sha256}
        for shard, part in zip(shards, parts, strict=True)
        if part is not None
    ]
    index = {"file": INDEX, "bytes": len(buffer.getvalue()), "sha256": sha256(folder / INDEX)}
    unreadable = sum(len(part.unreadable) for part in parts if part is not None)
    found = {"format": FORMAT, **about, "unreadable": unreadable, "index": index, "shards": files}
    _write(folder / DESCRIPTION, (json.dumps(found, indent=1) + "\n").encode())
    for path in [_part_path(folder, shard) for shard in shards] + [folder / MAKING]:
        path.unlink(missing_ok=True)


def _expect_same(path: Path, there: dict[str, Any], about: dict[str, Any]) -> None:
    differ = [f"{key}: {there.get(key)} -> {value}" for key, value in about.items() if there.get(key) != value]
    if differ:
        raise UserError(f"{path} is of another packing ({'; '.join(differ)[:300]}): choose another folder, or remove it")


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from packing into the same folder."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder} is being packed by another process: wait for it") from None
        yield
        (folder / LOCK).unlink(missing_ok=True)
    finally:
        os.close(handle)
