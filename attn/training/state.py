"""Everything that training changes: what a checkpoint holds, and how it is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from attn.config.parse import to_dict
from attn.config.schema import Config
from attn.runs import checkpoint, load


@dataclass
class Meter:
    """Sums over the epoch so far, over all ranks."""

    images: int = 0
    loss: float = 0.0
    correct1: int = 0
    correct5: int = 0
    replaced: int = 0
    skipped: int = 0

    def add(self, images: float, loss: float, correct1: float, correct5: float, replaced: float) -> None:
        """Adds the sums of a step."""
        self.images, self.loss = self.images + int(images), self.loss + loss
        self.correct1, self.correct5 = self.correct1 + int(correct1), self.correct5 + int(correct5)
        self.replaced += int(replaced)

    def row(self) -> dict[str, Any]:
        """For a line of metrics; `train_loss` is the mean over images, top-1 and top-5 are in percent."""
        n = max(self.images, 1)
        values = {"train_loss": self.loss / n, "train_top1": 100 * self.correct1 / n, "train_top5": 100 * self.correct5 / n}
        return {**values, "replaced": self.replaced, "skipped": self.skipped}


@dataclass
class Best:
    """The best epoch so far, by a score of the validation (of the averaged weights where there are any).

    Attributes:
        top1: its top-1, in percent.
        monitor: name of the score.
        value: the score, where it is not top-1.
    """

    top1: float = -1.0
    epoch: int = -1
    monitor: str = "top1"
    value: float | None = None

    def beaten_by(self, scores: Mapping[str, float]) -> bool:
        """Whether an epoch with these scores is better; a NaN never is."""
        new, old = scores[self.monitor], self.top1 if self.value is None else self.value
        if math.isnan(new) or math.isnan(old):
            return self.epoch < 0 or not math.isnan(new)
        return self.epoch < 0 or (new < old if self.monitor == "loss" else new > old)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; with monitor=top1 the same keys as in older versions."""
        return {key: value for key, value in asdict(self).items() if key in ("top1", "epoch") or self.monitor != "top1"}

    def outlasted(self, evaluated: int, patience: int | None) -> bool:
        """Whether `patience` epochs have passed without a better one; never if it is None."""
        return patience is not None and self.epoch > 0 and evaluated - self.epoch >= patience


