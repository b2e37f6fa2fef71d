"""The keys of scripts/analyse.py: one dataclass per kind of figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from attn.config import command_line, evaluation, groups, parse, reference, schema
from attn.config.schema import NOT_NEGATIVE, POSITIVE, key, trust_key, weights_key
from attn.errors import UserError


@dataclass(frozen=True)
class Output:
    """What every figure has."""

    out: str | None = key(
        None, "name of the files, as in figures/weights: .png, .svg and .csv are added; null: KIND, in this folder"
    )


@dataclass(frozen=True)
class Checkpoints(Output):
    """What every figure of checkpoints has. `data` holds what differs from the data of the checkpoints."""

    checkpoint: list[str] = key(
        [],
        "last.pt or best.pt of a run, a folder of attn.save_pretrained, or hf-hub:organisation/name; given again, the figure compares "
        "several",
    )
    weights: str = weights_key()
    batch_size: int = key(64, "images per pass", limits=POSITIVE)
    workers: int | None = key(0, "loader processes; null: one per processor core, at most 4", limits=NOT_NEGATIVE)
    device: str = key("auto", "where to compute; auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    seed: int = key(0, "seed of everything that is random", limits=NOT_NEGATIVE)
    trust: list[str] = trust_key()
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights(Checkpoints):
    """Mean channel weights per class after the last block of each stage (BA-Net, Figure 4)."""

    classes: list[str] = key([], "names or labels; empty: the four of the paper on ImageNet, else the first four")
    each: int = key(50, "images per class", limits=POSITIVE)


@dataclass(frozen=True)
class Histograms(Checkpoints):
    """All attention values of each block, a histogram per block (DCANet, Figure 1)."""

    images: int | None = key(256, "validation images; null: all", limits=POSITIVE)
    of: str | None = key(
        None,
        "which weights; null: those of channels where there are any, else what there is",
        choices=("channel", "branch", "filter", "joint", "spatial", "image"),
    )
    bins: int = key(50, "bars between 0 and 1", limits=POSITIVE, at_most=10_000)


@dataclass(frozen=True)
class Importance(Checkpoints):
    """How much each bridged layer decides on the weights of a block (BA-Net, Algorithm 1 and Figure 5)."""

    images: int | None = key(256, "validation images; null: all", limits=POSITIVE)
    trees: int = key(50, "trees of each random forest", limits=POSITIVE, at_most=100_000)


@dataclass(frozen=True)
class Gradcam(Checkpoints):
    """Grad-CAM at stages or blocks, or within a block (DCANet, Figures 1 and 4; BA-Net v2, Figure 2)."""

    images: list[str] = key(["0", "1", "2", "3"], "numbers of validation images, or image files")
    at: list[str] = key([], "stages (3) or blocks (3.2), counted from 1; empty: the last block")
    inside: bool = key(False, "columns within the one block of `at`: its input, its convolutions, its output")
    target: str = key(
        "predicted", "the class whose score is explained: the predicted one, or the label", choices=("predicted", "label")
    )


@dataclass(frozen=True)
class Connections(Checkpoints):
    """Contribution of the previous attention at each connection (DCANet, Figure 5)."""


@dataclass(frozen=True)
class Embedding(Checkpoints):
    """t-SNE of the pooled features of some classes, with their silhouette score (BA2M, Figure 1)."""

    classes: list[str] = key([], "names or labels, best similar ones; empty: the first ten")
    each: int = key(50, "images per class", limits=POSITIVE)
    perplexity: float = key(30.0, "of t-SNE; at most a third of the images are used", limits=POSITIVE)


@dataclass(frozen=True)
class Maps(Checkpoints):
    """Single channels of a block as a grid (BA2M, Figure 3)."""

    images: list[str] = key(["0", "1"], "numbers of validation images, or image files")
    at: str | None = key(None, "stage (3) or block (3.2), counted from 1; null: the last block of the last stage but one")
    channels: list[int] = key([], "numbers of the channels; empty: the eight of the largest mean", limits=None)


@dataclass(frozen=True)
class Batch(Output):
    """Mean error of the seeds against the batch size of the training (BA2M, Figure 5)."""

    runs: list[str] = key([], "folders with runs in or below them")


@dataclass(frozen=True)
class Cost(Checkpoints):
    """Memory and speed of checkpoints; or accuracy against parameters and FLOPs of table rows or runs (BA-Net, Table 3; v2, Figure 1)."""

    precision: str = key("fp32", "of the measurement; bf16 and fp16: autocast", choices=("fp32", "bf16", "fp16"))
    steps: int = key(10, "timed steps, after two that are not", limits=POSITIVE)
    runs: list[str] = key([], "folders with runs in or below them, in place of checkpoints")
    paper: str | None = key(None, "a paper's rows in place of checkpoints, as in ba_net")
    table: str | None = key(None, "one of its tables, as in 2")


@dataclass(frozen=True)
class Confusion(Checkpoints):
    """Confusion matrix, accuracy per class, the most confident mistakes, and how far confidence can be trusted."""

    images: int | None = key(None, "validation images; null: all", limits=POSITIVE)
    mistakes: int = key(8, "mistakes to show", limits=NOT_NEGATIVE, at_most=64)
    bins: int = key(15, "bins of the calibration error", limits=POSITIVE, at_most=1000)


KINDS: dict[str, type[Output]] = {
    "weights": Weights,
    "histograms": Histograms,
    "importance": Importance,
    "gradcam": Gradcam,
    "connections": Connections,
    "embedding": Embedding,
    "maps": Maps,
    "batch": Batch,
    "cost": Cost,
    "confusion": Confusion,
}


def read(arguments: Sequence[str]) -> tuple[str, Any]:
    """The kind and the keys of a command line `KIND key=value ...`.

    Lists are written `[a,b]`; a key of a list that is given again adds to it. `data=NAME` and `data.KEY=VALUE` are those of
    eval.py.

    Raises:
        UserError: an unknown kind or key, or a value that does not fit.
    """
    if not arguments:
        raise UserError(f"name a figure first, one of {', '.join(KINDS)}; --help explains them")
    kind, *rest = arguments
    if kind not in KINDS:
        raise UserError(groups.unknown("figure", kind, KINDS))
    cls = KINDS[kind]
    lists = {entry.name for entry in fields(cls) if str(entry.type).startswith("list[")}
    raw: dict[str, Any] = {}
    data: list[str] = []
    for argument in rest:
        name, sign, value = argument.partition("=")
        if not sign or not name or name.startswith("-"):
            raise UserError(f"cannot read the argument {argument!r}: write key=value")
        if name == "data" or name.startswith("data."):
            data.append(command_line.quoted(argument))
        elif name in lists:
            raw.setdefault(name, []).extend(_items(value))
        else:
            raw[name] = None if value in ("null", "None") else value
    if data:
        if not issubclass(cls, Checkpoints):
            raise UserError(f"{data[0]}: {kind} reads no images")
        raw["data"] = _data(data)
    options = parse.to_dataclass(cls(), raw)
    parse.check_values(options)
    if isinstance(options, Checkpoints) and not options.checkpoint and not isinstance(options, Cost):
        raise UserError(f"checkpoint must be set, as in {kind} checkpoint=runs/resnet50-ba-digits/seed0/best.pt")
    return kind, options


def _items(value: str) -> list[str]:
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else None
    return [value] if inner is None else [item.strip() for item in inner.split(",") if item.strip()]


def _data(arguments: list[str]) -> dict[str, Any]:
    """What the arguments change of the data, as eval.py reads them."""
    GlobalHydra.instance().clear()
    given = ["checkpoint=unused", *arguments]
    with initialize_config_dir(str(groups.config_dir()), version_base="1.3"):
        try:
            return evaluation.Request.parse(compose("eval", overrides=given)).data
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(command_line.explain(error, "eval", given)) from None


def help_text(kind: str | None = None, width: int = 110) -> str:
    """The figures, or the keys of one."""
    if kind is None:
        lines = ["python scripts/analyse.py KIND checkpoint=A [checkpoint=B ...] [data=NAME] [key=value ...]", ""]
        for name, cls in KINDS.items():
            lines.append(_wrapped(f"{name}  {cls.__doc__}", width))
        return "\n".join([*lines, "", "The keys of one: python scripts/analyse.py KIND --help"])
    cls = KINDS[kind]
    lines = [f"{kind}: {cls.__doc__}", ""]
    lines += [
        _wrapped(f"{entry.name}={reference.shown(entry)}  {reference.sentence(entry)}", width) for entry in schema.keys(cls)
    ]
    if issubclass(cls, Checkpoints):
        lines.append(_wrapped("data=NAME, data.KEY=VALUE  other data than that of the checkpoints, as in eval.py", width))
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent="  ", subsequent_indent=" " * 6)
