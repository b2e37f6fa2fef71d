"""Networks on the meta device, which has shapes and no values: batch norms are allocated there, not computed.

Torch has no meta kernel for them and runs their definition in Python, one small operator after another. That would be most of
the time of a pass without values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
NORMS = {aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training}


class AllocatedNorms(TorchDispatchMode):
    """While entered, batch norms on the meta device and their gradients are allocated; all other operators run as they do."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = allocated_norm(func._overloadpacket, args)
        return func(*args, **(kwargs or {})) if out is None else out


def allocated_norm(op: Any, args: Sequence[Any]) -> tuple[Tensor | None, ...] | None:
    """What a batch norm or its gradient returns on the meta device; None for everything else, so that it is run.

    Args:
        op: an operator without its overload, as `torch.ops.aten.native_batch_norm`.
        args: of the call. A norm whose tensors do not fit the map's channels is run too: that raises torch's own error.
    """
    backward = op is aten.native_batch_norm_backward
    if not backward and op not in NORMS:
        return None
    x = args[1 if backward else 0]
    channels = x.shape[1]
    if not x.is_meta or any(isinstance(t, Tensor) and t.numel() != channels for t in args[2 if backward else 1 : 5]):
        return None
    out = (torch.empty_like(x), x.new_empty(channels), x.new_empty(channels))
    return tuple(t if wanted else None for t, wanted in zip(out, args[9], strict=True)) if backward else out
