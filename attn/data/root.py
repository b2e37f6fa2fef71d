"""Where a data set is: the checks that take no time, made before torch is imported."""

from __future__ import annotations

import os
import re
from pathlib import Path

from attn.config.schema import Data

TIMM = r"(image_?)?folder/?|tar/?|(torch|hfds|hfids|tfds|wds)/.*"
ROOTED = ("imagefolder", "packed", "cifar100")


def data_root(data: Data) -> Path:
    """The folder of a data set.

    Raises:
        ValueError: `data.root` is not set, or is not a folder.
    """
    if not data.root:
        raise ValueError(f"data.root must be set for data={data.name}, as in data.root=/data/{data.name}")
    root = Path(os.path.expanduser(data.root))
    if not root.is_dir():
        variable = {"imagefolder": "IMAGENET_ROOT", "packed": "PACKED_ROOT", "cifar100": "CIFAR100_ROOT"}.get(data.source)
        raise ValueError(
            f"data.root={data.root}: no such folder; set data.root=" + (f", or export {variable}" if variable else "")
        )
    return root


def check_place(data: Data) -> None:
    """Checks that the folders of a data set exist; the rest is checked when it is opened.

    Raises:
        ValueError: the folder, one of its splits, or the name of timm's data set is missing.
    """
    if data.source in ROOTED:
        root = data_root(data)
        for split in (data.train_split, data.val_split) if data.source in ("imagefolder", "packed") else ():
            if not (root / split).is_dir():
                raise ValueError(
                    f"{root / split}: no such folder; data.root={data.root} must hold the folders {data.train_split} (data.train_split) and "
                    f"{data.val_split} (data.val_split), each with one folder per class"
                )
    if data.source == "timm" and not data.dataset:
        raise ValueError(
            "data=timm needs data.dataset, a name of timm's dataset factory such as hfds/cifar10 or torch/cifar10"
        )
    if data.source == "timm" and not re.fullmatch(TIMM, str(data.dataset), re.IGNORECASE):
        raise ValueError(
            f"data.dataset={data.dataset}: must be folder, tar, or a name that begins with torch/, hfds/, hfids/, tfds/ or wds/; timm "
            "would take any other for a folder"
        )
