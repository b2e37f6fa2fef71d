"""Image files as they are found in data sets, and folders that are not what the config says."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from fault_harness import TINY, Run, finished
from PIL import Image

from attn.data import imagefolder
from attn.data.imagefolder import DecodeError, Folder, UnreadableImage, decode, read_bytes, read_rgb
from attn.runs import metrics
from attn.runs.fingerprint import fingerprint

ROWS, COLUMNS = np.mgrid[:40, :48]
PIXELS = np.stack([ROWS * 6, COLUMNS * 5, (ROWS + COLUMNS) * 2], axis=2).astype(np.uint8)
BASE = [o for o in TINY if not o.startswith(("data=", "data.samples"))]
BASE += ["data=imagenet", "data.num_classes=2", "data.crop=resize", "schedule.batch_size=4"]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(PIXELS).convert(mode)


def bad_exif() -> bytes:
    content = encoded(picture(), "JPEG", quality=95)
    body = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x12" * 30  # 65,535 entries, of which 2 are there
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:]


def rotated() -> bytes:
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    return encoded(picture(), "JPEG", exif=exif, quality=95)


def sixteen_bit() -> bytes:
    return encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG")


def transparent_palette() -> bytes:
    return encoded(picture("P"), "PNG", transparency=bytes(range(256)))


ODD = {
    "cmyk": lambda: encoded(picture("CMYK"), "JPEG", quality=95),
    "png": lambda: encoded(picture(), "PNG"),
    "bad_exif": bad_exif,
    "rotated": rotated,
    "palette": lambda: encoded(picture("P"), "PNG"),
    "transparent_palette": transparent_palette,
    "gif": lambda: encoded(picture("P"), "GIF"),
    "rgba": lambda: encoded(picture("RGBA"), "PNG"),
    "gray_alpha": lambda: encoded(picture("LA"), "PNG"),
    "one_bit": lambda: encoded(picture("1"), "PNG"),
    "sixteen_bit": sixteen_bit,
    "float": lambda: encoded(picture("F"), "TIFF"),
    "one_pixel": lambda: encoded(picture().resize((1, 1)), "JPEG"),
    "webp": lambda: encoded(picture(), "WEBP"),
    "bmp": lambda: encoded(picture(), "BMP"),
}


@pytest.mark.parametrize("kind", ODD)
def test_whatever_can_be_read_becomes_rgb(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.JPEG"
    path.write_bytes(ODD[kind]())
    image = read_rgb(str(path))
    assert image.mode == "RGB"
    assert image.size == ((1, 1) if kind == "one_pixel" else (48, 40))  # orientation by EXIF is ignored
    if kind in ("png", "rgba", "bmp"):
        assert np.array_equal(np.asarray(image), PIXELS)
    if kind == "sixteen_bit":
        assert np.array_equal(np.asarray(image), np.repeat(PIXELS[..., :1], 3, axis=2))
    if kind in ("cmyk", "bad_exif", "rotated", "webp"):
        assert np.abs(np.asarray(image).astype(int) - PIXELS).mean() < 40


def bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


BROKEN = {
    "empty": lambda: b"",
    "truncated jpeg": lambda: encoded(picture(), "JPEG")[:-400],
    "truncated png": lambda: encoded(picture(), "PNG")[:-2000],
    "header only": lambda: encoded(picture(), "JPEG")[:60],
    "text": lambda: b"<html>404 not found</html>",
    "bomb": bomb,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.JPEG"
    path.write_bytes(BROKEN[kind]())
    with pytest.raises(DecodeError):
        decode(path.read_bytes())
    with pytest.raises(UnreadableImage, match=str(path)) as caught:
        read_rgb(str(path))
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_a_file_system_that_stumbles_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls, real = tmp_path / "image.png", [], open
    path.write_bytes(encoded(picture(), "PNG"))

    def stumbling(handle: int, mode: str) -> Any:
        calls.append(handle)
        if len(calls) < 3:
            os.close(handle)
            raise OSError(5, "Input/output error")
        return real(handle, mode)

    monkeypatch.setattr("attn.data.imagefolder.time.sleep", lambda _: None)
    monkeypatch.setattr(imagefolder, "open", stumbling, raising=False)
    assert read_rgb(str(path)).size == (48, 40)
    assert len(calls) == 3
    monkeypatch.setattr(
        imagefolder, "open", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")), raising=False
    )
    with pytest.raises(OSError, match="Input/output error"):
        read_bytes(str(path))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, eight images each for training, all of an odd kind, and two for validation."""
    root, kinds = tmp_path / "data", list(ODD.values())
    for split, count in (("train", 8), ("val", 2)):
        for label in range(2):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"image{index:02}.JPEG").write_bytes(kinds[(index + 8 * label) % len(kinds)]())
    return root


