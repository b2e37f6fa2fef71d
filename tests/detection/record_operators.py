"""Records what mmcv's compiled operators give: `python tests/detection/record_operators.py` where they are compiled.

The values in `tests/fixtures/mmcv_operators.pt` are those of onedl-mmcv 2.3.6 on the CPU. With `--module NAME` the operators
come from any module that Python can import: there the sources `mmcv/ops/csrc/pytorch/{nms,roi_align}.cpp` and
`mmcv/ops/csrc/pytorch/cpu/{nms,roi_align}.cpp` of the release were compiled alone, unchanged, which takes a minute.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

FILE = Path(__file__).resolve().parents[1] / "fixtures" / "mmcv_operators.pt"
Case = dict[str, Any]


def nms_cases() -> list[Case]:
    """Many boxes at several thresholds, equal scores, equal boxes, overlaps on the threshold, one box, none."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for offset in (0, 1):
        for threshold in (0.3, 0.5, 0.7):
            corner, size = (torch.rand(60, 2, generator=generator) * scale for scale in (60, 40))
            scores = torch.rand(60, generator=generator)
            cases += [{"boxes": torch.cat([corner, corner + size], 1), "scores": scores, "threshold": threshold}]
            # Equal scores and equal boxes: the order among them decides.
            tied = (cases[-1]["boxes"].round(), (scores * 4).round() / 4)
            doubled = [torch.cat([t, t[:20]]) for t in tied]
            cases += [{"boxes": doubled[0], "scores": doubled[1], "threshold": threshold}]
            for case in cases[-2:]:
                case["offset"] = offset
    row = torch.tensor([[0.0, 0.0, 4.0, 1.0], [1.0, 0.0, 5.0, 1.0]])  # an overlap of 3/5
    cases += [{"boxes": row, "scores": torch.tensor([0.9, 0.8]), "threshold": t, "offset": 0} for t in (0.59, 0.6, 0.61)]
    inclusive = row - torch.tensor([0.0, 0.0, 1.0, 1.0])  # the same with an offset of 1
    cases += [{"boxes": inclusive, "scores": torch.tensor([0.9, 0.8]), "threshold": 0.6, "offset": 1}]
    cases += [{"boxes": torch.zeros(n, 4), "scores": torch.zeros(n), "threshold": 0.5, "offset": 0} for n in (0, 1, 3)]
    return cases


def roi_cases() -> list[Case]:
    """Regions inside, across and beyond the border, tiny ones and none; all settings of the pyramids."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, 10, 12, generator=generator)
    cases = []
    for scale, size in ((1 / 4, (7, 7)), (1 / 8, (3, 5)), (1.0, (2, 2))):
        corner = torch.rand(6, 2, generator=generator) * 8 / scale - 1 / scale
        extent = torch.rand(6, 2, generator=generator) * torch.tensor([8.0, 1, 5, 0.01, 4, 9])[:, None] / scale
        rois = torch.cat([torch.tensor([0.0, 1, 0, 1, 1, 0])[:, None], corner, corner + extent], 1)
        for aligned in (False, True):
            for ratio in (0, 2):
                grad = torch.randn(6, 3, *size, generator=generator)
                settings = {"size": size, "scale": scale, "ratio": ratio, "aligned": aligned}
                cases.append({"features": features, "rois": rois, "grad": grad, **settings})
    cases.append({**cases[0], "rois": cases[0]["rois"][:0], "grad": cases[0]["grad"][:0]})
    return cases


def run_nms(operators: Any, case: Case) -> Tensor:
    """Indices of the boxes that stay."""
    return operators.nms(case["boxes"], case["scores"], iou_threshold=case["threshold"], offset=case["offset"])


def run_roi_align(operators: Any, case: Case) -> tuple[Tensor, Tensor]:
    """The pooled regions, and the gradient of the maps."""
    height, width = case["size"]
    settings = {"aligned_height": height, "aligned_width": width, "spatial_scale": case["scale"]}
    settings |= {"sampling_ratio": case["ratio"], "pool_mode": 1, "aligned": case["aligned"]}
    output, gradient, none = torch.zeros_like(case["grad"]), torch.zeros_like(case["features"]), torch.zeros(0)
    operators.roi_align_forward(case["features"], case["rois"], output, none, none, **settings)
    operators.roi_align_backward(case["grad"], case["rois"], none, none, gradient, **settings)
    return output, gradient


def record(operators: ModuleType) -> dict[str, list[Case]]:
    """Inputs and results of all cases."""
    # The order of equal scores is that of torch's sort, which differs between processors.
    nms = [
        {**case, "order": case["scores"].sort(0, descending=True)[1], "kept": run_nms(operators, case)}
        for case in nms_cases()
    ]
    rois = []
    for case in roi_cases():
        output, gradient = run_roi_align(operators, case)
        rois.append({**case, "output": output, "gradient": gradient})
    return {"nms": nms, "roi_align": rois}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", default="mmcv._ext", help="where the compiled operators are")
    operators = importlib.import_module(parser.parse_args().module)
    if getattr(operators, "__file__", None) is None:
        parser.error("these operators are not compiled")
    FILE.parent.mkdir(exist_ok=True)
    torch.save(record(operators), FILE)


if __name__ == "__main__":
    main()
