"""The most memory that tensors take at once while something is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak(work: Callable[[], Any], device: torch.device, held: Sequence[Tensor]) -> int:
    """The peak, in bytes, on a device.

    On a GPU it is what torch's allocator counts, on the CPU the sum of the tensors that live at once; what operators use for
    themselves is not in it there.

    Args:
        work: is called once.
        device: where the tensors are.
        held: tensors that exist before: parameters, buffers, images, the optimizer's state.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    counter = LiveStorages(held)
    with counter:
        work()
    return counter.most


class LiveStorages(TorchDispatchMode):
    """Follows the sum of the storages of all tensors that operators inside it return, as long as they live.

    `most` is the largest sum so far, in bytes, with the storages of `held`.
    """

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.most = 0
        for tensor in held:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
