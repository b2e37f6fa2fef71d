"""ELPV: 2,624 photographs of solar cells with the probability of a defect, and the protocols of published results.

Buerhop-Lux et al., A benchmark for visual identification of defective solar cells in electroluminescence imagery, EU PVSEC
2018; Deitsch et al., Automatic classification of defective photovoltaic module cells in electroluminescence images, Solar
Energy 2019.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence

import numpy as np

from attn.data.splits import random_split, stratified

CLASSES = {
    "probability": tuple(f"defect probability {part}" for part in ("0", "1/3", "2/3", "1")),
    "defect": ("functional", "defective"),
}


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 [N, 300, 300], the probability of a defect in thirds, int [N] from 0 to 3, and the cell's type, str [N].

    Raises:
        ValueError: the package is not installed.
    """
    if importlib.util.find_spec("elpv_dataset") is None:
        raise ValueError("data=elpv needs the package elpv-dataset: pip install 'attn[elpv]' (CC BY-NC-SA)")
    from elpv_dataset.utils import load_dataset

    images, probabilities, types = load_dataset()
    thirds = np.rint(np.asarray(probabilities, dtype=np.float64) * 3).astype(np.int64)
    return np.asarray(images), thirds, np.asarray(types)


def labels_of(thirds: np.ndarray, kind: str) -> np.ndarray:
    """Labels of a protocol: the four probabilities, or defective from 2/3 on, as Deitsch et al. take them."""
    return thirds if kind == "probability" else (thirds >= 2).astype(np.int64)


def confidence(thirds: np.ndarray) -> np.ndarray:
    """The weight of each image in the loss, float32 [N]: 1 where the labellers were sure, 2/3 where they were not.

    It is the probability that they give to the label of the protocol `defect`: p for a defective cell, 1 - p for a functional
    one. So this project reads Deitsch et al., who weigh samples by the labellers' confidence.
    """
    return (np.maximum(thirds, 3 - thirds) / 3).astype(np.float32)


def rows_of(thirds: np.ndarray, types: np.ndarray, split: int | None, fraction: float, held_out: bool) -> np.ndarray:
    """Row numbers of a split: the fixed one for None (every fourth image of a probability), else a random one by number.

    Random splits hold out the same fraction of each probability and type of cell (mono- and polycrystalline).
    """
    if split is None:
        return stratified(thirds, every=4, held_out=held_out)
    _, kinds = np.unique(types, return_inverse=True)
    return random_split(thirds * 2 + kinds, fraction, split, held_out)


def published(thirds: np.ndarray, types: np.ndarray, name: str, fraction: float, numbers: Sequence[int | None]) -> str:
    """Splits as JSON, a line each, for readers who want them without this package.

    Args:
        thirds, types: of all images, as `load` gives them.
        name: of the protocol.
        fraction: of the images that a random split holds out.
        numbers: of the splits; None is the fixed one.
    """
    lines = [
        f'  "{"fixed" if number is None else number}": '
        + json.dumps(rows_of(thirds, types, number, fraction, held_out=True).tolist(), separators=(",", ":"))
        for number in numbers
    ]
    about = (
        f"{name}: rows of elpv_dataset.utils.load_dataset(), from 0, that each split holds out; the others are for training"
    )
    return f'{{\n"about": {json.dumps(about)},\n"images": {len(thirds)},\n"held_out": {{\n' + ",\n".join(lines) + "\n}\n}\n"
