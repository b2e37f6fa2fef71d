"""The keys of scripts/predict.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from attn.config import parse
from attn.config.schema import NOT_NEGATIVE, POSITIVE, REQUIRED, key, trust_key, weights_key
from attn.errors import UserError


@dataclass(frozen=True)
class Request:
    """Which images to classify, by which checkpoint."""

    checkpoint: str = key(
        REQUIRED, "last.pt or best.pt of a run, a folder of attn.save_pretrained, or hf-hub:organisation/name"
    )
    images: str = key(REQUIRED, "a folder (all images in it, at any depth), a pattern such as 'photos/*.jpg', or a file")
    topk: int = key(5, "classes per image, the likeliest first", limits=POSITIVE, at_most=1_000_000)
    out: str = key("predictions.csv", "CSV file: a line per image")
    weights: str = weights_key()
    batch_size: int = key(64, "images per forward pass", limits=POSITIVE, at_most=100_000)
    workers: int | None = key(
        None, "loader processes; null: one per processor core, at most 4", limits=NOT_NEGATIVE, at_most=256
    )
    device: str = key("auto", "where to compute; auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    trust: list[str] = trust_key()

    @classmethod
    def parse(cls, composed: DictConfig) -> Request:
        """From the composed config.

        Raises:
            UserError: a value is missing or out of range.
        """
        for name, example in (("checkpoint", "runs/resnet50-ba-digits/seed0/best.pt"), ("images", "photos")):
            if OmegaConf.is_missing(composed, name) or not composed[name]:
                raise UserError(f"{name} must be set, as in {name}={example}")
        raw = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(raw, dict)
        request: Request = parse.to_dataclass(cls(checkpoint="", images=""), {str(key): value for key, value in raw.items()})
        parse.check_values(request)
        if Path(request.out).expanduser().is_dir():
            raise UserError(f"out={request.out} is a folder; name a file, such as {Path(request.out) / 'predictions.csv'}")
        return request
