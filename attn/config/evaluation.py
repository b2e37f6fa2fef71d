"""The keys of eval.py."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from attn.config import parse
from attn.config.schema import POSITIVE, REQUIRED, Data, key, trust_key, weights_key
from attn.errors import UserError

# configs/eval.yaml begins with it: every key of data exists there, and null leaves what the checkpoint has.
ConfigStore.instance().store(name="checkpoint_data", node={"data": {entry.name: None for entry in fields(Data)}})


@dataclass(frozen=True)
class Request:
    """What to evaluate, and how. `data` holds what differs from the data of the checkpoint."""

    checkpoint: str = key(
        REQUIRED, "last.pt or best.pt of a run, a folder of attn.save_pretrained, or hf-hub:organisation/name"
    )
    weights: str = weights_key()
    batch_size: int | None = key(None, "images per rank and pass; null: as in training", limits=POSITIVE)
    inference: str | None = key(
        None, "what BA2M does to the test images; null: as in the checkpoint", choices=("off", "softmax", "sar")
    )
    device: str = key("auto", "where to compute; auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    output: str | None = key(
        None, "JSON file for the scores; null: eval-NAME.json beside the checkpoint, with what differs from it in the name"
    )
    per_class: bool = key(False, "also print the accuracy of each class, and save it in the JSON file")
    predictions: str | None = key(
        None, "also write the likeliest classes of every image to this CSV file; each image is there once"
    )
    dist_timeout: float = key(600.0, "seconds to wait for a rank that does not answer", limits=POSITIVE, at_most=10_000_000)
    trust: list[str] = trust_key()
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, composed: DictConfig) -> Request:
        """From the composed config.

        Raises:
            UserError: a value is out of range.
        """
        if OmegaConf.is_missing(composed, "checkpoint"):
            raise UserError("checkpoint must be set, as in checkpoint=runs/resnet50-ba-digits/seed0/best.pt")
        raw = parse.resolved(composed)
        request: Request = parse.to_dataclass(cls(checkpoint=""), {str(key): value for key, value in raw.items()})
        parse.check_values(request)
        if not request.checkpoint:
            raise UserError("checkpoint= is empty: name last.pt or best.pt of a run")
        for name in ("checkpoint", "output"):
            if getattr(request, name) is not None:
                parse.expanded(name, getattr(request, name))
        if request.output is not None and Path(request.output).is_dir():
            raise UserError(
                f"output={request.output} is a folder; name a file, such as {Path(request.output) / 'scores.json'}"
            )
        if request.predictions is not None:
            path = Path(request.predictions).expanduser()
            if path.is_dir():
                raise UserError(f"predictions={path} is a folder; name a file, such as {path / 'predictions.csv'}")
            if not path.parent.is_dir():
                raise UserError(f"predictions={path}: there is no folder {path.parent}")
        return request
