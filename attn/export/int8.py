"""Static quantisation to 8-bit integers by torchao's PT2E: weights per channel, activations by ranges seen on training images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from attn.errors import UserError, reason
from attn.export.program import program, quietly


def quantise(model: nn.Module, batches: Iterable[Tensor], images: Tensor, any_batch: bool) -> torch.export.ExportedProgram:
    """The exported program of a network whose convolutions and linear layers have 8-bit weights and inputs.

    Every such operator is `dequantize -> operator -> quantize` in the program, which computes in float32 as it stands;
    `torch.compile` turns these patterns into integer kernels on x86.

    Args:
        model: in evaluation mode, folded (`attn.fuse`).
        batches: images [N, C, H, W], normalised, whose activations set the ranges.
        images: an example, as for `program`.
        any_batch: whether N may be any number.

    Raises:
        UserError: torchao cannot quantise it.
    """
    with quietly():
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    traced: Any = program(model, images, any_batch).module()
    try:
        with quietly(), torch.no_grad():
            quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
            prepared = prepare_pt2e(traced, quantizer)
            for batch in batches:
                prepared(batch)
            converted = convert_pt2e(prepared)
    except Exception as error:
        raise UserError(f"format=int8: torchao cannot quantise this network: {reason(error)[:300]}") from error
    drop_unused(converted)
    return program(converted, images, any_batch)


def drop_unused(graph: Any) -> None:
    """Removes the parameters and buffers that no operator reads: the float32 weights, of which the graph has 8-bit ones."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for module_name, module in list(graph.named_modules()):
        for own in (*module._parameters, *module._buffers):
            name = f"{module_name}.{own}" if module_name else own
            if name not in used:
                module._parameters.pop(own, None)
                module._buffers.pop(own, None)


@torch.no_grad()
def top1(run: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Percent of images whose first guess is their label, over batches of images [N, C, H, W] and labels [N]."""
    hits = total = 0
    for images, labels in batches:
        hits += int((run(images).argmax(1) == labels).sum())
        total += len(labels)
    return 100 * hits / total
