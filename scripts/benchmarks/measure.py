"""Contenders in turn: pairs, ratios, quartiles, and the result as a table, JSON and a picture."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attn.config.scripts import positive
from attn.runs.files import write_atomically
from benchmarks import profiles


@dataclass
class Contender:
    """Something to be timed, and its ratios to the first contender.

    Attributes:
        name: its row.
        run: what is timed. On a GPU it returns only when the device has finished.
        memory: bytes by kind, exact: `kept` for the backward, `peak`. Reported beside the times, as ratios too.
        wall, cpu: ratios of seconds, one per pair.
        seconds: wall seconds of each of its measurements.
        dropped: pairs in which other processes used the machine.
        against: what it is compared with, itself one of those that take turns; None for the first of them.
    """

    name: str
    run: Callable[[], Any]
    memory: dict[str, int] = field(default_factory=dict)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    dropped: int = 0
    against: Contender | None = None


def share(text: str) -> float:
    """A part of the processors' time, as a `type` of argparse; above 1 it never is, so that nothing is dropped."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number, 0 or more")
    return value


def add_options(parser: argparse.ArgumentParser, pairs: int = 9) -> None:
    """The options that every measurement has."""
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1, help="default: all processors")
    parser.add_argument("--pairs", type=positive, default=pairs, help=f"pairs per contender (default {pairs})")
    parser.add_argument("--repeats", type=positive, default=1, help="runs per measurement (default 1)")
    parser.add_argument(
        "--others",
        type=share,
        default=0.08,
        help="drop pairs in which other processes took more than this share of the machine (default 0.08)",
    )
    parser.add_argument(
        "--profile",
        choices=profiles.KINDS,
        help="also print where each contender's time goes: torch's operators, or functions of Python",
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--picture", type=Path, help="also draw it to this file")


def compare(found: list[Contender], options: argparse.Namespace, title: str, warmup: int = 2) -> int:
    """Measures contenders and reports them: prints a table, writes `options.json` and `options.picture`.

    Args:
        found: the first is the one that others are compared with, unless they say otherwise (`against`).
        options: of `add_options`, and those of the measurement, which are stored with the result.
        title: of the picture.
        warmup: runs of each contender before the first pair.

    Returns:
        The exit status: 3 if no pair of a contender could be used.
    """
    take_pairs(found, options, warmup)
    result = report(found, options)
    print(as_text(result))
    if options.profile:
        found_times = {c.name: profiles.KINDS[options.profile](c.run) for c in found}
        print("\n", *(f"{line}\n" for line in profiles.table(found_times)), sep="", end="")
        result["profile"] = {name: profiles.rounded(times) for name, times in found_times.items()}
    if options.json:
        write_atomically(options.json, json.dumps(result, indent=2) + "\n")
    if options.picture:
        draw(result, title, options.picture)
    if any(not c.wall for c in rivals(found)):
        print("error: other processes used the machine all the time: every pair was dropped, see --others", file=sys.stderr)
        return 3
    return 0


def take_pairs(found: list[Contender], options: argparse.Namespace, warmup: int) -> None:
    """Fills in the ratios: pairs in turn, until every contender has `options.pairs` pairs, or has tried three times as many."""
    others = rivals(found)
    for contender in found:
        timed(contender.run, warmup)
    for turn in range(3 * options.pairs):
        waiting = [c for c in others if len(c.wall) < options.pairs]
        if not waiting:
            return
        for contender in waiting:
            first = contender.against or found[0]
            order = [first, contender] if turn % 2 else [contender, first]
            gc.collect()
            busy, start = machine_busy(), time.perf_counter()
            times = {c.name: timed(c.run, options.repeats) for c in order}
            elapsed = time.perf_counter() - start
            own = sum(cpu for _, cpu in times.values())
            if machine_busy() - busy - own > options.others * elapsed * (os.cpu_count() or 1):
                contender.dropped += 1
                continue
            contender.wall.append(times[contender.name][0] / times[first.name][0])
            contender.cpu.append(times[contender.name][1] / times[first.name][1])
            for c in order:
                c.seconds.append(times[c.name][0] / options.repeats)


def rivals(found: list[Contender]) -> list[Contender]:
    """Those that are compared with another."""
    yardsticks = {id(c.against) for c in found} | {id(found[0])}
    return [c for c in found if id(c) not in yardsticks]


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Wall and CPU seconds of some runs; those of child processes count once they have ended."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(repeats):
        run()
    return time.perf_counter() - wall, cpu_seconds() - cpu


def cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def machine_busy() -> float:
    """Seconds that all processors have worked since the start; 0 if the system does not report it."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = (int(f) for f in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def quartiles(values: list[float]) -> list[float] | None:
    """First quartile, median, third quartile."""
    if not values:
        return None
    return [values[0]] * 3 if len(values) == 1 else statistics.quantiles(values, n=4, method="inclusive")


def report(found: list[Contender], options: argparse.Namespace) -> dict[str, Any]:
    """The result as plain values: the command, versions, hardware, settings, and a row per contender."""
    apart = ("json", "picture", "what", "run")
    return {
        "command": " ".join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "timm")}},
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": options.threads, "gpu": gpu_name()},
        "settings": {k: v for k, v in vars(options).items() if k not in apart},
        "peak_memory_of_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "contenders": [
            {
                "name": c.name,
                "against": (c.against or found[0]).name,
                "wall": quartiles(c.wall),
                "cpu": quartiles(c.cpu),
                "seconds": quartiles(c.seconds),
                "pairs": len(c.wall),
                "dropped": c.dropped,
                **{f"{kind}_bytes": size for kind, size in c.memory.items()},
                **{
                    kind: size / base[kind]
                    for kind, size in c.memory.items()
                    if (base := (c.against or found[0]).memory).get(kind)
                },
            }
            for c in found
        ],
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def gpu_name() -> str | None:
    """The GPU's name, if this process uses one."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_initialized() else None


def as_text(result: dict[str, Any]) -> str:
    def cell(values: list[float] | None) -> str:
        return "-".rjust(22) if values is None else f"{values[1]:.3f} [{values[0]:.3f}, {values[2]:.3f}]".rjust(22)

    rows = result["contenders"]
    first, kinds, width = yardstick(rows), memory_kinds(rows), max(len(c["name"]) for c in rows)
    heads = [f"{kind} / {first}" for kind in kinds]
    lines = [
        "  ".join([" " * width, f"wall / {first}".rjust(22), f"CPU time / {first}".rjust(22), *heads, "pairs (dropped)"])
    ]
    for c in rows:
        memory = [f"{c[kind]:.3f}".rjust(len(head)) for kind, head in zip(kinds, heads, strict=True)]
        lines.append(
            "  ".join([c["name"].ljust(width), cell(c["wall"]), cell(c["cpu"]), *memory, f"{c['pairs']} ({c['dropped']})"])
        )
    return "\n".join(lines)


def yardstick(rows: list[dict[str, Any]]) -> str:
    """The name of what all are compared with; where there are several, what their names have in common: the last word."""
    names = {row["against"] for row in rows}
    return rows[0]["against"] if len(names) == 1 else rows[0]["against"].split()[-1]


def memory_kinds(rows: list[dict[str, Any]]) -> list[str]:
    """The kinds of memory that every row has."""
    return [kind for kind in ("kept", "peak") if all(kind in row for row in rows)]


def draw(result: dict[str, Any], title: str, path: Path) -> None:
    """Median ratios as points, quartiles as bars: wall time, CPU time and memory."""
    from matplotlib.figure import Figure

    rows = [c for c in result["contenders"] if c["wall"] is not None]
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for shift, (key, label) in zip((-0.15, 0.15), (("wall", "wall time"), ("cpu", "CPU time")), strict=True):
        middle = [c[key][1] for c in rows]
        bars = [[c[key][1] - c[key][0] for c in rows], [c[key][2] - c[key][1] for c in rows]]
        axes.errorbar(middle, [i + shift for i in range(len(rows))], xerr=bars, fmt="o", capsize=3, label=label)
    marks = {"kept": ("k|", "memory kept for the backward"), "peak": ("kx", "peak memory")}
    for kind in memory_kinds(rows):
        axes.plot([c[kind] for c in rows], range(len(rows)), marks[kind][0], markersize=10, label=marks[kind][1])
    axes.axvline(1.0, color="grey", linewidth=1)
    axes.set_yticks(range(len(rows)), [c["name"] for c in rows])
    axes.invert_yaxis()
    axes.set(xlabel=f"ratio to {yardstick(result['contenders'])}", title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