def test_odd_images_train_without_a_word(tmp_path: Path, root: Path) -> None:
    quiet = finished(tmp_path / "run", f"data.root={root}", "data.workers=2", base=BASE)
    assert "warning" not in quiet.text.lower()
    assert len(Folder(root / "train", 2)) == 16


def test_one_unreadable_image_is_named_once_and_costs_no_step(tmp_path: Path, root: Path) -> None:
    bad = root / "train" / "class1" / "image03.JPEG"
    good = bad.read_bytes()
    bad.write_bytes(BROKEN["truncated jpeg"]())
    options = (f"data.root={root}", "data.workers=1", "log_every=100")
    stopped = Run(tmp_path / "run", *options, base=BASE)
    assert stopped.wait() == [3]
    assert stopped.text.count(str(bad)) == 1
    assert "data.on_error=replace" in stopped.text
    bad.write_bytes(good)
    finished(tmp_path / "run", *options, base=BASE)
    finished(tmp_path / "other", *options, base=BASE)
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "other")


def test_unreadable_images_are_replaced_and_counted(tmp_path: Path, root: Path) -> None:
    (root / "train" / "class0" / "image02.JPEG").write_bytes(b"")
    (root / "train" / "class1" / "image07.JPEG").write_bytes(BROKEN["text"]())
    options = (f"data.root={root}", "data.on_error=replace")
    first = finished(tmp_path / "one", *options, "data.workers=0", base=BASE)
    assert [row["replaced"] for row in metrics.read_metrics(tmp_path / "one")] == [2, 2]
    assert first.text.count("the file is empty); replaced by the next image") == 2  # once an epoch
    finished(tmp_path / "two", *options, "data.workers=2", base=BASE)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")


def test_an_unreadable_validation_image_loses_no_training(tmp_path: Path, root: Path) -> None:
    bad = root / "val" / "class0" / "image00.JPEG"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    stopped = Run(tmp_path / "run", f"data.root={root}", "schedule.epochs=1", base=BASE)
    assert stopped.wait() == [3]
    assert str(bad) in stopped.text.splitlines()[-1]
    bad.write_bytes(good)
    again = finished(tmp_path / "run", f"data.root={root}", "schedule.epochs=1", base=BASE)
    assert "at step 4 of 4" in again.text


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: shutil.rmtree(root / "val"), "{root}/val: no such folder"),
        (lambda root: shutil.rmtree(root), "data.root={root}: no such folder"),
        (lambda root: [f.unlink() for f in (root / "train" / "class1").iterdir()], "{root}/train/class1: no image"),
        (lambda root: shutil.rmtree(root / "val" / "class1"), "{root}/val: has 1 class folders, but data.num_classes=2"),
    ],
)
def test_a_wrong_folder_fails_before_the_model_is_built(tmp_path: Path, root: Path, spoil, named: str) -> None:  # type: ignore[no-untyped-def]
    spoil(root)
    refused = Run(tmp_path / "run", f"data.root={root}", base=BASE, ranks=2)
    assert refused.wait() == [2, 2]
    assert f"error: {named.format(root=root)}" in refused.text
    assert "parameters" not in refused.text
    assert refused.text.count("error:") == 1


def check_data(*arguments: object) -> subprocess.CompletedProcess:
    return call(["scripts/check_data.py", *arguments], timeout=120)


def test_check_data_finds_them_beforehand(root: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}
    sound = check_data(root, "--workers", 2)
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert "20 images, all readable" in sound.stdout
    assert "CMYK" in sound.stdout
    assert "named .JPEG, but PNG" in sound.stdout
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}

    (root / "train" / "class0" / "image02.JPEG").write_bytes(b"")
    (root / "val" / "class1" / "image00.JPEG").write_bytes(BROKEN["truncated jpeg"]())
    broken = check_data(root, "--workers", 0)
    assert broken.returncode == 1
    assert f"{root}/train/class0/image02.JPEG: the file is empty" in broken.stdout
    assert f"{root}/val/class1/image00.JPEG: " in broken.stdout
    assert "2 of 20 images cannot be read" in broken.stdout

    assert check_data(root / "nowhere").returncode == 2
