"""The keys of scripts/export.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attn.config import evaluation, parse  # noqa: F401  # evaluation registers the node that configs/export.yaml begins with
from attn.config.schema import POSITIVE, REQUIRED, key, trust_key, weights_key
from attn.errors import UserError

FORMATS = ("onnx", "pt2", "aoti", "int8")


@dataclass(frozen=True)
class Request:
    """What to write, and where. `data` holds what differs from the data of the checkpoint."""

    checkpoint: str = key(
        REQUIRED, "last.pt or best.pt of a run, a folder of attn.save_pretrained, or hf-hub:organisation/name"
    )
    format: str = key(REQUIRED, "what to write", choices=FORMATS)
    out: str | None = key(
        None, "the file; null: beside the checkpoint, as in best.onnx, best.pt2, best.aoti.pt2, best.int8.pt2"
    )
    weights: str = weights_key()
    batch_size: int | None = key(None, "images per call; null: any number", limits=POSITIVE, at_most=100_000)
    image_size: int | None = key(
        None, "side of the images in pixels; null: that of the test images", limits=POSITIVE, at_most=8192
    )
    calibration: int = key(
        256, "for int8, training images whose activations set the ranges", limits=POSITIVE, at_most=1_000_000
    )
    force: bool = key(False, "replace a file that exists")
    trust: list[str] = trust_key()
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, composed: DictConfig) -> Request:
        """From the composed config.

        Raises:
            UserError: a value is missing or out of range.
        """
        examples = {"checkpoint": "checkpoint=runs/resnet50-ba-digits/seed0/best.pt", "format": "format=onnx"}
        for name, example in examples.items():
            if OmegaConf.is_missing(composed, name):
                raise UserError(f"{name} must be set, as in {example}")
        raw = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(raw, dict)
        request: Request = parse.to_dataclass(cls(checkpoint="", format=""), {str(key): value for key, value in raw.items()})
        parse.check_values(request)
        if not request.checkpoint:
            raise UserError("checkpoint= is empty: name last.pt or best.pt of a run")
        return request
