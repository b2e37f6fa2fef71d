"""torchvision's operators in mmcv's place: equal to the compiled ones, and one line for what they lack."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import detection_fixtures
import numpy as np
import pytest
import torch
from commands import call
from record_operators import FILE, nms_cases, roi_cases, run_nms, run_roi_align

import detection  # noqa: F401
from attn.errors import UserError
from detection import operators

ROOT = detection_fixtures.ROOT
RECORDED = torch.load(FILE, weights_only=True)


def test_recorded_inputs_are_those_of_the_cases() -> None:
    for recorded, cases in ((RECORDED["nms"], nms_cases()), (RECORDED["roi_align"], roi_cases())):
        assert len(recorded) == len(cases)
        for old, new in zip(recorded, cases, strict=True):
            torch.testing.assert_close({key: old[key] for key in new}, new, rtol=0, atol=0)


def greedy(case: dict[str, Any], order: torch.Tensor) -> list[int]:
    """Non-maximum suppression by loops in single precision, in a given order of the boxes."""
    boxes, offset, left, kept = case["boxes"].numpy(), np.float32(case["offset"]), order.tolist(), []
    area = [(x2 - x1 + offset) * (y2 - y1 + offset) for x1, y1, x2, y2 in boxes]
    while left:
        best = left.pop(0)
        kept.append(best)
        stay = []
        for other in left:
            a, b = boxes[best], boxes[other]
            sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + offset
            common = np.prod(np.maximum(sides, np.float32(0)))
            with np.errstate(invalid="ignore"):  # boxes without area
                overlap = common / (area[best] + area[other] - common)
            if not overlap > np.float32(case["threshold"]):
                stay.append(other)
        left = stay
    return kept


@pytest.mark.parametrize("case", RECORDED["nms"], ids=lambda case: f"{len(case['boxes'])}-{case['threshold']}")
def test_nms_keeps_what_the_compiled_one_keeps(case: dict[str, Any]) -> None:
    assert greedy(case, case["order"]) == case["kept"].tolist()
    kept = run_nms(operators, case)
    assert kept.dtype == case["kept"].dtype == torch.int64
    assert kept.tolist() == greedy(case, case["scores"].sort(0, descending=True)[1])


@pytest.mark.parametrize(
    "case", RECORDED["roi_align"], ids=lambda case: f"{case['scale']}-{case['ratio']}-{case['aligned']}"
)
def test_roi_align_and_its_gradient_equal_the_compiled_ones(case: dict[str, Any]) -> None:
    output, gradient = run_roi_align(operators, case)
    torch.testing.assert_close(output, case["output"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, case["gradient"], rtol=1e-6, atol=1e-6)


def test_half_precision_is_computed_in_single() -> None:
    case = RECORDED["roi_align"][0]
    for dtype in (torch.float16, torch.bfloat16):
        low = {key: value.to(dtype) if isinstance(value, torch.Tensor) else value for key, value in case.items()}
        output, gradient = run_roi_align(operators, low)
        assert (output.dtype, gradient.dtype) == (dtype, dtype)
        high = {key: value.float() if isinstance(value, torch.Tensor) else value for key, value in low.items()}
        expected = run_roi_align(operators, high)
        torch.testing.assert_close((output, gradient), tuple(t.to(dtype) for t in expected), rtol=0, atol=0)


def python(code: str) -> subprocess.CompletedProcess:
    """Runs code in a process of its own that has not imported mmcv, because `sys.modules` is under test."""
    script = Path(tempfile.mkdtemp()) / "script.py"
    script.write_text(code)
    return call([script], timeout=240, env={"PYTHONPATH": str(ROOT)})


# As on a machine where nothing is compiled, whatever this one has.
ABSENT = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "mmcv._ext" else find(name, *rest)
import detection
importlib.util.find_spec = find
"""


