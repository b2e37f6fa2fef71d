"""Time and memory of one training step beside the plain backbone's: `python scripts/benchmark.py step --threads 2`.

Contenders take turns in one process: the plain backbone, timm's own squeeze-and-excitation where timm has the pair, and every
attention in its reference and its fused form. Each measurement is a pair, a contender's steps and the plain backbone's next to
each other in changing order; a pair in which other processes used the machine is dropped. Reported are medians and quartiles of
the pairs' ratios, of wall time and of the process's own CPU time, and the memory that the forward keeps for the backward.
"""

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
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attn.config import scripts
from attn.config.scripts import positive
from attn.errors import UserError

TIMM_SE = {"resnet18": "seresnet18", "resnet34": "seresnet34", "resnet50": "seresnet50", "resnet101": "seresnet101"}


@dataclass
class Contender:
    """One training step to be timed, and its ratios to the plain backbone's."""

    name: str
    step: Callable[[], Any]
    saved: int  # bytes kept for the backward
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    dropped: int = 0


def contenders(options: argparse.Namespace) -> list[Contender]:
    """The plain backbone first.

    Raises:
        ValueError: an unknown name, or the fused form is not built.
    """
    import timm
    import torch

    import attn

    models = {"plain": lambda: attn.create_model(options.backbone, None, options.classes)}
    if options.backbone in TIMM_SE:
        models["timm se"] = lambda: timm.create_model(TIMM_SE[options.backbone], num_classes=options.classes)
    for name in options.attentions:
        for form in ("reference", "fused"):
            models[f"{name} {form}"] = lambda name=name, form=form: attn.create_model(
                options.backbone, name, options.classes, kernels=form
            )
    layout = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    images = torch.randn(options.batch, 3, options.size, options.size).contiguous(memory_format=layout)
    targets = torch.randint(options.classes, (options.batch,))
    found = []
    for name, build in models.items():
        torch.manual_seed(0)
        model = build().to(memory_format=layout).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        step = training_step(model, optimizer, images, targets, options.dtype == "bf16")
        found.append(Contender(name, step, kept_bytes(model, images, options.dtype == "bf16")))
    return found


def training_step(model: Any, optimizer: Any, images: Any, targets: Any, bf16: bool) -> Callable[[], Any]:
    import torch
    from torch.nn.functional import cross_entropy

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()

    return step


@dataclass(eq=False)
class Saved:
    """Holds a tensor that the graph saves; it lives as long as the graph keeps it."""

    tensor: Any


def kept_bytes(model: Any, images: Any, bf16: bool) -> int:
    """Bytes of all that one forward keeps for its backward, parameters and buffers aside."""
    import torch

    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: Any) -> Saved:
        alive.add(holder := Saved(tensor))
        return holder

    context = torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor)
    with context, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(images)
    storages = {h.tensor.untyped_storage().data_ptr(): h.tensor.untyped_storage().nbytes() for h in alive}
    del output  # only now: it holds the graph
    return sum(size for address, size in storages.items() if address not in own)


def machine_busy() -> float:
    """Seconds that all processors have worked since the start; 0 if the system does not report it."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = (int(f) for f in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def timed(step: Callable[[], Any], steps: int) -> tuple[float, float]:
    """Wall and CPU seconds of some steps."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(found: list[Contender], options: argparse.Namespace) -> None:
    """Fills in the ratios: pairs in turn, until every contender has `options.pairs` pairs, or has tried three times as many."""
    plain, *others = found
    for contender in found:
        timed(contender.step, 2)
    for turn in range(3 * options.pairs):
        waiting = [c for c in others if len(c.wall) < options.pairs]
        if not waiting:
            return
        for contender in waiting:
            order = [plain, contender] if turn % 2 else [contender, plain]
            gc.collect()
            busy, start = machine_busy(), time.perf_counter()
            times = {c.name: timed(c.step, options.steps) for c in order}
            elapsed = time.perf_counter() - start
            own = sum(cpu for _, cpu in times.values())
            if machine_busy() - busy - own > options.others * elapsed * (os.cpu_count() or 1):
                contender.dropped += 1
                continue
            contender.wall.append(times[contender.name][0] / times["plain"][0])
            contender.cpu.append(times[contender.name][1] / times["plain"][1])