@dataclass
class State:
    """A run between two optimizer steps.

    Attributes:
        model: the raw model, never wrapped.
        step: optimizer steps done.
        saved: the step of the newest checkpoint on the disk.
        evaluated: epochs evaluated; one less than trained while an evaluation is due.
        skipped_in_row: steps left out directly before this one, for non-finite values.
        rows: lines of metrics that are not on the disk yet, because it was full.
        classes: names of the classes in the order of their labels; None where the data set has none.
        history: all lines of metrics, from which a damaged file is restored.
        phase: between two steps; in the forward and backward passes of a step, which change only buffers; or in its update.
    """

    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    saved: int = 0
    evaluated: int = 0
    skipped_in_row: int = 0
    best: Best = field(default_factory=Best)
    meter: Meter = field(default_factory=Meter)
    rows: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    classes: list[str] | None = None
    phase: Literal["between", "gradients", "update"] = "between"
    _buffers: list[Tensor] = field(default_factory=list)  # before the step

    def state_dict(self, cfg: Config) -> dict[str, Any]:
        """The mapping that is saved: tensors and plain data only."""
        return {
            "format": checkpoint.FORMAT,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "evaluated": self.evaluated,
            "skipped_in_row": self.skipped_in_row,
            "best": self.best.state_dict(),
            "meter": asdict(self.meter),
            "rows": self.rows,
            "history": self.history,
            "classes": self.classes,
            "config": to_dict(cfg) | {"resume": "auto"},  # the file that a run began with may be removed
            "versions": checkpoint.versions(),
        }

    def load_state_dict(self, content: dict[str, Any], path: str) -> None:
        """Loads everything from a checkpoint.

        Raises:
            BadCheckpoint: it is of another architecture.
        """
        load.load_weights(self.model, content["model"], path)
        if self.ema is not None:
            load.load_weights(self.ema.module, load.pick_weights(content, None, path), path)
        expect_same_optimizer(self.optimizer, content["optimizer"], path)
        if content["step"] > content["skipped_in_row"] and keeps_state(self.optimizer) and not content["optimizer"]["state"]:
            raise checkpoint.BadCheckpoint(
                f"checkpoint {path} is damaged: its optimizer kept nothing of {content['step']} steps"
            )
        settings = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(content["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group |= own  # the config decides: with force=true it may differ; the rate is set at every step
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.step, self.evaluated, self.skipped_in_row = (content[key] for key in ("step", "evaluated", "skipped_in_row"))
        self.saved = self.step
        self.best, self.meter, self.rows = Best(**content["best"]), Meter(**content["meter"]), list(content["rows"])

    def evaluated_models(self) -> dict[str, nn.Module]:
        """The models to evaluate, by the prefix of their metrics."""
        return {"val_": self.model} | ({} if self.ema is None else {"ema_val_": self.ema.module})

    def broadcast_buffers(self) -> None:
        """Gives every rank the buffers of the first rank: each rank has its own running statistics."""
        if dist.is_initialized():
            for module in self.evaluated_models().values():
                for buffer in module.buffers():
                    dist.broadcast(buffer, 0)

    @torch.no_grad()
    def begin_step(self) -> None:
        """Copies the buffers: forward passes change running statistics before it is known whether the step is kept."""
        buffers = list(self.model.buffers())
        if not self._buffers:
            self._buffers = [buffer.clone() for buffer in buffers]
        for kept, buffer in zip(self._buffers, buffers, strict=True):
            kept.copy_(buffer)
        self.phase = "gradients"

    @torch.no_grad()
    def undo_step(self) -> None:
        """Goes back to the boundary between two steps; not possible in the update."""
        assert self.phase != "update"
        if self.phase == "gradients":
            for kept, buffer in zip(self._buffers, self.model.buffers(), strict=True):
                buffer.copy_(kept)
        self.phase = "between"


def keeps_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer remembers anything from step to step: SGD without momentum does not."""
    return not isinstance(optimizer, torch.optim.SGD) or any(group["momentum"] for group in optimizer.param_groups)


def expect_same_optimizer(own: torch.optim.Optimizer, saved: Mapping[str, Any], path: str) -> None:
    """Refuses the state of another optimizer or of other parameters, which torch would take and fail with at the first step.

    Raises:
        BadCheckpoint: another optimizer, other groups of parameters, or a tensor of another shape, type or without finite values.
    """
    groups = saved.get("param_groups")
    if not (isinstance(groups, list) and all(isinstance(group, Mapping) for group in groups)):
        raise checkpoint.BadCheckpoint(f"checkpoint {path}: its optimizer has no param_groups")
    shapes = [[len(group["params"]) for group in own.param_groups], [len(group.get("params", ())) for group in groups]]
    fits = shapes[0] == shapes[1] and all(
        set(group) == set(old) for group, old in zip(own.param_groups, groups, strict=True)
    )
    kept = KEPT[type(own)]
    fits = fits and all(set(entries) <= kept for entries in saved["state"].values())
    if not fits:
        raise checkpoint.BadCheckpoint(
            f"checkpoint {path} holds the state of another optimizer (schedule.optimizer, schedule.no_decay), which cannot be "
            "continued, not even with force=true: use the old values, or another run_dir="
        )
    parameters = [p for group in own.param_groups for p in group["params"]]
    numbers = [number for group in groups for number in group["params"]]
    by_number = dict(zip(numbers, parameters, strict=True))
    for number, entries in saved["state"].items():
        wrong = _wrong_entry(by_number.get(number), entries, kept)
        if wrong is not None:
            raise checkpoint.BadCheckpoint(
                f"checkpoint {path} is damaged: its optimizer's state of parameter {number} {wrong}; name an older one by resume=, or "
                "start from its weights by init= and another run_dir="
            )


KEPT: dict[type, set[str]] = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


def _wrong_entry(parameter: Tensor | None, entries: Mapping[str, Any], kept: set[str]) -> str | None:
    """What is wrong with what an optimizer keeps of a parameter, or None."""
    if parameter is None:
        return "is of no parameter"
    if entries and set(entries) != kept:
        return f"lacks {', '.join(sorted(kept - set(entries)))}"
    for name, value in entries.items():
        if name == "step":
            number = float(value) if not isinstance(value, Tensor) or value.numel() == 1 else math.nan
            if not (math.isfinite(number) and number >= 0):
                return "has a step that is no number, 0 or more"
        elif value is not None:
            if not isinstance(value, Tensor) or value.layout != torch.strided or value.shape != parameter.shape:
                return f"has {name} of another shape than {tuple(parameter.shape)}"
            if value.dtype != parameter.dtype:
                return f"has {name} of type {value.dtype}, not {parameter.dtype}"
            if not bool(torch.isfinite(value).all()):
                return f"has {name} that is not finite (NaN or infinity)"
    return None
