"""Sweeps (`-m`): a header for each cell, and all cells are run, even if some fail."""

from __future__ import annotations

import math
import os
import sys
import traceback
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from attn.console import say
from attn.errors import Preempted, UserError


class Cells(Callback):
    """Hydra's callback around the cells of a sweep; its launcher would end the sweep with the first cell that fails.

    The process ends with 0 if every cell ended well, else with the highest exit code of a cell. A signal ends the sweep.
    """

    def __init__(self) -> None:
        self.total = 0  # no sweep
        self.swept: set[str] = set()
        self.failed: list[str] = []
        self.code = 0
        self.shows = os.environ.get("RANK", "0") == "0"

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        overrides = OverridesParser.create().parse_overrides(_task_overrides(config))
        sweeps = [override for override in overrides if override.is_sweep_override()]
        self.swept = {override.key_or_group for override in sweeps}
        self.total = math.prod(len(list(override.sweep_iterator())) for override in sweeps)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if self.total and self.shows:
            say(self._header(config))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if not self.total or job_return.status != JobStatus.FAILED:
            return
        error = job_return._return_value  # the property raises it
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        reason = " ".join(str(error).split()) or type(error).__name__
        self.failed.append(f"{self._header(config)}: {reason}")
        self.code = max(self.code, error.exit_code if isinstance(error, UserError) else 1)
        if self.shows:
            print(f"error: {reason}", file=sys.stderr, flush=True)
        if isinstance(error, Preempted):
            sys.exit(error.exit_code)
        job_return.status = JobStatus.COMPLETED  # so that the launcher goes on
        job_return.return_value = None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if not self.failed:
            return
        if self.shows:
            lines = [f"{len(self.failed)} of {self.total} cells failed, the others are finished:", *self.failed]
            print("error: " + "\n  ".join(lines), file=sys.stderr, flush=True)
        sys.exit(self.code)

    def _header(self, config: DictConfig) -> str:
        own = [o for o in _task_overrides(config) if o.lstrip("+").partition("=")[0] in self.swept]
        return f"{config.hydra.job.num + 1} of {self.total}: {' '.join(own)}"


def _task_overrides(config: DictConfig) -> list[str]:
    overrides = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # ${...} in one is for the cell
    assert isinstance(overrides, list)
    return [str(override) for override in overrides]
