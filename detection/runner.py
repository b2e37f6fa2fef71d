"""MMEngine's runner with checks before the start: safe checkpoints, classes that fit, files that exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attn.errors import UserError
from attn.models.unused import ignore_unused
from detection import weights

EMPTY = "no image is left after filtering (empty, too small, or without an object of the classes)"


class BadData(UserError):
    """A data set does not exist, is empty, or does not fit the detector; the message names it."""


@RUNNERS.register_module()
class AttentionRunner(Runner):
    """`Runner` that checks before it starts. Configs name it by `runner_type = 'AttentionRunner'`.

    Raises:
        BadData: an annotation file does not exist, lacks a class that the config names, or leaves no image; or the detector
            predicts another number of classes.
        BadCheckpoint: a checkpoint holds code, or is of another detector. MMEngine would execute the one, and start from
            random weights with the other.
    """

    _judging = False  # whether it validates or tests, where no weight may be random

    def _log_env(self, env_cfg: dict) -> None:
        # Hundreds of lines, which would hide an error: they are logged when the run begins.
        self._env_cfg = env_cfg

    def train(self) -> nn.Module:
        super()._log_env(self._env_cfg)
        return super().train()

    def val(self) -> dict:
        self._judging = True
        return super().val()

    def test(self) -> dict:
        self._judging = True
        super()._log_env(self._env_cfg)
        return super().test()

    def setup_env(self, env_cfg: dict) -> None:
        # MMEngine starts ranks on accelerators alone.
        if self._launcher == "pytorch" and get_device() == "cpu" and not is_distributed():
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if self.distributed and hasattr(model, "backbone"):
            try:
                ignore_unused(model, _check_loss, objectives=False)
            except ValueError as error:
                raise UserError(str(error)) from error
        if model_wrapper_cfg is None and self.distributed and get_device() == "cpu":
            unused = self.cfg.get("find_unused_parameters", False)
            model_wrapper_cfg = {"device_ids": None, "broadcast_buffers": False, "find_unused_parameters": unused}
        return super().wrap_model(model_wrapper_cfg, model)

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        # MMEngine keeps visualizers by name, and MMDetection's configs give them all one: a second run in a process would
        # log into the folder of the first.
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, "name": self.experiment_name}
        return super().build_visualizer(visualizer)

    @staticmethod
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        try:
            built = Runner.build_dataloader(dataloader, *args, **kwargs)
        except FileNotFoundError as error:
            raise BadData(_missing_file(error)) from error
        except ValueError as error:
            # MMEngine packs the images' records, and numpy packs no empty list.
            if "need at least one array" not in str(error):
                raise
            raise BadData(f"{_files(dataloader)}: {EMPTY}") from error
        for dataset in leaves(built.dataset):
            check_dataset(dataset)
        return built

    def build_train_loop(self, loop: Any) -> Any:
        built = super().build_train_loop(loop)
        check_classes(self.model, built.dataloader.dataset)
        return built

    def build_val_loop(self, loop: Any) -> Any:
        built = super().build_val_loop(loop)
        check_classes(self.model, built.dataloader.dataset)
        return built

    def build_test_loop(self, loop: Any) -> Any:
        built = super().build_test_loop(loop)
        check_classes(self.model, built.dataloader.dataset)
        return built

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        if "://" in filename:
            raise weights.BadCheckpoint(f"checkpoint {filename}: only files are read; download it first")
        model = self.model.module if is_model_wrapper(self.model) else self.model
        content = weights.read_detector(filename)
        # Fine-tuning may bring new heads; testing and resuming may not.
        weights.check_detector(model, content, filename, whole=self._resume or self._judging)
        return super().load_checkpoint(filename, *args, **kwargs)


def _check_loss(model: nn.Module, device: torch.device) -> Tensor:
    """A scalar of all maps that a detector's heads get, for two images, and of the heads' own parameters: those are
    MMDetection's concern, and count as used.
    """
    maps = model.backbone(torch.zeros(2, 3, 64, 64, device=device))
    if getattr(model, "neck", None) is not None:
        maps = model.neck(maps)
    heads = [p for name, p in model.named_parameters() if not name.startswith(("backbone.", "neck."))]
    return sum((tensor.sum() for tensor in (*maps, *heads)), torch.zeros((), device=device))


def leaves(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers such as `RepeatDataset` and `ConcatDataset`."""
    inner = getattr(dataset, "datasets", None) or ([dataset.dataset] if hasattr(dataset, "dataset") else [])
    if not inner:
        yield dataset
    for child in inner:
        yield from leaves(child)


def check_dataset(dataset: Any) -> None:
    """Refuses a data set that MMDetection would accept silently and learn nothing from.

    Raises:
        BadData: see `AttentionRunner`.
    """
    where = f"annotation file {getattr(dataset, 'ann_file', '?')}"
    classes = tuple((getattr(dataset, "metainfo", None) or {}).get("classes") or ())
    # CocoDataset drops classes that the file does not have, and shifts the labels of those after them.
    if hasattr(dataset, "cat_ids") and len(dataset.cat_ids) != len(classes):
        raise BadData(
            f"{where} has {len(dataset.cat_ids)} of the {len(classes)} classes of the config ({_some(classes)}):"
            " name its own in metainfo.classes of every dataset, and set num_classes of the heads"
        )
    if len(dataset) == 0:
        raise BadData(f"{where}: {EMPTY}")


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Compares the heads with the data.

    Raises:
        BadData: a head predicts another number of classes than the data set has.
    """
    classes = next(iter(leaves(dataset))).metainfo.get("classes")
    if classes is None:
        return
    for name, module in model.named_modules():
        path = name.removeprefix("module.")
        predicted = (
            None if path.startswith("backbone") or path.endswith("rpn_head") else getattr(module, "num_classes", None)
        )
        if isinstance(predicted, int) and predicted != len(classes):
            raise BadData(
                f"{path} predicts {predicted} classes, the data has {len(classes)} ({_some(classes)}): set"
                f" model.{path}.num_classes={len(classes)}"
            )


def _missing_file(error: FileNotFoundError) -> str:
    path = Path(str(error.filename)) if error.filename else None
    if path is None:
        return str(error)
    folder = next((parent for parent in path.parents if parent.is_dir()), Path("."))
    return f"annotation file {path}: no such file ({folder} exists); set data_root or ann_file of the dataset"


def _files(dataloader: Any) -> str:
    """The annotation files of a dataloader's config."""
    found: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, Mapping):
            if "ann_file" in node:
                found.append(str(Path(node.get("data_root") or "") / node["ann_file"]))
            for child in node.values():
                visit(child)
        elif isinstance(node, (list, tuple)):
            for child in node:
                visit(child)

    visit(dataloader)
    return f"annotation file {' and '.join(found)}"


def _some(names: Any) -> str:
    return ", ".join(map(str, list(names)[:4])) + (", ..." if len(names) > 4 else "")
