"""Runs of `detection/train.py` on the disk, and what they reached, for `scripts/tables.py` and `scripts/results.py`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config

from attn.models.defaults import without_defaults
from attn.tables import Row, Run
from attn.tables.rows import VOC_AP
from detection.backbone import plain
from detection.cli import CONFIGS

SCALARS = "vis_data/scalars.json"  # below a folder per start, in the work directory
# The metrics of `attn.tables.Row.metrics`, as MMDetection's evaluators and detection/metric.py name them.
SIZES = {"AP": "mAP", "AP50": "mAP_50", "AP75": "mAP_75", "AP_S": "mAP_s", "AP_M": "mAP_m", "AP_L": "mAP_l"}
BOXES = {name: f"coco/bbox_{key}" for name, key in SIZES.items()} | {VOC_AP: "pascal_voc/mAP", "Recall": "pascal_voc/recall"}
MASKS = {name: f"coco/segm_{key}" for name, key in SIZES.items()}

# What says where a run found and left its files, and how fast it was. The number of GPUs is in no config, so the images per
# GPU say nothing about the batch either.
MAY_DIFFER = (
    *("work_dir", "launcher", "load_from", "resume", "log_level", "visualizer", "vis_backends", "default_hooks", "env_cfg"),
    *("randomness", "custom_imports", "experiment_name", "data_root", "backend_args", "log_processor", "dataset_type"),
    *(
        "val_dataloader",
        "test_dataloader",
        "val_evaluator",
        "test_evaluator",
        "test_pipeline",
        "train_pipeline",
        "auto_scale_lr",
    ),
)
KEYS_THAT_MAY_DIFFER = {
    "batch_size",
    "num_workers",
    "persistent_workers",
    "data_root",
    "ann_file",
    "data_prefix",
    "backend_args",
}


@dataclass(frozen=True)
class Found:
    """A work directory.

    Attributes:
        path: the directory.
        config: what MMEngine wrote down at the last start.
        scores: the values of every evaluation, by epoch.
    """

    path: Path
    config: Mapping[str, Any]
    scores: Mapping[int, Mapping[str, float]]


def find(directory: Path) -> list[Found]:
    """All work directories below a directory that hold an evaluation."""
    found = []
    for work_dir in sorted({path.parents[2] for path in directory.rglob(SCALARS)}):
        logs = sorted(work_dir.glob(f"*/{SCALARS}"))
        scores = _evaluations(logs)
        if scores:
            try:
                config = Config.fromfile(str(logs[-1].parent / "config.py"), import_custom_modules=False)
            except Exception:  # a config is a program: anything may come
                continue  # a run that was stopped while it wrote, or a directory of something else
            found.append(Found(work_dir, plain(config.to_dict()), scores))
    return found


def epochs(work_dir: Path) -> list[dict[str, Any]]:
    """The evaluations of a run as lines of metrics, in the form that `train.py` gives its own.

    Returns:
        For every epoch with an evaluation `epoch`, the scores of the boxes as `val_AP`, `val_AP50` ... in percent, and
        `images_per_second` in training (the batch over the median time of an iteration, its data included). Empty if there is
        no evaluation.
    """
    rows: list[dict[str, Any]] = []
    for run in find(work_dir):
        seconds = _seconds(sorted(run.path.glob(f"*/{SCALARS}")))
        batch = run.config["train_dataloader"]["batch_size"]
        for epoch, scores in sorted(run.scores.items()):
            # COCO's -1 says that there is no such object.
            reached = {f"val_{name}": 100 * scores[key] for name, key in BOXES.items() if scores.get(key, -1) >= 0}
            speed = batch / statistics.median(seconds[epoch]) if seconds.get(epoch) else 0.0
            rows.append({"epoch": epoch, **reached, "images_per_second": speed})
    return rows


def matching(found: Iterable[Found], row: Row) -> list[Run]:
    """The runs that trained a row's detector on its data, whatever their recipe, with the scores of the last evaluation."""
    if row.build is None or row.build.detector is None:
        return []
    wanted = _row_config(row.build.detector, row.build.options)
    names = MASKS if row.task == "instance segmentation" else BOXES
    runs = []
    for run in found:
        epoch = max(run.scores)
        # COCO's -1 says that there is no such object.
        reached = {name: 100 * run.scores[epoch][key] for name, key in names.items() if run.scores[epoch].get(key, -1) >= 0}
        if reached and _detector(run.config) == _detector(wanted):
            finished = epoch >= run.config["train_cfg"]["max_epochs"]
            seed = (run.config.get("randomness") or {}).get("seed")
            runs.append(Run(str(run.path), seed, reached, epoch, finished, differences(wanted, run.config)))
    return runs


def differences(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """What changes the result and is not as the row's config has it, as `key: row's -> run's`."""
    a, b = (dict(_leaves({**config, "model": _without_defaults(config["model"])})) for config in (wanted, got))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted(a | b) if a.get(key) != b.get(key)]


@cache
def _row_config(detector: str, options: tuple[tuple[str, Any], ...] = ()) -> Mapping[str, Any]:
    config = Config.fromfile(str(CONFIGS / f"{detector}.py"))
    config.merge_from_dict(dict(options))
    return plain(config.to_dict())


def _detector(config: Mapping[str, Any]) -> str:
    """The detector without its first weights and its training, and the kind of its data."""
    model = {key: value for key, value in _without_defaults(config["model"]).items() if key != "train_cfg"}
    model["backbone"] = {key: value for key, value in model["backbone"].items() if key != "init_cfg"}
    return json.dumps([model, config["test_dataloader"]["dataset"]["type"]], sort_keys=True, default=str)


def _without_defaults(model: Mapping[str, Any]) -> dict[str, Any]:
    """A detector's config without the options of its attention that have their defaults, as older versions wrote it."""
    backbone = dict(model["backbone"])
    if isinstance(backbone.get("attention"), Mapping):
        backbone["attention"] = without_defaults({"name": ""}, backbone["attention"])["attention"]
    return {**model, "backbone": backbone}


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of what is compared."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key not in KEYS_THAT_MAY_DIFFER and (path or key not in MAY_DIFFER):
                yield from _leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{path}.{i}")
    else:
        yield path, str(node)


def _evaluations(logs: Iterable[Path]) -> dict[int, dict[str, float]]:
    """The evaluations of all starts of a run; the later start of an epoch counts."""
    found: dict[int, dict[str, float]] = {}
    for entry in _entries(logs):
        scores = {name: entry[name] for name in (*BOXES.values(), *MASKS.values()) if name in entry}
        if scores:
            found[int(entry["step"])] = scores
    return found


def _seconds(logs: Iterable[Path]) -> dict[int, list[float]]:
    """The times of an iteration that were logged in training, by epoch."""
    found: dict[int, list[float]] = {}
    for entry in _entries(logs):
        if "loss" in entry and entry.get("time"):
            found.setdefault(int(entry["epoch"]), []).append(entry["time"])
    return found


def _entries(logs: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The lines of MMEngine's logs that are whole."""
    for log in logs:
        for line in log.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # cut off when the process was killed