def quartiles(values: list[float]) -> list[float] | None:
    """First quartile, median, third quartile."""
    if not values:
        return None
    return [values[0]] * 3 if len(values) == 1 else statistics.quantiles(values, n=4, method="inclusive")


def report(found: list[Contender], options: argparse.Namespace) -> dict[str, Any]:
    import timm
    import torch

    plain = found[0]
    return {
        "command": " ".join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "settings": {k: v for k, v in vars(options).items() if k not in ("json", "picture", "what")},
        "peak_memory_of_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "contenders": [
            {
                "name": c.name,
                "wall": quartiles(c.wall),
                "cpu": quartiles(c.cpu),
                "pairs": len(c.wall),
                "dropped": c.dropped,
                "kept_bytes": c.saved,
                "kept": c.saved / plain.saved,
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


def as_text(result: dict[str, Any]) -> str:
    def cell(values: list[float] | None) -> str:
        return "-".rjust(22) if values is None else f"{values[1]:.3f} [{values[0]:.3f}, {values[2]:.3f}]".rjust(22)

    width = max(len(c["name"]) for c in result["contenders"])
    lines = [f"{'':{width}}  {'wall / plain':>22}  {'CPU time / plain':>22}  kept / plain  pairs (dropped)"]
    lines += [
        f"{c['name']:{width}}  {cell(c['wall'])}  {cell(c['cpu'])}  {c['kept']:12.3f}  {c['pairs']} ({c['dropped']})"
        for c in result["contenders"]
    ]
    return "\n".join(lines)


def picture(result: dict[str, Any], path: Path) -> None:
    """Median ratios as points, quartiles as bars: wall time, CPU time and memory kept."""
    from matplotlib.figure import Figure

    rows = [c for c in result["contenders"] if c["wall"] is not None]
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for shift, (key, label) in zip((-0.15, 0.15), (("wall", "wall time"), ("cpu", "CPU time")), strict=True):
        middle = [c[key][1] for c in rows]
        bars = [[c[key][1] - c[key][0] for c in rows], [c[key][2] - c[key][1] for c in rows]]
        axes.errorbar(middle, [i + shift for i in range(len(rows))], xerr=bars, fmt="o", capsize=3, label=label)
    axes.plot([c["kept"] for c in rows], range(len(rows)), "k|", markersize=12, label="memory kept for the backward")
    axes.axvline(1.0, color="grey", linewidth=1)
    axes.set_yticks(range(len(rows)), [c["name"] for c in rows])
    axes.invert_yaxis()
    axes.set(xlabel="ratio to the plain backbone", title=f"Training step, {result['settings']['backbone']}")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = scripts.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["step"], help="step: forward, backward and SGD")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--attentions", type=lambda text: text.split(","), default=["se", "eca", "ba", "dca_se"])
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--size", type=positive, default=128, help="side of the images in pixels (default 128)")
    parser.add_argument("--classes", type=positive, default=1000)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")
    parser.add_argument("--layout", choices=["channels_last", "contiguous"], default="channels_last")
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1, help="default: all processors")
    parser.add_argument("--pairs", type=positive, default=9, help="pairs per contender (default 9)")
    parser.add_argument("--steps", type=positive, default=1, help="steps per measurement (default 1)")
    parser.add_argument(
        "--others",
        type=float,
        default=0.08,
        help="drop pairs in which other processes took more than this share of the machine (default 0.08)",
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--picture", type=Path, help="also draw it to this file")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    try:
        found = contenders(options)
    except ValueError as error:
        raise UserError(str(error)) from error
    measure(found, options)
    result = report(found, options)
    print(as_text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.picture:
        picture(result, options.picture)
    if any(not c.wall for c in found[1:]):
        print("error: other processes used the machine all the time: every pair was dropped, see --others", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    scripts.run(main)
