"""Counts of parameters and operations, without computing values: the network runs on the meta device.

Three conventions, because no single one gives the numbers of all papers:

    ptflops  what the tables of BA-Net, DCANet and BA2M count (ptflops up to 0.6.6, one operation per multiply-accumulate):
            convolutions and linear layers with in x out per output position, the convolution's bias, BatchNorm2d 2 and ReLU
            or ReLU6 1 per element, pooling 1 per input element. Not counted: products of activations, BatchNorm1d,
            LayerNorm, sigmoid, softmax and other element-wise work.
    macs    multiply-accumulates of convolutions, linear layers and matrix products (attention maps included), nothing else.
    macs_first   the same for the network with the stride of a bottleneck in its first 1x1 convolution, as in He et al.
            (see `stride_in_first`): many papers print this for baselines that they copy, whichever network was trained.

The papers counted modules; here operators are counted, so a mean over height and width is a global pooling, whether it is
computed by a module or by a function.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from attn.models.meta import NORMS, allocated_norm

CONVENTIONS = {
    "ptflops": "conv MACs + bias, linear MACs, BatchNorm2d 2, ReLU 1, pooling 1 per element (ptflops up to 0.6.6)",
    "macs": "multiply-accumulates of convolutions, linear layers and matrix products",
    "macs_first": "the same with the stride of a bottleneck in its first 1x1 convolution, as copied baselines are printed",
}
aten = torch.ops.aten
RECTIFIERS = {aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_, aten.leaky_relu, aten.leaky_relu_, aten.elu, aten.elu_}
POOLS = {
    aten.avg_pool2d,
    aten.max_pool2d_with_indices,
    aten._adaptive_avg_pool2d,
    aten.adaptive_max_pool2d,
}
REDUCTIONS = {aten.mean, aten.amax}


@dataclass(frozen=True)
class Count:
    """The parameters and operations of a network.

    Attributes:
        params: trainable parameters; a shared one counts once.
        ptflops: operations per image as ptflops up to 0.6.6 counts them.
        macs: multiply-accumulates per image.
    """

    params: int
    ptflops: int
    macs: int


class OperatorCounter(TorchDispatchMode):
    """Adds up `ptflops` and `macs` over the operators that run inside it.

    Args:
        model: its parameters distinguish a layer (a product with a parameter) from a product of activations.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.ptflops = 0
        self.macs = 0
        self._parameters = {_storage(p) for p in model.parameters()}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = func._overloadpacket
        out: Any = allocated_norm(op, args)
        if out is None:
            out = func(*args, **kwargs)
        if op in flop_registry:
            macs = flop_registry[op](*args, **kwargs, out_val=out) // 2
            self.macs += macs
            if op is aten.convolution:
                self.ptflops += macs + (out.numel() if args[2] is not None else 0)
            elif any(isinstance(a, Tensor) and _storage(a) in self._parameters for a in args):
                self.ptflops += macs
        elif op in NORMS:
            x, weight = args[0], args[1]
            if x.ndim == 4:
                self.ptflops += x.numel() * (1 if weight is None else 2)
        elif op in RECTIFIERS:
            self.ptflops += out.numel()
        elif op in POOLS or (op in REDUCTIONS and _over_map(args, kwargs)):
            self.ptflops += args[0].numel()
        return out


def _storage(tensor: Tensor) -> int:
    """Identity of a tensor's memory: the same for a parameter and its views, on the meta device too."""
    return tensor.untyped_storage()._cdata


def _over_map(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a reduction runs over height and width of [N, C, H, W]: global pooling."""
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    return args[0].ndim == 4 and isinstance(dims, (list, tuple)) and sorted(d % 4 for d in dims) == [2, 3]


def count(model: nn.Module, shape: Sequence[int] = (3, 224, 224), training: bool = False) -> Count:
    """Counts a network on the meta device; the network itself is not changed.

    Args:
        model: any network that takes one tensor.
        shape: of one input, without the batch.
        training: count the forward pass of training, for attentions that do nothing at inference (BA2M).
    """
    # Batch statistics need at least two images; the returned numbers are those of one.
    batch = 2 if training else 1
    on_meta = copy.deepcopy(model).to("meta").train(training)
    with torch.device("meta"), torch.no_grad(), OperatorCounter(on_meta) as counter:
        on_meta(torch.empty(batch, *shape))
    return Count(parameters(model), counter.ptflops // batch, counter.macs // batch)


def stride_in_first(model: nn.Module) -> nn.Module:
    """A copy whose bottlenecks have their stride in the first 1x1 convolution instead of the 3x3 (ResNet, He et al. 2016).

    A block whose 3x3 convolution was replaced by an attention is not changed.
    """
    model = copy.deepcopy(model)
    for block in model.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if not (isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d) and hasattr(block, "conv3")):
            continue
        if first.kernel_size == (1, 1) and first.stride == (1, 1):
            first.stride, second.stride = second.stride, first.stride
    return model


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters; a shared one counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
