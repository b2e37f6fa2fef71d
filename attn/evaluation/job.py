"""The job of eval.py: a checkpoint's scores, printed and saved."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from attn import console
from attn.config import parse, schema
from attn.config.schema import Config
from attn.data.datasets import class_names, expect_same_classes
from attn.data.loader import evaluation_data
from attn.distributed import launch
from attn.errors import UserError, as_user_errors
from attn.evaluation.evaluate import Scores, evaluate
from attn.runs import checkpoint, load
from attn.runs.checkpoint import BadCheckpoint
from attn.runs.files import to_json, write_atomically


@dataclass(frozen=True)
class Request:
    """What to evaluate; see configs/eval.yaml."""

    checkpoint: str
    weights: str = "auto"
    batch_size: int | None = None
    device: str = "auto"
    output: str | None = None
    dist_timeout: float = 600.0
    trust: list[str] = field(default_factory=list)
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
    path = Path(request.checkpoint)
    content = checkpoint.read(path)
    trained = load.load_config(content, path)
    cfg = _with_data(trained, request.data)
    cfg = load.trusted(cfg, request.trust, f"checkpoint {path}")
    ema = {"auto": None, "ema": True, "raw": False}[request.weights]
    weights = load.pick_weights(content, ema, path)
    load.expect_finite(weights, path)
    used = "raw" if weights is content["model"] else "ema"
    usual = used == ("raw" if content.get("ema") is None else "ema")
    asked = what(cfg.data, path, used)
    output = Path(request.output) if request.output else default_output(path, asked, what(trained.data, path, used), usual)
    expect_free(output, asked)
    with launch(request.device, request.dist_timeout) as ranks:
        with as_user_errors():
            data = evaluation_data(cfg.data)
            names = class_names(data.dataset)
            expect_same_classes(content.get("classes"), names, f"checkpoint {path} and data.root={cfg.data.root}")
        model = load.build(cfg)
        load.load_weights(model, weights, path)
        layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
        model = model.to(ranks.device, memory_format=layout)  # type: ignore[call-overload]
        share = request.batch_size or max(1, cfg.schedule.batch_size // (ranks.world * cfg.schedule.accumulate))
        scores = evaluate(model, data, ranks, share, cfg.data.workers, cfg.schedule.amp, cfg.channels_last)
        if ranks.first:
            _report(output, cfg, path, scores, asked, content.get("step"))
    return scores


SCORED = ("source", "dataset", "root", "num_classes", "image_size", "test_resize", "test_interpolation", "mean", "std")


def what(data: schema.Data, path: Path, weights: str) -> dict[str, Any]:
    """What an evaluation is of: two that agree in all of it may replace each other."""
    about = {"checkpoint": str(path), "weights": weights, "data": data.name, "split": data.val_split}
    about |= {key: getattr(data, key) for key in SCORED} | ({"samples": data.samples} if data.source == "fake" else {})
    return about | {"root": None if data.root is None else os.path.abspath(os.path.expanduser(data.root))}


def default_output(path: Path, asked: dict[str, Any], trained: dict[str, Any], usual: bool) -> Path:
    """A file beside the checkpoint whose name says what is not as in training: data, split, weights, a sum for other settings."""
    parts = ["eval", path.stem]
    parts += [str(asked[key]).replace("/", "_") for key in ("data", "split") if asked[key] != trained[key]]
    parts += [] if usual else [asked["weights"]]
    other = {key: asked.get(key) for key in (*SCORED, "samples") if asked.get(key) != trained.get(key)}
    if other and asked["data"] == trained["data"]:
        parts.append(hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()[:8])
    return path.with_name(f"{'-'.join(parts)}.json")


def expect_free(output: Path, asked: dict[str, Any]) -> None:
    """Checks, before any work, that no evaluation of something else is replaced.

    Raises:
        UserError: the file is of another evaluation, or is none; names what differs.
    """
    if not output.exists():
        return
    try:
        there = json.loads(output.read_text())
        known = {key: there[key] for key in asked if key in there}
        known["checkpoint"], known["weights"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"output={output} is there and is no evaluation: choose another output=, or remove it") from None
    beside = (
        Path(known["checkpoint"]).name == Path(asked["checkpoint"]).name
        and output.parent == Path(asked["checkpoint"]).parent
    )
    if beside or os.path.abspath(known["checkpoint"]) == os.path.abspath(asked["checkpoint"]):
        known["checkpoint"] = asked["checkpoint"]  # the folder may have been moved
    differ = [f"{key}: {known[key]} -> {asked[key]}" for key in known if known[key] != asked[key]]
    if differ:
        raise UserError(f"{output} holds another evaluation ({'; '.join(differ)}): choose another output=, or remove it")


def _with_data(cfg: Config, overrides: dict[str, Any]) -> Config:
    mapping = parse.to_dict(cfg)
    if overrides.get("source") not in (None, cfg.data.source):  # what was meant for the other source
        mapping["data"] |= {key: getattr(schema.Data(), key) for key in ("dataset", "root", "train_split", "val_split")}
    mapping["data"] |= {key: value for key, value in overrides.items() if value is not None}
    changed = parse.from_dict(mapping)
    if changed.data.num_classes != cfg.data.num_classes:
        raise BadCheckpoint(
            f"data={changed.data.name} has {changed.data.num_classes} classes, the checkpoint was trained on "
            f"{cfg.data.num_classes} ({cfg.data.name})"
        )
    return changed


def _report(output: Path, cfg: Config, path: Path, scores: Scores, asked: dict[str, Any], step: int | None) -> None:
    console.say(f"{path}: {cfg.backbone['name']} + {cfg.attention_name}, {asked['weights']} weights, step {step}")
    console.say(
        f"top-1 {scores.top1:.3f} %  top-5 {scores.top5:.3f} %  loss {scores.loss:.6f}  ({scores.count} images of {cfg.data.name})"
    )
    if not math.isfinite(scores.loss):
        raise UserError(
            f"checkpoint {path}: the loss is {scores.loss}, for the network gives values that are not finite with "
            f"schedule.amp={cfg.schedule.amp}; nothing was saved"
        )
    row = {**asked, "step": step, **scores.row()}
    row |= {"images": scores.count, "correct1": scores.correct1, "correct5": scores.correct5}
    if output.exists() and (before := json.loads(output.read_text()).get("step")) != step:
        console.say(f"replaces the scores of step {before} in {output}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, to_json(row, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from None
    console.say(f"saved {output}")
