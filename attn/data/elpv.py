"""ELPV: 2,624 photographs of solar cells with the probability of a defect, and the protocols of published results.

Buerhop-Lux et al., A benchmark for visual identification of defective solar cells in electroluminescence imagery, EU PVSEC
2018; Deitsch et al., Automatic classification of defective photovoltaic module cells in electroluminescence images, Solar
Energy 2019.
"""

from __future__ import annotations

import importlib.util

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


def rows_of(thirds: np.ndarray, types: np.ndarray, split: int | None, fraction: float, held_out: bool) -> np.ndarray:
    """Row numbers of a split: the fixed one for None (every fourth image of a probability), else a random one by number.

    Random splits hold out the same fraction of each probability and type of cell (mono- and polycrystalline).
    """
    if split is None:
        return stratified(thirds, every=4, held_out=held_out)
    _, kinds = np.unique(types, return_inverse=True)
    return random_split(thirds * 2 + kinds, fraction, split, held_out)
