"""Runs of the training loop as processes of their own (`forked`), with a fault in them, in a second each."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from commands import SMALL, composed, patience
from forked import become_a_users_process, context, free_port, launcher_environment

from attn.config import command_line
from attn.config.schema import Config
from attn.runs import directory

ROOT = Path(__file__).resolve().parents[2]
Fault = Callable[[], None]

# Eight images a step, three steps an epoch; a net of a few thousand weights with BatchNorm.
TINY = [*SMALL, "data=fake", "data.num_classes=8", "data.samples=24", "data.workers=0", "attention=eca"]
TINY += ["schedule.batch_size=8", "schedule.epochs=2", "schedule.lr=0.05", "log_every=1", "device=cpu"]
TINY += ["+backbone.channels=[8,12,16,24]", "+backbone.stem_width=8"]
# Everything that draws random numbers or keeps something between two steps.
RICH = [*TINY, "attention=ba", "attention.block.reduction=4", "+backbone.drop_path_rate=0.2", "+backbone.drop_rate=0.2"]
RICH += ["schedule.mixup=0.4", "schedule.cutmix=1.0", "schedule.ema_decay=0.9", "schedule.amp=bf16", "schedule.accumulate=2"]
RICH += ["schedule.clip_grad=1.0", "schedule.label_smoothing=0.1", "schedule.optimizer=adamw", "schedule.lr=0.01"]
RICH += ["data.crop=random_resized", "data.random_erasing=0.3", "data.color_jitter=0.2", "data.workers=2"]
PER_EPOCH, STEPS = 3, 6


def compose_config(overrides: Sequence[str], run_dir: Path) -> Config:
    chosen = [o for o in overrides if o.startswith("attention=")][-1].partition("=")[2]
    return replace(composed(*overrides, "run_dir=run", f"attention_name={chosen}"), run_dir=str(run_dir))


def _rank(cfg: Config, rank: int, world: int, port: int, faults: Sequence[Fault], output: Path, env: dict[str, str]) -> None:
    become_a_users_process(output, output)
    os.environ.update(env)
    for name in [name for name, value in env.items() if not value]:
        del os.environ[name]
    os.environ.update(launcher_environment(rank, world, port))
    from attn.training import loop

    for fault in faults:
        fault()
    with command_line.one_line_errors():
        loop.train(cfg)
    sys.stdout.flush()


class Run:
    """A run under way. `faults` are called in a rank's process before it starts, for all ranks or by rank."""

    def __init__(
        self,
        run_dir: Path,
        *overrides: str,
        base: Sequence[str] = TINY,
        ranks: int = 1,
        faults: Sequence[Fault] | dict[int, Sequence[Fault]] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        cfg = compose_config([*base, *overrides], run_dir)
        port, self.run_dir = free_port(), run_dir
        # Beside the run's folder, which a test may need empty; removed with the test's own folder.
        beside = next(folder for folder in run_dir.parents if folder.is_dir())
        outputs = Path(tempfile.mkdtemp(prefix=".output-", dir=beside))
        self.outputs = [outputs / f"rank{rank}.txt" for rank in range(ranks)]
        self.processes: list[BaseProcess] = []
        for rank in range(ranks):
            own = faults.get(rank, ()) if isinstance(faults, dict) else faults
            arguments = (cfg, rank, ranks, port, tuple(own), self.outputs[rank], env or {})
            process = context().Process(target=_rank, args=arguments)
            process.start()
            self.processes.append(process)

    def wait(self, timeout: float = 120) -> list[int]:
        """The exit codes, negative for a signal; no process of the run is left."""
        end = time.monotonic() + patience(timeout)
        try:
            for process in self.processes:
                process.join(max(0, end - time.monotonic()))
                assert process.exitcode is not None, f"still running after {patience(timeout):g} s:\n{self.text}"
        finally:
            self.kill()
        return [int(process.exitcode or 0) for process in self.processes]

    def kill(self) -> None:
        """SIGKILL to the main processes, not to their loader processes: those have to notice."""
        for process in self.processes:
            if process.is_alive():
                os.kill(int(process.pid or 0), signal.SIGKILL)

    def signal(self, number: int, rank: int = 0) -> None:
        """To a rank and its loader processes, as torchrun and SLURM do."""
        os.killpg(int(self.processes[rank].pid or 0), number)

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Waits until the output contains a string."""
        end = time.monotonic() + patience(timeout)
        while text not in self.text:
            assert time.monotonic() < end, f"no {text!r} after {patience(timeout):g} s:\n{self.text}"
            time.sleep(0.01)

    @property
    def text(self) -> str:
        return "".join(path.read_text() for path in self.outputs if path.exists())

    def leftovers(self, timeout: float = 20) -> list[int]:
        """Processes of the ranks' sessions that are still alive after a while."""
        end = time.monotonic() + patience(timeout)
        sessions = {process.pid for process in self.processes}
        while (left := [pid for pid in _living() if _session(pid) in sessions]) and time.monotonic() < end:
            time.sleep(0.1)
        return left


def _living() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _session(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] == "Z" else int(fields[3])


def finished(run_dir: Path, *overrides: str, **options: Any) -> Run:
    """A run that must end well."""
    done = Run(run_dir, *overrides, **options)
    codes = done.wait()
    assert set(codes) == {0}, done.text
    assert (run_dir / directory.DONE).exists()
    return done
