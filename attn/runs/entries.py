"""What the entries of a checkpoint may be: a file may hold anything under the right names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from attn.config.schema import METRICS

LARGEST = 2**53
MONITORS = ("top1", "top5", "loss", *METRICS)
SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


def problems(content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the entries that are there, one line each."""
    for key, (fits, expected) in ENTRIES.items():
        if key in content and not fits(content[key]):
            yield f"its entry {key!r} must be {expected}, and is {_short(content[key])}"
    counts = [content.get(key, 0) for key in ("evaluated", "step")]
    if all(map(_count, counts)) and counts[0] > counts[1]:
        yield f"its entry 'evaluated' is {counts[0]}, more epochs than its {counts[1]} steps can be"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _best(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and {"top1", "epoch"} <= set(value) <= {"top1", "epoch", "monitor", "value"}
        and _number(value["top1"])
        and not value["top1"] > 100
        and (value["epoch"] == -1 or _count(value["epoch"]))
        and value.get("monitor", "top1") in MONITORS
        and (value.get("value") is None or _number(value["value"]))
    )


def _meter(value: Any) -> bool:
    counts = {"images", "correct1", "correct5", "replaced", "skipped"}
    return (
        isinstance(value, Mapping)
        and set(value) <= {*counts, "loss"}
        and all(_count(value[key]) for key in counts & set(value))
        and _number(value.get("loss", 0.0))
        and math.isfinite(value.get("loss", 0.0))
    )


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, Mapping) and _count(row.get("epoch")) and row["epoch"] > 0 for row in value
    )


def _optimizer(value: Any) -> bool:
    if not (isinstance(value, Mapping) and isinstance(value.get("state"), Mapping)):
        return False
    groups = value.get("param_groups")
    return (
        isinstance(groups, list)
        and all(isinstance(g, Mapping) and _plain(g) for g in groups)
        and all(isinstance(g.get("params"), list) and all(map(_count, g["params"])) for g in groups)
        and all(isinstance(own, Mapping) and _plain(own) for own in value["state"].values())
    )


def _plain(value: Any) -> bool:
    """Tensors and plain data in containers of any depth: optimizers keep lists of factors, names, types and counters."""
    if isinstance(value, Mapping):
        return all(map(_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, Tensor, torch.dtype))


def _scaler(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        not value or all(_number(value.get(k)) and 0 <= value[k] < math.inf for k in SCALER)
    )


def _tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: _count(value) and value > 0, "an integer, 1 or more"),
    "step": (_count, "an integer, 0 or more"),
    "evaluated": (_count, "an integer, 0 or more"),
    "skipped_in_row": (_count, "an integer, 0 or more"),
    "model": (_tensors, "tensors by name"),
    "weights": (lambda value: value in ("ema", "raw"), "ema or raw"),
    "ema": (_or_none(_tensors), "tensors by name, or None"),
    "optimizer": (_optimizer, "the state of an optimizer (state, param_groups)"),
    "scaler": (_scaler, "the state of a GradScaler, or empty"),
    "best": (_best, "the score and the epoch of the best epoch"),
    "meter": (_meter, "sums over the images of an epoch"),
    "rows": (_rows, "lines of metrics, each with its epoch"),
    "history": (_rows, "lines of metrics, each with its epoch"),
    "classes": (_or_none(_names), "names of classes, or None"),
    "versions": (lambda value: isinstance(value, Mapping), "versions by name"),
}
