"""ImageNet's layout: one folder per class, images of any kind in it."""

from __future__ import annotations

import errno
import io
import os
import stat
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from attn import console


def class_folders(root: Path) -> list[str]:
    """Sorted names of the class folders; hidden ones, such as .ipynb_checkpoints, are left out."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def is_image_name(path: Path) -> bool:
    """Whether a name has an image's extension; hidden files, such as ._image.jpg of macOS, are no images."""
    return path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".")


class Folder(Dataset):
    """Images in `root/CLASS/...`, classes in alphabetical order, files in alphabetical order within a class.

    Every image that Pillow can read is read and converted to RGB, whatever its mode (CMYK, palette, 16 bit) and whatever
    its extension claims; ImageNet holds a few of each, and without them it would be another data set.

    Raises:
        ValueError: `root` is missing, a class has no image, or the number of classes is not `num_classes`.
    """

    def __init__(self, root: Path, num_classes: int) -> None:
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; expected one folder per class in it, as {root}/n01440764/image.JPEG")
        self.classes = class_folders(root)
        if len(self.classes) != num_classes:
            fix = (
                f"set data.num_classes={len(self.classes)}, or another data.root" if self.classes else "is data.root right?"
            )
            raise ValueError(f"{root}: has {len(self.classes)} class folders, but data.num_classes={num_classes}: {fix}")
        self.samples: list[tuple[str, int]] = []
        for label, name in enumerate(console.bar(self.classes, f"listing {root}")):
            files = sorted(str(f) for f in (root / name).rglob("*") if is_image_name(f))
            if not files:
                raise ValueError(f"{root / name}: no image in this class folder (extensions {', '.join(IMG_EXTENSIONS)})")
            self.samples += [(file, label) for file in files]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Encoded, int]:
        path, label = self.samples[index]
        return read_encoded(path), label


class UnreadableImage(Exception):
    """An image file cannot be decoded; the message names the file."""


@dataclass(frozen=True)
class Encoded:
    """The content of an image file that is not decoded yet, and the name that messages give it."""

    content: bytes
    name: str

    def rgb(self) -> Image.Image:
        """The whole image as RGB; the rotation in its EXIF data is ignored, as in the usual ImageNet pipelines.

        Raises:
            UnreadableImage: it is empty, truncated or not an image.
        """
        try:
            return decode(self.content)
        except DecodeError as error:
            raise UnreadableImage(f"{self.name}: cannot be read as an image ({error})") from error


def read_encoded(path: str) -> Encoded:
    """Reads a file.

    Raises:
        UnreadableImage: it is missing or no regular file.
        OSError: the file system fails.
    """
    try:
        return Encoded(read_bytes(path), path)
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotAFile) as error:
        raise UnreadableImage(f"{path}: {error.strerror}") from error


def read_rgb(path: str) -> Image.Image:
    """Decodes any image file to RGB; see `read_encoded` and `Encoded.rgb` for what it raises."""
    return read_encoded(path).rgb()


def read_bytes(path: str, attempts: int = 4) -> bytes:
    """The content of a file; after an error of a network file system it is read again for a few seconds.

    Raises:
        OSError: at once if the file is missing or not readable; else after the last attempt.
    """
    for attempt in range(attempts):
        try:
            # A plain open of a named pipe waits forever for a writer.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(handle, "rb") as file:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise NotAFile(errno.EINVAL, "it is a pipe or a device, no regular file", path)
                return file.read()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotAFile):
            raise
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise NotAFile(errno.EINVAL, "it is a socket, no regular file", path) from None
            if attempt == attempts - 1:
                raise OSError(error.errno, error.strerror, path) from error  # a read through a handle names no file
            time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable")


class NotAFile(OSError):
    """A path is a named pipe, a socket or a device, from which a read could wait forever."""


class DecodeError(Exception):
    """Bytes that are not an image, or only a part of one."""


def decode(content: bytes) -> Image.Image:
    """The RGB image in a file's content.

    16 bits per channel become 8 by value / 257; palettes and CMYK are converted, transparency is dropped.

    Raises:
        DecodeError: it is empty, truncated, too large (Pillow's limit against decompression bombs) or no image.
    """
    if not content:
        raise DecodeError("the file is empty")
    try:
        # Corrupt EXIF data is common in ImageNet and harmless; a line per image and worker is not.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(content))
            if image.mode.startswith("I"):  # Pillow itself would cut off at 255
                image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise DecodeError("it is of no known kind") from None
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        raise DecodeError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
