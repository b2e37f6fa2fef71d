"""The job of eval.py: a checkpoint's scores, printed and saved."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from attn import console
from attn.config import parse, schema
from attn.config.schema import Config
from attn.data.loader import evaluation_data
from attn.distributed import launch
from attn.errors import UserError, as_user_errors
from attn.evaluation.evaluate import Scores, evaluate
from attn.runs import checkpoint, load
from attn.runs.checkpoint import BadCheckpoint
from attn.runs.files import write_atomically


@dataclass(frozen=True)
class Request:
    """What to evaluate; see configs/eval.yaml."""

    checkpoint: str
    weights: str = "auto"
    batch_size: int | None = None
    device: str = "auto"
    output: str | None = None
    dist_timeout: float = 600.0
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, composed: DictConfig) -> Request:
        """From the composed config.

        Raises:
            UserError: a value is out of range.
        """
        if OmegaConf.is_missing(composed, "checkpoint"):
            raise UserError("checkpoint must be set, as in checkpoint=runs/resnet50-ba-digits/seed0/best.pt")
        raw = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(raw, dict)
        request: Request = parse.typed(cls(checkpoint=""), {str(key): value for key, value in raw.items()})
        for key, choices in {"weights": ("auto", "ema", "raw"), "device": schema.CHOICES["device"]}.items():
            if getattr(request, key) not in choices:
                raise UserError(f"{key}={getattr(request, key)}: choose from {', '.join(choices)}")
        if request.batch_size is not None and request.batch_size <= 0:
            raise UserError(f"batch_size={request.batch_size}: must be greater than 0")
        if request.dist_timeout <= 0:
            raise UserError(f"dist_timeout={request.dist_timeout:g}: must be greater than 0")
        if not request.checkpoint:
            raise UserError("checkpoint= is empty: name last.pt or best.pt of a run")
        if request.output is not None and Path(request.output).is_dir():
            raise UserError(
                f"output={request.output} is a folder; name a file, such as {Path(request.output) / 'scores.json'}"
            )
        return request


def run(request: Request) -> Scores:
    """Evaluates on all ranks; the first prints and saves.

    Raises:
        UserError: checkpoint or data are missing or do not fit.
    """
    path = Path(request.checkpoint).expanduser()
    content = checkpoint.read(path)
    trained = load.load_config(content, path)
    cfg = _with_data(trained, request.data)
    other = "" if cfg.data.name == trained.data.name else f"-{cfg.data.name}"
    output = Path(request.output).expanduser() if request.output else path.with_name(f"eval-{path.stem}{other}.json")
    ema = {"auto": None, "ema": True, "raw": False}[request.weights]
    weights = load.pick_weights(content, ema, path)
    used = "raw" if weights is content["model"] else "ema"
    with launch(request.device, request.dist_timeout) as ranks:
        with as_user_errors():
            data = evaluation_data(cfg.data)
        model = load.build(cfg)
        load.load_weights(model, weights, path)
        layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
        model = model.to(ranks.device, memory_format=layout)  # type: ignore[call-overload]
        share = request.batch_size or max(1, cfg.schedule.batch_size // (ranks.world * cfg.schedule.accumulate))
        scores = evaluate(model, data, ranks, share, cfg.data.workers, cfg.schedule.amp, cfg.channels_last)
        if ranks.first:
            _report(output, cfg, path, scores, used, content.get("step"))
    return scores


def _with_data(cfg: Config, overrides: dict[str, Any]) -> Config:
    mapping = parse.to_dict(cfg)
    mapping["data"] |= {key: value for key, value in overrides.items() if value is not None}
    changed = parse.from_dict(mapping)
    if changed.data.num_classes != cfg.data.num_classes:
        raise BadCheckpoint(
            f"data={changed.data.name} has {changed.data.num_classes} classes, the checkpoint was trained on "
            f"{cfg.data.num_classes} ({cfg.data.name})"
        )
    return changed


def _report(output: Path, cfg: Config, path: Path, scores: Scores, weights: str, step: int | None) -> None:
    console.say(f"{path}: {cfg.backbone['name']} + {cfg.attention_name}, {weights} weights, step {step}")
    console.say(
        f"top-1 {scores.top1:.3f} %  top-5 {scores.top5:.3f} %  loss {scores.loss:.6f}  ({scores.count} images of {cfg.data.name})"
    )
    row = {"checkpoint": str(path), "weights": weights, "step": step, "data": cfg.data.name, **scores.row()}
    row |= {"images": scores.count, "correct1": scores.correct1, "correct5": scores.correct5}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, json.dumps(row, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from None
    console.say(f"saved {output}")
