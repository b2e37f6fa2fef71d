"""The services that a run is mirrored to while it trains, by `logger`."""

from __future__ import annotations

from pathlib import Path

from attn.config.schema import Config
from attn.runs.tensorboard import TensorBoard
from attn.runs.wandb import Wandb


class Mirrors:
    """Weights & Biases and TensorBoard, those that are on; none of them can end the run."""

    def __init__(self, cfg: Config, run_dir: Path) -> None:
        self._wandb = Wandb(cfg, run_dir) if cfg.logger.wandb else None
        self._tensorboard = TensorBoard(cfg, run_dir) if cfg.logger.tensorboard else None

    def after_steps(self) -> None:
        """Sends the new lines of `steps.jsonl` to what shows single steps."""
        if self._tensorboard is not None:
            self._tensorboard.update()

    def after_epoch(self) -> None:
        """Sends the new lines of `metrics.jsonl`."""
        for mirror in (self._wandb, self._tensorboard):
            if mirror is not None:
                mirror.update()

    def finish(self) -> None:
        """Sends the rest, and waits for it."""
        for mirror in (self._tensorboard, self._wandb):
            if mirror is not None:
                mirror.finish()
