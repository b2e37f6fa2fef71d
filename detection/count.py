"""Parameters and operations of detectors as their papers print them: `python -m detection.count CONFIG ...`.

Parameters are the trainable ones, so with `frozen_stages=1` stem and first stage are left out. Operations are counted as
MMDetection 2's analysis did (`tools/analysis_tools/get_flops.py` over mmcv's counter): one image of the size that the config
resizes to, not padded; the heads on as many proposals as the config keeps, the mask head on as many boxes; per module a
multiply-accumulate is one operation, as is the addition of a convolution's bias (a linear layer's is none), BatchNorm2d 2
and ReLU 1 per element, pooling 1 per input element; RoIAlign and functional calls count as 0. In the backbone
`attn.models.flops` counts by the same convention, where a pooling counts whether a module or a function computes it. Nothing
is computed: everything runs on the meta device.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from attn.models.flops import Count, OperatorCounter, parameters
from detection import cli


def count(
    config: str | Path | Config,
    options: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
    size: Sequence[int] | None = None,
    wrappers: bool = True,
) -> Count:
    """Counts the detector of a config; `ptflops` is what the papers print as FLOPs.

    Args:
        config: path of a config, its name in detection/configs, or the config.
        options: overrides, as of `--cfg-options`.
        size: height and width of the image; by default `image_size` of the config.
        wrappers: count mmcv's own subclasses of torch's layers, too. Its counter knew torch's classes alone at first, which
            leaves out the deconvolution and the last convolution of a mask head (mmcv's `flops_counter.py`,
            `type(module) in MODULES_MAPPING`; later versions list the subclasses).

    Raises:
        ValueError, FileNotFoundError: the config does not exist or does not build.
    """
    cfg = config if isinstance(config, Config) else Config.fromfile(str(cli.find(str(config))))
    cfg.merge_from_dict(dict(options))
    init_default_scope(cfg.get("default_scope", "mmdet"))
    with torch.device("meta"):
        model = MODELS.build(cfg.model).eval()
    height, width = size or image_size(cfg)
    with torch.device("meta"), torch.no_grad():
        image = torch.empty(1, 3, height, width)
        with OperatorCounter(model) as backbone:
            maps = model.backbone(image)
        with ModuleCounter(model, wrappers) as rest, OperatorCounter(model) as operators:
            _neck_and_heads(model, maps, cfg.model)
    return Count(parameters(model), backbone.ptflops + rest.total, backbone.macs + operators.macs)


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width that the config resizes test images to, the longer side being the width."""
    dataset = cfg.test_dataloader.dataset
    scale = next(step["scale"] for step in dataset.pipeline if step["type"].endswith("Resize"))
    return min(scale), max(scale)


def _neck_and_heads(model: Any, maps: tuple[Tensor, ...], cfg: Any) -> None:
    """Runs what follows the backbone, the heads of two-stage detectors on as many empty regions as the config keeps."""
    maps = model.neck(maps) if model.with_neck else maps
    if not hasattr(model, "roi_head"):
        model.bbox_head(maps)
        return
    model.rpn_head(maps)
    roi = model.roi_head
    pairs = [(roi.bbox_head, roi.bbox_roi_extractor, cfg.test_cfg.rpn.max_per_img)]
    if roi.with_mask:
        pairs.append((roi.mask_head, roi.mask_roi_extractor, cfg.test_cfg.rcnn.max_per_img))
    for heads, extractors, regions in pairs:
        stages = isinstance(heads, nn.ModuleList)
        for head, extractor in zip(heads, extractors, strict=True) if stages else [(heads, extractors)]:
            size = extractor.roi_layers[0].output_size
            head(torch.empty(regions, head.in_channels, *size))


class ModuleCounter:
    """Adds up operations of the modules that run inside it, in mmcv's convention; `wrappers` as in `count`."""

    def __init__(self, model: nn.Module, wrappers: bool = True) -> None:
        self.total = 0
        self._model, self._wrappers = model, wrappers
        self._hooks: list[Any] = []

    def __enter__(self) -> ModuleCounter:
        leaves = [module for module in self._model.modules() if isinstance(module, COUNTED)]
        if not self._wrappers:
            leaves = [module for module in leaves if not type(module).__module__.startswith("mmcv.")]
        self._hooks = [module.register_forward_hook(self._add) for module in leaves]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(self, module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> None:
        self.total += operations(module, inputs[0], out)


COUNTED = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.Linear,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)


def operations(module: Any, x: Tensor, out: Tensor) -> int:
    """Operations of one call of a module."""
    bias = out.numel() if getattr(module, "bias", None) is not None else 0
    if isinstance(module, nn.Conv2d):
        return out.numel() * module.in_channels // module.groups * math.prod(module.kernel_size) + bias
    if isinstance(module, nn.ConvTranspose2d):
        return x.numel() * module.out_channels // module.groups * math.prod(module.kernel_size) + bias
    if isinstance(module, nn.Linear):
        return x.numel() * module.out_features
    if isinstance(module, nn.BatchNorm2d):
        return x.numel() * (2 if module.affine else 1)
    return out.numel() if isinstance(module, nn.ReLU) else x.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="configs of detectors")
    for path in parser.parse_args().configs:
        found = count(path)
        print(f"{path}: {found.params / 1e6:.2f} M trainable ({found.params}), {found.ptflops / 1e9:.2f} GFLOPs")


if __name__ == "__main__":
    main()
