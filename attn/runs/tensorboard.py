"""TensorBoard as a mirror of `metrics.jsonl` and `steps.jsonl`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attn.config.schema import Config
from attn.console import warn
from attn.runs import metrics, steps

FOLDER = "tensorboard"


class TensorBoard:
    """Writes event files into the run's folder `tensorboard`: epochs by their step, and every `log_every`-th step.

    A continued run may have dropped and computed again what older event files hold. Each process therefore writes all rows from
    the first one, and the mark that makes TensorBoard forget what came before. The first failure is reported in one line, then the
    mirror is off: the record is whole without it.
    """

    def __init__(self, cfg: Config, run_dir: Path) -> None:
        self._run_dir, self._every = run_dir, cfg.log_every
        self._epoch = 0  # the last one written
        self._position = 0  # in steps.jsonl, in bytes
        self._writer: Any = None
        self._off = False

    def update(self) -> None:
        """Writes the rows that were not written yet."""
        self._unless_off(self._write)

    def finish(self) -> None:
        """Writes the rest and closes the file."""
        self.update()
        self._unless_off(lambda: self._writer.close())

    def _unless_off(self, job: Callable[[], None]) -> None:
        if self._off:
            return
        try:
            job()
        except Exception as error:  # a mirror may fail in any way, and must not end the run
            fix = "; pip install 'attn[tensorboard]'" if isinstance(error, ImportError) else ""
            warn(f"TensorBoard is off: {' '.join(str(error).split())[:300] or type(error).__name__}{fix}")
            self._off = True

    def _write(self) -> None:
        if self._writer is None:
            self._writer = _writer(self._run_dir / FOLDER)
        rows, self._position = steps.read_steps_from(self._run_dir, self._position)
        for row in rows:
            if row["step"] % self._every == 0:
                self._add("step", row, row["step"])
        for row in metrics.read_metrics(self._run_dir):
            if row["epoch"] > self._epoch:
                self._add("epoch", row, row["step"])
                self._epoch = row["epoch"]
        self._writer.flush()

    def _add(self, group: str, row: dict[str, Any], step: int) -> None:
        for name, value in row.items():
            if name not in ("step", "epoch", "skipped") and value is not None:
                self._writer.add_scalar(f"{group}/{name}", value, step)


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # seconds, and an optional package

    return SummaryWriter(str(folder), purge_step=0)
