"""The job of eval.py: a checkpoint's scores, printed and saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attn import console
from attn.config import parse
from attn.config.evaluation import Request
from attn.config.schema import Config
from attn.data.loader import evaluation_data
from attn.distributed import launch
from attn.errors import UserError, as_user_errors
from attn.evaluation.evaluate import Scores, evaluate
from attn.kernels import BUILD
from attn.models.options import options_of
from attn.models.spec import locate
from attn.runs import checkpoint, load
from attn.runs.checkpoint import BadCheckpoint
from attn.runs.files import write_atomically


def run(request: Request) -> Scores:
    """Evaluates on all ranks; the first prints and saves.

    Raises:
        UserError: checkpoint or data are missing or do not fit.
    """
    path = Path(request.checkpoint)
    content = checkpoint.read(path)
    trained = load.load_config(content, path)
    cfg = _with_data(trained, request.data)
    if request.inference is not None:
        cfg = _with_inference(cfg, request.inference)
    ema = {"auto": None, "ema": True, "raw": False}[request.weights]
    weights = load.pick_weights(content, ema, path)
    used = "raw" if weights is content["model"] else "ema"
    with launch(request.device, request.dist_timeout) as ranks:
        with as_user_errors():
            data = evaluation_data(cfg.data)
        cfg = load.with_kernels_here(cfg)
        if cfg.kernels != trained.kernels and ranks.first:
            console.warn(
                f"{path} was trained with kernels={trained.kernels}, which is not built here: plain modules serve, equal up to "
                f"rounding; {BUILD} builds it"
            )
        model = load.build(cfg)
        load.load_weights(model, weights, path)
        layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
        model = model.to(ranks.device, memory_format=layout)  # type: ignore[call-overload]
        share = request.batch_size or max(1, cfg.schedule.batch_size // (ranks.world * cfg.schedule.accumulate))
        other = "" if cfg.data.name == trained.data.name else f"-{cfg.data.name}"
        other += "" if request.inference is None else f"-{request.inference}-{share}"
        output = Path(request.output) if request.output else path.with_name(f"eval-{path.stem}{other}.json")
        scores = evaluate(model, data, ranks, share, cfg.data.workers, cfg.schedule.amp, cfg.channels_last)
        if ranks.first:
            told = {"step": content.get("step"), "inference": request.inference, "batch_size": share}
            _report(output, cfg, path, scores, used, told)
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


def _with_inference(cfg: Config, inference: str) -> Config:
    """The config with the option `inference` of its attentions set.

    Raises:
        UserError: none of them has the option.
    """
    found = 0

    def changed(node: Any) -> Any:
        nonlocal found
        if isinstance(node, Mapping):
            node = {key: changed(value) for key, value in node.items()}
            if "_target_" in node and "inference" in options_of(locate(node["_target_"], "attention")):
                found += 1
                return {**node, "inference": inference}
            return node
        return [changed(item) for item in node] if isinstance(node, (list, tuple)) else node

    with as_user_errors():
        attention = changed(cfg.attention)
    if not found:
        raise UserError(
            f"inference={inference}: attention={cfg.attention_name} has no such option; ba2m and its combinations have"
        )
    return replace(cfg, attention=attention)


def _report(output: Path, cfg: Config, path: Path, scores: Scores, weights: str, told: Mapping[str, Any]) -> None:
    way = "" if told["inference"] is None else f", inference={told['inference']} over batches of {told['batch_size']}"
    console.say(f"{path}: {cfg.backbone['name']} + {cfg.attention_name}, {weights} weights, step {told['step']}{way}")
    console.say(
        f"top-1 {scores.top1:.3f} %  top-5 {scores.top5:.3f} %  loss {scores.loss:.6f}  ({scores.count} images of {cfg.data.name})"
    )
    row = {"checkpoint": str(path), "weights": weights, "data": cfg.data.name, **told, **scores.row()}
    row |= {"images": scores.count, "correct1": scores.correct1, "correct5": scores.correct5}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, json.dumps(row, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from None
    console.say(f"saved {output}")
