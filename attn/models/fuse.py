"""A copy of a network for inference: norms folded into the layers before them, gates' constant parts computed once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, DropBlock2d, DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attn.backbones.folded import Folded, adopt_blocks
from attn.kernels.block import hooked
from attn.models.create import set_kernels
from attn.modules._layers import MapBatchNorm, VectorBatchNorm, norm_as_affine
from attn.modules.aw import AW, AWConv2d

# The output of these is linear in `weight` along its first axis, plus `bias`; and these norms do nothing more, or an
# activation.
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame, AWConv2d, AW)
NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(VectorBatchNorm, MapBatchNorm, BatchNormAct2d),
)
VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.squeeze.dims)
DROPOUTS = (_DropoutNd, DropPath, DropBlock2d)


def fuse(model: nn.Module, images: Tensor | None = None, *, blocks: bool = True) -> nn.Module:
    """The network for inference: the same outputs, up to rounding, in less time.

    - Every batch norm that follows a convolution or a linear layer, and nothing else reads what is between, is folded into
      it. A norm of another kind, or in another place (after a sum, or before an activation and a convolution), stays as it
      is.
    - Gates become what they are at inference (`Attention.folded`): BA and BAv2 one matrix over all descriptors, FcaNet with
      its frequencies per channel, DREAL without its critic, BA2M nothing unless it has `inference`.
    - A ResNet's block whose gate needs only means gets its last mean before the last convolution, and multiplies and adds
      the shortcut in one pass.
    - Dropout and stochastic depth are removed; every parameter is a constant (`requires_grad=False`).

    Args:
        model: any network, such as from `create_model` or `load`. It is not changed. `kernels=fused` becomes plain modules.
        images: [N, C, H, W], of the size that it will get, to find what follows what; no values are computed. By default one
            image of the network's own size.
        blocks: also rewrite the ends of ResNets' blocks, which reads the weights of their last convolutions twice.

    Returns:
        A copy in evaluation mode. Its features (`forward_intermediates`) are the same too. Its `state_dict` is not that of
        the model, and it cannot be trained: `train()` raises a RuntimeError.

    Raises:
        ValueError: it is no network, or cannot run on the images.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={model!r} must be a network, such as attn.load(path) returns")
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    set_kernels(fused, "reference")
    fold_attentions(fused)
    if any(isinstance(module, _BatchNorm) for module in fused.modules()):
        images = example(fused) if images is None else images
        for layer, norm in foldable(fused, images):
            fold(fused, layer, norm)
    replace(fused, lambda module: Folded() if isinstance(module, DROPOUTS) and not hooked(module) else module)
    if blocks:
        adopt_blocks(fused)
    return fused.requires_grad_(False)


def replace(model: nn.Module, by: Callable[[nn.Module], nn.Module]) -> None:
    """Puts `by(module)` in the place of every module below `model`, in place; those inside of a new one are asked too."""
    known: dict[nn.Module, nn.Module] = {}  # a module may have several places
    for name, module in list(model.named_children()):
        if module not in known:
            known[module] = by(module)
            replace(known[module], by)
        if known[module] is not module:
            model._modules[name] = known[module]


def fold_attentions(model: nn.Module) -> None:
    """Replaces the attentions, and what else says what it is at inference, in place."""

    def folded(module: nn.Module) -> nn.Module:
        own = getattr(module, "folded", None)
        return module if own is None or hooked(module) else own().eval()

    replace(model, folded)


def example(model: nn.Module) -> Tensor:
    """One image [1, C, H, W] of the size that a network is made for, on the meta device."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is None:
        size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-2:]
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    return torch.empty(1, channels, *size, device="meta")


class Flow(TorchDispatchMode):
    """Records which tensors the operators of a forward pass read, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[int] = Counter()
        self.source: dict[int, int] = {}  # of [N, C], the [N, C, 1, 1] that it is a view of
        self.kept: list[Tensor] = []  # an id is that of one tensor only as long as the tensor lives

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.reads.update(id(tensor) for tensor in read)
        self.kept += read + [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if isinstance(out, Tensor) and func in VIEWS and read[0].shape == (*out.shape, 1, 1):
            self.source[id(out)] = id(read[0])
        return out


def foldable(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """The pairs of a layer and the batch norm to fold into it, by name.

    The data flow is read off a forward pass of a copy on the meta device; a network that needs values runs as it is.

    Raises:
        ValueError: the network cannot run on the images.
    """
    try:
        return _foldable(on_meta(model), images.to("meta"))
    except Exception:  # whatever a network's own code raises without values
        device = next(model.parameters()).device
        values = torch.zeros(images.shape, device=device) if images.is_meta else images.to(device)
        try:
            return _foldable(copy.deepcopy(model), values)
        except Exception as error:
            raise ValueError(f"fuse: the network cannot run on images {tuple(images.shape)}: {error}") from error


def on_meta(model: nn.Module) -> nn.Module:
    meta = torch.device("meta")
    memo: dict[int, Any] = {id(b): b.to(meta) for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to(meta), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo)


@torch.no_grad()
def _foldable(twin: Any, images: Tensor) -> list[tuple[str, str]]:
    made: dict[int, str] = {}
    asked: dict[str, int] = {}
    calls: Counter[str] = Counter()
    owners = Counter(id(p) for m in twin.modules() for p in m.parameters(recurse=False))

    def note_output(name: str, output: Any) -> None:
        made[id(output[0] if isinstance(output, tuple) else output)] = name
        calls[name] += 1

    def note_input(name: str, inputs: tuple[Any, ...]) -> None:
        asked[name] = id(inputs[0])
        calls[name] += 1

    taken = {name for name, module in twin.named_modules() if hooked(module)}
    for module in twin.modules():  # they are not for a pass without values
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for name, module in twin.named_modules():
        if name in taken:
            continue
        if type(module) in LINEAR and owners[id(module.weight)] == 1:
            module.register_forward_hook(lambda _, __, output, name=name: note_output(name, output))
        elif type(module) in NORMS and module.running_mean is not None:
            module.register_forward_pre_hook(lambda _, inputs, name=name: note_input(name, inputs))

    dtype = next(twin.parameters()).dtype
    with Flow() as flow:
        out = twin(images.to(dtype))
    returned = {id(leaf) for leaf in tree_leaves(out)}
    found = {}
    for norm, tensor in asked.items():
        chain = [tensor, flow.source[tensor]] if tensor in flow.source else [tensor]
        layer = made.get(chain[-1])
        once = layer is not None and calls[layer] == 1 and calls[norm] == 1
        if once and all(flow.reads[i] == 1 and i not in returned for i in chain):
            found[layer] = norm
    # The features of the network stay what they are.
    if hasattr(twin, "forward_intermediates"):
        made.clear()
        with Flow():
            out = twin.forward_intermediates(images.to(dtype))
        for leaf in tree_leaves(out):
            found.pop(made.get(id(leaf)), None)
    return [(layer, norm) for layer, norm in found.items() if layer is not None]


def fold(model: nn.Module, layer_name: str, norm_name: str) -> None:
    """Makes a batch norm part of the layer before it, in place."""
    layer: Any = model.get_submodule(layer_name)
    norm: Any = model.get_submodule(norm_name)
    scale, shift = norm_as_affine(norm)
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias.double() * scale + shift
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
    model.set_submodule(norm_name, Folded(norm.act if isinstance(norm, BatchNormAct2d) else None))
