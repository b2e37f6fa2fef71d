"""Randomness as a function: every random choice is drawn from a key, so no generator state needs to be saved or replayed."""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """A 63-bit number that depends on all parts, such as (seed, "sample", epoch, index)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@lru_cache(maxsize=2)
def permutation(n: int, *parts: int | str) -> Tensor:
    """A permutation of 0..n-1, int64, as a function of the key's parts; cached, so it must not be changed."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(key(*parts)))


def seed_everything(*parts: int | str) -> None:
    """Seeds Python, numpy and torch on all devices (initialisation, dropout, mixup)."""
    number = key(*parts)
    _seed_host(number)
    torch.manual_seed(number)


def seed_sample(*parts: int | str) -> None:
    """Seeds Python, numpy and torch on the CPU, as the augmentation of one image needs."""
    number = key(*parts)
    _seed_host(number)
    torch.default_generator.manual_seed(number)


def _seed_host(number: int) -> None:
    random.seed(number)
    np.random.seed(number % 2**32)
