"""What travels with a network in every format: what its inputs and outputs mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attn.config.schema import Data

KEY = "attn"  # of the metadata in ONNX and AOTInductor files
FILE = "attn.json"  # among the extra files of torch.export


@dataclass(frozen=True)
class About:
    """The metadata, JSON in the file.

    Attributes:
        classes: name of each output, in their order; numbers as strings where the data set has no names.
        mean, std: of the channels on the scale 0 to 1; the input is (pixels / 255 - mean) / std.
        image_size: side of the input in pixels.
        resize: shorter side of the image before its centre is cropped.
        interpolation: of that resizing.
        batch_size: images per call; None: any number.
        backbone, attention: what the network is, for the record.
        versions: of what wrote the file.
    """

    classes: list[str]
    mean: list[float]
    std: list[float]
    image_size: int
    resize: int
    interpolation: str
    batch_size: int | None
    backbone: str
    attention: str
    versions: dict[str, str]

    def to_json(self, **more: Any) -> str:
        return json.dumps({**asdict(self), **more})


def about(
    data: Data,
    classes: Sequence[str] | None,
    image_size: int,
    batch_size: int | None,
    backbone: str,
    attention: str,
    **more: Any,
) -> About:
    """The metadata of a network that was trained on `data`."""
    names = list(classes) if classes else [str(i) for i in range(data.num_classes)]
    resize = data.test_resize if image_size == data.image_size else round(data.test_resize * image_size / data.image_size)
    return About(
        classes=names,
        mean=list(data.mean),
        std=list(data.std),
        image_size=image_size,
        resize=resize,
        interpolation=data.test_interpolation,
        batch_size=batch_size,
        backbone=backbone,
        attention=attention,
        **more,
    )
