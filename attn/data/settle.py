"""What the data's config comes to on this machine, before anything is opened: stored with the run, and compared when it is continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attn.config.schema import Data
from attn.data import decoders
from attn.data.packed import packing
from attn.data.root import data_root


def settled(data: Data, splits: Sequence[str] | None = None) -> Data:
    """The config with the decoder that is used, and with the packing of the copy that is read.

    Args:
        splits: those that are read; by default both.

    Raises:
        ValueError: the decoder is not built or installed, or the copy is not the one that the config asks for.
    """
    data = replace(data, decoder=decoders.here(data.decoder))
    if data.source != "packed":
        return data
    root = data_root(data)
    found = {split: packing(root / split) for split in splits or (data.train_split, data.val_split)}
    kinds = sorted(set(found.values()))
    if len(kinds) > 1:
        told = ", ".join(f"{split} {kind}" for split, kind in found.items())
        raise ValueError(f"data.root={data.root}: its splits are packed differently ({told}); pack them alike")
    if data.packed not in (None, kinds[0]):
        raise ValueError(f"data.packed={data.packed}, but data.root={data.root} holds {kinds[0]}; leave the key out")
    return replace(data, packed=kinds[0])
