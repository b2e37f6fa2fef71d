"""What is computed from the time between two steps: speed, the time that is left, and whether a checkpoint is due."""

from __future__ import annotations

import math
import time

from tqdm import tqdm

from attn.config.schema import Config
from attn.training.run import Run


class Clock:
    """Measures the time of the steps after a given step."""

    def __init__(self, step: int) -> None:
        self._step, self._started = step, time.monotonic()

    def seconds_per_step(self, step: int) -> float:
        """Mean seconds per step up to this one; infinite if there was no step."""
        done = step - self._step
        return (time.monotonic() - self._started) / done if done else math.inf


def progress(run: Run, seconds_per_step: float) -> str:
    """What is shown beside the number of steps: mean loss of the epoch so far, learning rate, time left for the run."""
    meter, rate = run.state.meter, run.state.optimizer.param_groups[0]["lr"]
    left = time_left((run.total_steps - run.state.step) * seconds_per_step)
    return f"loss {meter.loss / max(meter.images, 1):.4f}  lr {rate:.2e}  {left} left"


def time_left(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any."""
    return str(tqdm.format_interval(round(seconds)))


def due(cfg: Config, step: int, saved_at: float) -> bool:
    """Whether a checkpoint within the epoch is due."""
    by_step = cfg.save_every_steps is not None and step % cfg.save_every_steps == 0
    by_time = cfg.save_every_minutes is not None and time.monotonic() - saved_at >= 60 * cfg.save_every_minutes
    return by_step or by_time
