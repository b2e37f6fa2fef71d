"""The network of a row, built and counted on the meta device."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from attn.models import flops
from attn.models.create import create_model
from attn.tables.build import Build, choice

TRAINING_ONLY = "attn.modules.ba2m.BA2M"  # it is the identity at inference; its printed FLOPs are those of training


def network(build: Build) -> nn.Module:
    """The classifier of a build, on the meta device.

    Raises:
        ValueError: a name or setting is wrong; the message says which.
    """
    data = choice("data", build.data)
    backbone = build.mapping("backbone")
    with torch.device("meta"):
        return create_model(backbone.pop("name"), build.mapping("attention"), data["num_classes"], **backbone)


@dataclass(frozen=True)
class Measured:
    """A network as it is here.

    Attributes:
        params: trainable parameters; None if it could not be counted.
        ptflops, macs: operations per image in these conventions of `attn.models.flops`; by `macs_first` those of the changed
            network.
        statistics: running means and variances of its norms.
        problem: why it could not be counted.
    """

    params: int | None = None
    ptflops: int | None = None
    macs: int | None = None
    statistics: int = 0
    problem: str | None = None


def measure(build: Build, convention: str = "ptflops") -> Measured:
    """Builds a classifier on the meta device and counts it by a convention of `attn.models.flops`; each network once."""
    settings = {key: value for key, value in build.settings if key.startswith(("backbone.", "attention."))}
    return _measure(build.backbone, build.attention, build.data, json.dumps(settings), convention == "macs_first")


@cache
def _measure(backbone: str, attention: str, data: str, settings: str, stride_in_first: bool) -> Measured:
    build = Build(backbone, attention, data, None, None, own=tuple(json.loads(settings).items()))
    try:
        model = network(build)
    except ValueError as error:
        return Measured(problem=str(error))
    side = choice("data", data)["image_size"]
    training = TRAINING_ONLY in json.dumps(build.mapping("attention"))
    if stride_in_first:
        model = flops.stride_in_first(model)
    found = flops.count(model, (3, side, side), training)
    buffers = (b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var")))
    return Measured(found.params, found.ptflops, found.macs, sum(b.numel() for b in buffers))
