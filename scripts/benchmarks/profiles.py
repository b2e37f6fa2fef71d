"""Where a contender's time goes: torch's operators, or functions of Python, each by its own time."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attn.tabulate import text_lines

RUNS = 3
SHOWN = 16  # rows of the table


def operators(run: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds per run of each operator, without those that it calls; on the host, so a GPU's own time is not in it."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(RUNS):
            run()
    return {event.key: event.self_cpu_time_total / 1e3 / RUNS for event in profile.key_averages()}


def functions(run: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds per run of each function of Python, without those that it calls; what ctypes calls counts where it is called."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(RUNS):
        run()
    profile.disable()
    found: dict[str, float] = {}
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        key = name if file == "~" else f"{Path(file).parent.name}/{Path(file).name}: {name}"
        found[key] = found.get(key, 0.0) + own * 1e3 / RUNS
    return found


KINDS = {"operators": operators, "functions": functions}


def rounded(times: Mapping[str, float]) -> dict[str, float]:
    """Without what takes less than 0.05 ms."""
    return {name: round(ms, 3) for name, ms in times.items() if ms >= 0.05}


def table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines of a table: a column per contender; the rows that take longest in one of them, the others together, the sum."""
    keys = {key: max(times.get(key, 0.0) for times in found.values()) for times in found.values() for key in times}
    shown = sorted(keys, key=lambda key: -keys[key])[:SHOWN]
    rows = [("ms per run, own time", *found)]
    rows += [(key[:60], *(f"{times.get(key, 0.0):.2f}" for times in found.values())) for key in shown]
    rest = (sum(ms for key, ms in times.items() if key not in shown) for times in found.values())
    rows += [
        ("the others", *(f"{ms:.2f}" for ms in rest)),
        ("sum", *(f"{sum(times.values()):.2f}" for times in found.values())),
    ]
    return text_lines(rows, right=tuple(range(1, len(found) + 1)))
