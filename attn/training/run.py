"""What a run is while it trains: one object that is passed to every step, save and ending."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from timm.data import Mixup
from torch import Tensor, nn

from attn.config.schema import Config
from attn.data.loader import Seeded, TrainData
from attn.distributed import Ranks
from attn.runs.mirrors import Mirrors
from attn.runs.steps import StepLog
from attn.training.state import State
from attn.training.stop_request import StopRequest


@dataclass
class Run:
    """A run on one rank.

    Attributes:
        cfg: its config.
        directory: its folder; only the first rank writes there.
        ranks: this rank among all.
        request: whether this rank was asked to stop.
        data, val: training and validation images.
        state: all that training changes and a checkpoint holds.
        net: the model as it is called in training: wrapped in DDP on several ranks.
        weights: of the training images in the loss, float [N] by index, on the host; None: all are 1.
        mixup: timm's mixup and cutmix, if they are on.
        total_steps: optimizer steps of the whole training.
        log: the lines of steps.jsonl.
        mirror: Weights & Biases and TensorBoard, on the first rank, those that are on.
    """

    cfg: Config
    directory: Path
    ranks: Ranks
    request: StopRequest
    data: TrainData
    val: Seeded
    state: State
    net: nn.Module
    weights: Tensor | None
    mixup: Mixup | None
    total_steps: int
    log: StepLog
    mirror: Mirrors | None = None

    @property
    def images_per_pass(self) -> int:
        """Images of one forward pass on this rank, in training and validation."""
        return max(1, self.cfg.schedule.batch_size // (self.ranks.world * self.cfg.schedule.accumulate))
