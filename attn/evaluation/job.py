"""The job of eval.py: a checkpoint's scores, printed and saved."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attn import console
from attn.config import parse, schema
from attn.config.evaluation import Request
from attn.config.schema import Config, Data
from attn.data import decoders
from attn.data.datasets import class_names, expect_same_classes, image_names
from attn.data.loader import evaluation_data
from attn.data.settle import settled
from attn.distributed import launch
from attn.errors import UserError, as_user_errors
from attn.evaluation.evaluate import Settings, evaluate
from attn.evaluation.scores import ClassCounts, Scores
from attn.kernels import missing
from attn.models.options import options_of
from attn.models.spec import locate
from attn.runs import folder, load
from attn.runs.checkpoint import BadCheckpoint
from attn.runs.files import to_json, write_atomically
from attn.runs.outputs import expect_older, expect_place
from attn.tabulate import text_lines

KIND = "CSV file of predictions of eval.py"


def run(request: Request) -> Scores:
    """Evaluates on all ranks; the first prints and saves.

    Raises:
        UserError: checkpoint or data are missing or do not fit.
    """
    path = Path(os.path.expanduser(request.checkpoint))
    if request.predictions is not None:
        expect_older(Path(request.predictions).expanduser(), "predictions=", "index,image,label,", KIND)
    content = folder.read(path)
    trained = load.load_config(content, path)
    cfg = with_data(trained, request.data)
    with as_user_errors():
        cfg = replace(cfg, data=_settled(cfg.data, trained.data, path))
    cfg = load.trusted(cfg, request.trust, f"checkpoint {path}")
    if request.inference is not None:
        cfg = _with_inference(cfg, request.inference)
    ema = {"auto": None, "ema": True, "raw": False}[request.weights]
    weights = load.pick_weights(content, ema, path)
    load.expect_finite(weights, path)
    used = load.kind_of(content, ema)
    usual = used == load.kind_of(content, None)
    with launch(request.device, request.dist_timeout) as ranks:
        size = request.batch_size or max(1, cfg.schedule.batch_size // (ranks.world * cfg.schedule.accumulate))
        asked = what(cfg.data, path, used)
        if request.inference is not None:  # its softmax is over the batch
            asked |= {"inference": request.inference, "batch_size": size}
        output = (
            Path(os.path.expanduser(request.output))
            if request.output
            else default_output(folder.beside(path), asked, what(trained.data, path, used), usual)
        )
        expect_free(output, asked)
        with as_user_errors():
            data = evaluation_data(cfg.data)
            names = class_names(data.dataset)
            expect_same_classes(content.get("classes"), names, f"checkpoint {path} and data.root={cfg.data.root}")
        cfg = load.with_kernels_here(cfg, ranks.device)
        if cfg.kernels != trained.kernels and ranks.first:
            console.warn(
                f"{path} was trained with kernels={trained.kernels}: plain modules are used, equal up to rounding, because "
                f"{missing(ranks.device.type)}"
            )
        model = load.build(cfg)
        load.load_weights(model, weights, path)
        layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
        model = model.to(ranks.device, memory_format=layout)  # type: ignore[call-overload]
        settings = replace(Settings.of(cfg, size), by_class=request.per_class, outcomes=request.predictions is not None)
        scores = evaluate(model, data, ranks, settings)
        names = names or content.get("classes")
        if ranks.first:
            if request.predictions is not None:
                _write_predictions(Path(request.predictions).expanduser(), scores, names, image_names(data.dataset))
            _report(output, cfg, path, scores, asked, content.get("step"), names)
    return scores


# Keys of the data that only training reads.
TRAINING: tuple[str, ...] = (
    "interpolation",
    "crop",
    "crop_scale",
    "crop_ratio",
    "pad",
    "hflip",
    "rotate",
    "color_jitter",
    "auto_augment",
)
TRAINING += ("random_erasing", "workers")
SCORED = ("source", "dataset", "root", "num_classes", "image_size", "test_resize", "test_interpolation", "mean", "std")


def what(data: Data, path: Path, weights: str) -> dict[str, Any]:
    """What identifies an evaluation: one may replace another only if all of this is equal."""
    about: dict[str, Any] = {"checkpoint": str(path), "weights": weights, "data": data.name, "split": data.val_split}
    about |= {key: getattr(data, key) for key in SCORED} | ({"samples": data.samples} if data.source == "fake" else {})
    about |= {"packed": data.packed} if data.source == "packed" else {}
    return about | {"root": None if data.root is None else os.path.abspath(os.path.expanduser(data.root))}


def default_output(made_of: Path, asked: dict[str, Any], trained: dict[str, Any], usual: bool) -> Path:
    """A file beside the checkpoint (`folder.beside`), named by what differs from training: data, split, weights, a hash of other settings."""
    parts = ["eval", made_of.name]
    parts += [str(asked[key]).replace("/", "_") for key in ("data", "split") if asked[key] != trained[key]]
    parts += [] if usual else [asked["weights"]]
    parts += [str(asked[key]) for key in ("inference", "batch_size") if key in asked]
    other = {key: asked.get(key) for key in (*SCORED, "samples", "packed") if asked.get(key) != trained.get(key)}
    if other and asked["data"] == trained["data"]:
        parts.append(hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()[:8])
    return made_of.with_name(f"{'-'.join(parts)}.json")


def expect_free(output: Path, asked: dict[str, Any]) -> None:
    """Checks, before any work, that the scores of another evaluation would not be replaced.

    Raises:
        UserError: the file holds another evaluation, or none, or cannot be written; names what differs.
    """
    expect_place(output, "output=")
    if not output.exists():
        return
    try:
        there = json.loads(output.read_text())
        known = {key: there[key] for key in asked if key in there}
        known["checkpoint"], known["weights"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"output={output} exists and is no evaluation: choose another output=, or remove it") from None
    beside = (
        Path(known["checkpoint"]).name == Path(asked["checkpoint"]).name
        and output.parent == Path(asked["checkpoint"]).parent
    )
    if beside or os.path.abspath(known["checkpoint"]) == os.path.abspath(asked["checkpoint"]):
        known["checkpoint"] = asked["checkpoint"]  # the folder may have been moved
    differ = [f"{key}: {known[key]} -> {asked[key]}" for key in known if known[key] != asked[key]]
    if differ:
        raise UserError(f"{output} holds another evaluation ({'; '.join(differ)}): choose another output=, or remove it")


def _settled(data: Data, trained: Data, path: Path) -> Data:
    """The data as they are read here; Pillow serves for a decoder that this machine lacks, since it gives the same pixels."""
    if data.decoder == trained.decoder:
        try:
            decoders.here(data.decoder)
        except ValueError as error:
            console.warn(f"{path}: {error}; data.decoder=pil is used")
            data = replace(data, decoder="pil")
    return settled(replace(data, packed=None), [data.val_split])


def with_data(cfg: Config, overrides: dict[str, Any]) -> Config:
    """The config with other data; what `overrides` lacks, or has as None, stays.

    Raises:
        BadCheckpoint: the data has another number of classes.
    """
    mapping = parse.to_dict(cfg)
    source = overrides.get("source") or cfg.data.source
    for key in schema.keys(Data):
        if key.read_by and (source != cfg.data.source or source not in key.read_by):  # what was meant for another source
            mapping["data"][key.name] = key.default
    mapping["data"] |= {key: value for key, value in overrides.items() if value is not None}
    changed = parse.from_dict(mapping)
    # An older version may have trained with augmentation that this one refuses; no test image sees it.
    parse.check_data(replace(changed.data, **{key: getattr(Data(), key) for key in TRAINING if overrides.get(key) is None}))
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


def class_rows(counts: ClassCounts, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """An object per class: name (its number where it has none), images, hits, times it was guessed, and top-1 in percent.

    The top-1 of a class is its recall; None where it has no images.
    """
    rows = []
    numbers = zip(*(values.tolist() for values in (counts.labelled, counts.hit, counts.guessed)), strict=True)
    for label, (images, hits, guessed) in enumerate(numbers):
        name = names[label] if names and label < len(names) else str(label)
        top1 = 100 * hits / images if images else None
        rows.append({"class": name, "images": images, "correct1": hits, "guessed": guessed, "top1": top1})
    return rows


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    return [(row["class"], str(row["images"]), "no images" if row["top1"] is None else f"{row['top1']:.2f}") for row in rows]


def _write_predictions(path: Path, scores: Scores, names: Sequence[str] | None, images: Sequence[str] | None) -> None:
    """A line per image: number, file where there is one, label, and the likeliest classes with their probabilities."""
    found = scores.outcomes
    assert found is not None

    def called(label: int) -> str:
        return names[label] if names and label < len(names) else str(label)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["index", "image", "label", "class", "correct"]
    for place in range(1, found.guesses.shape[1] + 1):
        header += [f"label{place}", f"class{place}", f"probability{place}"]
    writer.writerow(header)
    columns = (found.indices, found.labels, found.guesses, found.probabilities)
    for index, label, guesses, chances in zip(*(column.tolist() for column in columns), strict=True):
        line: list[Any] = [index, images[index] if images else "", label, called(label), int(guesses[0] == label)]
        for guess, chance in zip(guesses, chances, strict=True):
            line += [guess, called(guess), f"{chance:.6f}"]
        writer.writerow(line)
    replaced = ", in place of older predictions" if path.exists() else ""
    try:
        write_atomically(path, text.getvalue())
    except OSError as error:
        raise UserError(f"predictions={path} cannot be written: {error.strerror}") from None
    console.say(f"saved what it says of {len(found.labels)} images in {path}{replaced}")


def _report(
    output: Path, cfg: Config, path: Path, scores: Scores, asked: dict[str, Any], step: int | None, names: list[str] | None
) -> None:
    way = f", inference={asked['inference']} over batches of {asked['batch_size']}" if "inference" in asked else ""
    console.say(f"{path}: {cfg.backbone['name']} + {cfg.attention_name}, {asked['weights']} weights, step {step}{way}")
    console.say(
        f"top-1 {scores.top1:.3f} %  top-5 {scores.top5:.3f} %  loss {scores.loss:.6f}  ({scores.count} images of "
        f"{cfg.data.name})"
    )
    by_class = [] if scores.classes is None else class_rows(scores.classes, names)
    for line in text_lines([("class", "images", "top-1"), *_shown(by_class)], right=(1, 2)) if by_class else ():
        console.say(line)
    if not math.isfinite(scores.loss):
        raise UserError(
            f"checkpoint {path}: the loss is {scores.loss}, because the network's outputs are not finite with "
            f"schedule.amp={cfg.schedule.amp}; nothing was saved"
        )
    row = {**asked, "step": step, **scores.row()}
    row |= {"images": scores.count, "correct1": scores.correct1, "correct5": scores.correct5}
    if by_class:
        row["classes"] = by_class
    before = json.loads(output.read_text()) if output.exists() else {}
    if before and before.get("step") != step:
        console.say(f"replaces the scores of step {before.get('step')} in {output}")
    elif "classes" in before:
        row.setdefault("classes", before["classes"])
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, to_json(row, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from None
    console.say(f"saved {output}")
