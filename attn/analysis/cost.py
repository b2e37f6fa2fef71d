"""What networks cost: peak memory and images/s (BA-Net, Table 3), and accuracy against parameters and FLOPs (BA-Net v2, Figure 1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from attn import tables
from attn.analysis import images, runs, style
from attn.analysis.files import Table
from attn.analysis.memory import peak
from attn.analysis.subjects import Subject
from attn.analysis.trace import evaluating
from attn.config.analysis import Cost
from attn.distributed import Ranks
from attn.errors import UserError
from attn.evaluation.evaluate import autocast
from attn.models import flops
from attn.runs import load

WARM_UP = 2


@dataclass(frozen=True)
class Measured:
    """Memory and speed of one network, training and inference apart.

    Attributes:
        name: the network.
        params: trainable parameters.
        macs: multiply-accumulates per image at inference.
        memory: peak in bytes, summed over the devices, by `training` and `inference`.
        speed: images per second of all devices together, by the same.
        batch: images per step and device.
        devices: their number.
        device: cpu, or the GPU's name.
        precision: fp32, bf16 or fp16.
        image_size: in pixels.
    """

    name: str
    params: int
    macs: int
    memory: dict[str, int]
    speed: dict[str, float]
    batch: int
    devices: int
    device: str
    precision: str
    image_size: int


@dataclass(frozen=True)
class Point:
    """A network by size and accuracy.

    Attributes:
        name: the network.
        family: networks of one family are joined by a line: its attention.
        params: millions.
        flops: thousand millions, in the convention of the source.
        top1: percent.
        std: of top1 over the seeds, where there are several.
    """

    name: str
    family: str
    params: float
    flops: float
    top1: float
    std: float | None = None


def measure(
    name: str,
    model: nn.Module,
    image_size: int,
    classes: int,
    batch: int = 64,
    steps: int = 10,
    precision: str = "fp32",
    ranks: Ranks | None = None,
) -> Measured:
    """Memory and speed of a network on random images: one step of SGD with momentum, and one forward pass.

    The parameters and buffers are those of the call afterwards. Under several ranks every rank must call it: the devices train
    together by DDP, and their memory and speed are added.

    Args:
        name: the network.
        model: on the device of the rank.
        image_size: in pixels.
        classes: number of outputs.
        batch: images per step and device.
        steps: that are timed, after two that are not.
        precision: fp32, or bf16 and fp16 by autocast (without loss scaling).
        ranks: all devices; None for that of the model alone.
    """
    device = next(model.parameters()).device
    ranks = ranks or Ranks(0, 1, device)
    # Copies: training would change the network of the caller.
    kept = {key: value.detach().clone() for key, value in model.state_dict().items()}
    x = torch.randn(batch, 3, image_size, image_size, device=device)
    y = torch.randint(classes, (batch,), device=device)
    amp = None if precision == "fp32" else precision
    memory, speed = {}, {}
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        wrapped: Any = model
        if ranks.world > 1:
            wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9)

        def train() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast(amp, device):
                loss = F.cross_entropy(wrapped(x), y)
            loss.backward()
            optimizer.step()

        def infer() -> None:
            with torch.inference_mode(), autocast(amp, device):
                model(x)

        state = [*model.parameters(), *model.buffers(), x, y]
        train()  # it creates the optimizer's state
        momentum = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        memory["training"] = peak(train, device, [*state, *momentum, *gradients])
        speed["training"] = batch / _seconds(train, steps, device, f"{name}: training")
        optimizer.zero_grad(set_to_none=True)
        with evaluating(model):
            memory["inference"] = peak(infer, device, state)
            speed["inference"] = batch / _seconds(infer, steps, device, f"{name}: inference")
    finally:
        for module, mode in modes:
            module.training = mode
        model.load_state_dict(kept)
        for parameter in model.parameters():
            parameter.grad = None
    totals = torch.tensor([*memory.values(), *speed.values()], dtype=torch.float64, device=device)
    found = ranks.sum(totals).tolist()
    counted = flops.count(model, (3, image_size, image_size))
    return Measured(
        name,
        counted.params,
        counted.macs,
        {key: int(v) for key, v in zip(memory, found[:2], strict=True)},
        dict(zip(speed, found[2:], strict=True)),
        batch,
        ranks.world,
        torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision,
        image_size,
    )


def _seconds(work: Callable[[], None], steps: int, device: torch.device, what: str) -> float:
    """The median of the seconds of a step."""
    taken = []
    for step in images.bar(range(WARM_UP + steps), what):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if step >= WARM_UP:
            taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def of_rows(paper: str, table: str | None) -> list[Point]:
    """The classifiers of a paper's tables, as printed: those with parameters, FLOPs and top-1.

    Raises:
        UserError: there is no such paper or table, or no row has all three.
    """
    if paper not in tables.papers():
        raise UserError(f"paper={paper}: choose from {', '.join(tables.papers())}")
    try:
        rows = tables.load_rows(paper, table)
    except ValueError as error:
        raise UserError(str(error)) from None
    found = [
        Point(
            f"{row.model} {row.method}",
            row.method,
            float(row.printed["params"]) * (2**20 / 1e6 if row.unit == "Mi" else 1),
            float(row.printed["flops"]),
            row.top1,
        )
        for row in rows
        if row.detector is None and row.top1 is not None and {"params", "flops"} <= set(row.printed)
    ]
    if not found:
        raise UserError(f"paper={paper} table={table}: no row prints parameters, FLOPs and top-1; leave table= out")
    return found


def of_runs(found: Sequence[runs.Finished]) -> list[Point]:
    """Finished runs, the seeds of one network together: top-1 of the last epoch; FLOPs are multiply-accumulates.

    Raises:
        UserError: the runs are of several data sets, or one cannot be built.
    """
    points = []
    for one in images.bar(runs.one_data(runs.group(found)), "networks"):
        cfg = load.trusted(one.cfg, (), one.runs[0].folder)
        with torch.device("meta"):
            model = load.build(load.with_kernels_here(cfg))
        counted = flops.count(model, (3, cfg.data.image_size, cfg.data.image_size))
        scores = [run.top1 for run in one.runs]
        spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
        family = cfg.attention_name
        points.append(Point(one.name, family, counted.params / 1e6, counted.macs / 1e9, float(np.mean(scores)), spread))
    return points


@style.styled
def draw(found: Sequence[Measured]) -> Figure:
    """Bars of memory and speed per network, training and inference beside each other."""
    figure, axes = style.panels(1, 2, width=4.4, height=0.7 + 0.45 * len(found))
    first = found[0]
    for panel, (key, unit, title) in zip(
        axes[0], (("memory", 2**20, "peak memory (MiB)"), ("speed", 1, "images/s")), strict=True
    ):
        for number, mode in enumerate(("training", "inference")):
            values = [getattr(one, key)[mode] / unit for one in found]
            places = [i + 0.4 * (number - 0.5) for i in range(len(found))]
            bars = panel.barh(places, values, 0.38, color=style.colour(number), label=mode)
            panel.bar_label(bars, [f"{value:,.0f}" for value in values], padding=2, fontsize=7)
        panel.set_yticks(range(len(found)), [one.name for one in found])
        panel.invert_yaxis()
        panel.margins(x=0.15)
        panel.set_xlabel(title)
    axes[0, 1].set_yticklabels([])
    devices = f"{first.devices} x {first.device}" if first.devices > 1 else first.device
    figure.suptitle(
        f"{first.batch} images per step and device, {first.image_size} pixels, {first.precision}, {devices}", fontsize=9
    )
    style.legend_below(figure, axes[0, 0], 2)
    return figure


@style.styled
def draw_points(found: Sequence[Point], title: str) -> Figure:
    """Top-1 against parameters; the area of a circle is proportional to the FLOPs."""
    figure, axes = style.panels(1, 1, width=6.4, height=4.0)
    panel = axes[0, 0]
    largest = max(point.flops for point in found)
    for number, family in enumerate(dict.fromkeys(point.family for point in found)):
        own = sorted((p for p in found if p.family == family), key=lambda p: p.params)
        look = style.colour(number)
        panel.plot([p.params for p in own], [p.top1 for p in own], color=look, linestyle=style.dash(number), linewidth=1)
        panel.errorbar(
            [p.params for p in own], [p.top1 for p in own], [p.std or 0 for p in own], color=look, fmt="none", capsize=3
        )
        panel.scatter(
            [p.params for p in own],
            [p.top1 for p in own],
            [600 * p.flops / largest for p in own],
            color=look,
            alpha=0.55,
            label=family,
        )
        panel.scatter([p.params for p in own], [p.top1 for p in own], 8, color=look, marker=style.marker(number))
    panel.set(xlabel="parameters (millions)", ylabel="top-1 (%)", title=title)
    panel.margins(0.12)
    panel.grid(alpha=0.3)
    handles, labels = panel.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside right upper", frameon=False, title=f"largest circle:\n{largest:.3g} GFLOPs"
    )
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([40])
    return figure


def table(found: Sequence[Measured]) -> Table:
    """A row per network."""
    header: tuple[str, ...] = (
        "network",
        "params",
        "macs",
        "memory_training",
        "memory_inference",
        "images_per_second_training",
    )
    header += ("images_per_second_inference", "batch_per_device", "devices", "device", "precision", "image_size")
    rows: list[tuple[Any, ...]] = []
    for one in found:
        numbers = (one.memory["training"], one.memory["inference"], one.speed["training"], one.speed["inference"])
        how = (one.batch, one.devices, one.device, one.precision, one.image_size)
        rows.append((one.name, one.params, one.macs, *numbers, *how))
    return Table(header, rows)


def table_of_points(found: Sequence[Point]) -> Table:
    """A row per network."""
    rows = [(p.name, p.family, p.params, p.flops, p.top1, "" if p.std is None else p.std) for p in found]
    return Table(("network", "family", "params_millions", "gflops", "top1", "std"), rows)


def run(subjects: Sequence[Subject], options: Cost, ranks: Ranks) -> tuple[Figure, Table]:
    """The job of `scripts/analyse.py cost`."""
    if options.paper is not None:
        points = of_rows(options.paper, options.table)
        where = f"{options.paper}, table {options.table}, as printed" if options.table else f"{options.paper}, as printed"
        return draw_points(points, where), table_of_points(points)
    if options.runs:
        done = runs.find(options.runs)
        points = of_runs(done)
        seeds = sorted({len(one.runs) for one in runs.group(done)})
        count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        return draw_points(points, f"{done[0].cfg.data.name}, last epoch, mean of {count} seeds"), table_of_points(points)
    settings = (options.batch_size, options.steps, options.precision, ranks)
    found = [measure(s.name, s.model, s.cfg.data.image_size, s.cfg.data.num_classes, *settings) for s in subjects]
    return draw(found), table(found)
