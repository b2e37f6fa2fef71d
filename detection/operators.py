"""The operators of mmcv that the papers' detectors need, by torchvision, where mmcv's own are not compiled.

mmcv looks up about a hundred compiled functions in the module `mmcv._ext`, and compiling them takes many minutes. Faster,
Mask and Cascade R-CNN and RetinaNet call three: `nms`, `roi_align_forward` and `roi_align_backward`, which torchvision has
as well, on CPU and GPU. `provide` places a module with these three there if there is no compiled one; each other operator
raises one line when it is called. The values are those of the compiled operators:
`tests/detection/test_detection_operators.py` compares them.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import importlib.util
import inspect
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch
import torchvision
from torch import Tensor

from attn.errors import UserError

NAME = "mmcv._ext"
COMPILE = "compile mmcv's operators with `make .venv/.compiled`, or as 'Compiled operators' in docs/detection.md says"


def provide() -> None:
    """Places torchvision's operators as `mmcv._ext`, unless the compiled ones are there.

    Raises:
        ImportError: mmcv is not installed.
    """
    if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
        sys.modules[NAME] = _Operators(NAME, __doc__)
        _import_again()


def _import_again() -> None:
    """Repeats what modules of MMDetection and mmcv that were imported before tried to import from `mmcv.ops`.

    MMDetection's tools and a user's script may import some before this package; instead of the operators those keep
    functions that only raise.
    """
    before = [module for name, module in sys.modules.items() if name.startswith(("mmdet.", "mmcv."))]
    for module in before:
        try:
            source = inspect.getsource(module)
        except (OSError, TypeError):  # not written in Python, or not a module at all
            continue
        for statement in ast.parse(source).body if "mmcv.ops" in source else ():
            for node in statement.body if isinstance(statement, ast.Try) else (statement,):
                if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("mmcv.ops."):
                    origin = importlib.import_module(str(node.module))
                    vars(module).update({alias.asname or alias.name: getattr(origin, alias.name) for alias in node.names})


def in_use() -> str:
    """One line that says whose operators are used."""
    if isinstance(sys.modules.get(NAME), _Operators):
        return "operators: nms and RoIAlign of torchvision (mmcv's are not compiled)"
    return "operators: mmcv's, compiled"


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: [N, 4] as x1, y1, x2, y2, in pixels.
        scores: [N].
        iou_threshold: a box is dropped if its overlap with a better one is greater.
        offset: 0 or 1, added to widths and heights.

    Returns:
        Indices of the boxes that stay, int64, by falling score.
    """
    boxes, scores = _single(boxes), _single(scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # Sorted as mmcv does, so that equal scores are taken in its order: torchvision's own sort is a stable one.
    sorted_scores, order = scores.sort(0, descending=True)
    # mmcv compares in single precision: an overlap of 3/5 is not greater than 0.6.
    return order[torchvision.ops.nms(boxes[order], sorted_scores, ctypes.c_float(iou_threshold).value)]


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (He et al., Mask R-CNN, 2017), written to `output`.

    Args:
        input: maps [N, C, H, W].
        rois: [K, 5] as index of the image, x1, y1, x2, y2 in pixels of the image.
        output: [K, C, aligned_height, aligned_width].
        argmax_y, argmax_x: of maximum pooling; not used.
        aligned_height, aligned_width: size of a pooled region.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: points per cell and direction; 0 takes as many as the region has pixels.
        pool_mode: 1 for the mean.
        aligned: shift by half a pixel.

    Raises:
        UserError: `pool_mode` is 0, the maximum, which torchvision does not have.
    """
    _check_mode(pool_mode)
    size = (spatial_scale, aligned_height, aligned_width)
    output.copy_(torch.ops.torchvision.roi_align(_single(input), _single(rois), *size, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward`, added to `grad_input` [N, C, H, W].

    Raises:
        UserError: `pool_mode` is 0, the maximum, which torchvision does not have.
    """
    _check_mode(pool_mode)
    size = (spatial_scale, aligned_height, aligned_width, *grad_input.shape)
    backward = torch.ops.torchvision._roi_align_backward
    grad_input.add_(backward(_single(grad_output), _single(rois), *size, sampling_ratio, aligned))


def get_compiler_version() -> str:
    """What mmcv reports about its build."""
    return "n/a (not compiled)"


get_compiling_cuda_version = get_compiler_version


class _Operators(ModuleType):
    """Replaces the compiled module. mmcv looks up every operator when it is imported, so each name has a value."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
        if name in PROVIDED:
            return PROVIDED[name]

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise UserError(f"mmcv's operator {name} is not compiled, and torchvision does not replace it: {COMPILE}")

        return missing

    def __init__(self, name: str, doc: str | None) -> None:
        super().__init__(name, doc)
        self.__spec__ = ModuleSpec(name, None)  # without one, importlib.util.find_spec raises


PROVIDED = {
    function.__name__: function for function in (nms, roi_align_forward, roi_align_backward, get_compiler_version)
} | {"get_compiling_cuda_version": get_compiling_cuda_version}


def _single(x: Tensor) -> Tensor:
    """At least single precision, which torchvision's operators need on the CPU."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_mode(pool_mode: int) -> None:
    if pool_mode == 0:
        raise UserError(f"RoIAlign with pool_mode='max' is not in torchvision: use pool_mode='avg', or {COMPILE}")
