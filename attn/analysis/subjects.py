"""The checkpoints that a figure compares: their networks, names and images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attn.config.schema import Config
from attn.data.datasets import class_names, expect_same_classes
from attn.data.loader import Seeded, evaluation_data
from attn.errors import UserError, as_user_errors
from attn.evaluation.job import with_data
from attn.runs import folder, load

SAME = (
    "source",
    "dataset",
    "root",
    "val_split",
    "num_classes",
    "samples",
    "labels",
    "split",
    "held_out",
)  # what two checkpoints must have in common


@dataclass(frozen=True)
class Subject:
    """A checkpoint.

    Attributes:
        name: backbone and attention, and what else tells it from the others.
        cfg: its config, with the data that is asked for.
        model: its network, in evaluation mode.
        data: the validation images with its own transform.
        classes: their names in the order of the labels, or None.
    """

    name: str
    path: Path
    cfg: Config
    model: nn.Module
    data: Seeded
    classes: list[str] | None


def load_subjects(
    paths: Sequence[str],
    overrides: Mapping[str, Any] | None = None,
    weights: str = "auto",
    device: torch.device | str = "cpu",
    trust: Collection[str] = (),
) -> list[Subject]:
    """Loads checkpoints, and opens their validation images.

    Args:
        paths: checkpoints, as `attn.load` takes them.
        overrides: keys of `data` that differ from what the checkpoints hold.
        weights: ema, raw, or auto: averaged where a checkpoint holds them.
        device: where the networks are put.
        trust: modules of the user's own whose attentions the checkpoints may name.

    Raises:
        UserError: a checkpoint cannot be used, or two of them have other images or classes.
    """
    found: list[tuple[Path, Config, Any]] = []
    for name in dict.fromkeys(paths):
        path = Path(name).expanduser()
        content = folder.read(path)
        cfg = load.trusted(with_data(load.load_config(content, path), dict(overrides or {})), trust, f"checkpoint {path}")
        if found:
            _expect_same_images(found[0][0], found[0][1], path, cfg)
            with as_user_errors():
                expect_same_classes(found[0][2].get("classes"), content.get("classes"), f"{found[0][0]} and {path}")
        found.append((path, cfg, content))
    subjects = []
    for (path, cfg, content), name in zip(found, names([(path, cfg) for path, cfg, _ in found]), strict=True):
        picked = load.pick_weights(content, {"auto": None, "ema": True, "raw": False}[weights], path)
        cfg = load.with_kernels_here(cfg)
        model = load.build(cfg)
        load.load_weights(model, picked, path)
        with as_user_errors():
            data = evaluation_data(cfg.data)
            own = class_names(data.dataset)
            expect_same_classes(content.get("classes"), own, f"checkpoint {path} and data.root={cfg.data.root}")
        subjects.append(Subject(name, path, cfg, model.to(device).eval(), data, own or content.get("classes")))
    return subjects


def _expect_same_images(first: Path, a: Config, second: Path, b: Config) -> None:
    differing = [key for key in SAME if getattr(a.data, key) != getattr(b.data, key)]
    if a.data.source != "fake" and "samples" in differing:
        differing.remove("samples")
    if differing:
        key = differing[0]
        raise UserError(
            f"{first} and {second} have other images: data.{key} is {getattr(a.data, key)} in one and {getattr(b.data, key)} in the "
            "other; a figure compares networks of the same classes on the same images (data.KEY= sets it for all)"
        )


def names(runs: Sequence[tuple[Path, Config]]) -> list[str]:
    """The shortest names that tell checkpoints apart: the attention and the backbone; then the seed; then the path."""
    ways = [
        [f"{cfg.backbone['name']} {cfg.attention_name}" for _, cfg in runs],
        [f"{cfg.backbone['name']} {cfg.attention_name} seed {cfg.seed}" for _, cfg in runs],
        [f"{path.parent.parent.name}/{path.parent.name}" for path, _ in runs],
    ]
    return next((way for way in ways if len(set(way)) == len(way)), [str(path) for path, _ in runs])


def same_size(subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects, all with the images of the first: for figures that put one image beside what several networks see in it.

    Raises:
        UserError: the networks were trained on images of other sizes.
    """
    size = subjects[0].cfg.data.image_size
    for subject in subjects[1:]:
        if subject.cfg.data.image_size != size:
            raise UserError(
                f"{subjects[0].path} and {subject.path} have images of {size} and {subject.cfg.data.image_size} pixels; set one for "
                "all, as in data.image_size=224"
            )
    return [replace(subject, data=subjects[0].data) for subject in subjects]
