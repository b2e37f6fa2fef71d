"""Splits of a data set that has none of its own: functions of its labels alone, equal on every machine."""

from __future__ import annotations

import hashlib

import numpy as np


def stratified(labels: np.ndarray, every: int, held_out: bool) -> np.ndarray:
    """Row numbers of a fixed split: of each class, every `every`-th image in order is held out."""
    position = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        position[rows] = np.arange(len(rows))
    out = position % every == every - 1
    return np.flatnonzero(out if held_out else ~out)


def random_split(strata: np.ndarray, fraction: float, number: int, held_out: bool) -> np.ndarray:
    """Row numbers of one of many random splits; of each stratum the same fraction is held out, rounded to whole images.

    The order of the rows is that of their hashes, not of a library's generator, whose numbers may change with its version.

    Args:
        strata: int [N], what must be distributed equally: a label, or a label and a type together.
        fraction: of the images that are held out, between 0 and 1.
        number: of the split; each is another one.
        held_out: the held-out rows, or the others.
    """
    keys = [hashlib.sha256(f"split {number}, row {row}".encode()).digest() for row in range(len(strata))]
    out = np.zeros(len(strata), dtype=bool)
    for stratum in np.unique(strata):
        rows = sorted(np.flatnonzero(strata == stratum), key=keys.__getitem__)
        out[rows[: round(fraction * len(rows))]] = True
    return np.flatnonzero(out if held_out else ~out)