def test_mmcv_uses_torchvision_where_nothing_is_compiled() -> None:
    result = python(
        ABSENT
        + """
import torch
from detection import operators
from mmcv import ops
from mmcv.utils import collect_env
print(operators.in_use())
print(collect_env()["MMCV Compiler"], importlib.util.find_spec("mmcv._ext").name)
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 50, 50]])
dets, kept = ops.batched_nms(boxes, torch.tensor([0.5, 0.9, 0.8]), torch.zeros(3), dict(type="nms", iou_threshold=0.5))
print(kept.tolist())
x = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
rois = torch.tensor([[0, 0.3, 1.2, 6.1, 7.4]], dtype=torch.float64)
print(torch.autograd.gradcheck(lambda x: ops.roi_align(x, rois, (2, 2), 1.0, 2, "avg", True), x))
for call in (lambda: ops.roi_align(x, rois, (2, 2), 1.0, 2, "max", True), lambda: ops.roi_pool(x, rois, (2, 2), 1.0)):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
"""
    )
    assert result.returncode == 0, result.stderr
    used, env, kept, gradient, maximum, pool = [line for line in result.stdout.splitlines() if "OneDL" not in line]
    assert used == "operators: nms and RoIAlign of torchvision (mmcv's are not compiled)"
    assert env == "n/a (not compiled) mmcv._ext"
    assert (kept, gradient) == ("[1, 2]", "True")
    assert maximum.startswith(
        "UserError RoIAlign with pool_mode='max' is not in torchvision: use pool_mode='avg', or compile"
    )
    assert pool.startswith("UserError mmcv's operator roi_pool_forward is not compiled")
    assert "make .venv/.compiled" in pool


EARLY = """
import importlib, importlib.util, sys
if importlib.util.find_spec("mmcv._ext") is not None:
    print("compiled")
    sys.exit()
for name in ("mmdet.structures", "mmdet.utils", "mmdet.datasets", "mmdet.apis", "mmdet.models", "mmcv.ops"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
import detection
import ast, inspect
import mmcv.ops, mmdet.apis, mmdet.models
left, found = [], 0
for module in [module for name, module in sys.modules.items() if name.startswith(("mmdet.", "mmcv.cnn"))]:
    tree = ast.parse(inspect.getsource(module) if getattr(module, "__file__", None) else "")
    handled = [node for attempt in tree.body if isinstance(attempt, ast.Try) for node in attempt.body]
    for node in handled:
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[:2] == ["mmcv", "ops"]:
            origin = importlib.import_module(node.module)
            for alias in node.names:
                found += 1
                if getattr(module, alias.asname or alias.name) is not getattr(origin, alias.name):
                    left.append(f"{module.__name__}.{alias.name}")
print(found, left)
import torch
from mmdet.models.layers.bbox_nms import multiclass_nms
boxes, scores = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10]]), torch.tensor([[0.5, 0], [0.9, 0]])
print(len(multiclass_nms(boxes, scores, 0.1, dict(type="nms", iou_threshold=0.5))[0]))
import numpy as np
from mmdet.structures.mask import BitmapMasks
crop = BitmapMasks(np.ones((1, 8, 8), np.uint8), 8, 8).crop_and_resize(np.array([[0, 0, 8, 8.0]]), (4, 4), np.array([0]))
print(crop.masks.sum())
"""


def test_mmdetection_may_be_imported_before() -> None:
    result = python(EARLY)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "OneDL" not in line]
    if lines[-1] == "compiled":
        pytest.skip("the operators are compiled here")
    bound, boxes, pixels = lines[-3:]
    count, _, left = bound.partition(" ")
    assert int(count) > 20
    assert (left, boxes, pixels) == ("[]", "1", "16")


# The package's own imports need the operators, so that the file is imported without them.
COMPILED = """
import sys, types
sys.modules["mmcv._ext"] = compiled = types.ModuleType("mmcv._ext")
sys.modules["detection"] = package = types.ModuleType("detection")
package.__path__ = ["detection"]
from detection import operators
operators.provide()
print(sys.modules["mmcv._ext"] is compiled, operators.in_use())
"""


def test_compiled_operators_are_left_in_place() -> None:
    result = python(COMPILED)
    assert result.stdout.splitlines()[-1:] == ["True operators: mmcv's, compiled"], result.stderr


def test_an_operator_that_is_missing_says_so_when_it_is_called() -> None:
    if not isinstance(sys.modules["mmcv._ext"], operators._Operators):
        pytest.skip("the operators are compiled here")
    with pytest.raises(UserError, match=r"operator softnms is not compiled.*make .venv/.compiled"):
        sys.modules["mmcv._ext"].softnms()
