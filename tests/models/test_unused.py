"""Parameters that no forward pass uses do not block training on several ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, composed
from torch import nn

import attn
from attn import tables
from attn.attention import Attention
from attn.models.auxiliary import objectives
from attn.models.unused import ignore_unused, unused_parameters
from attn.tables.measure import network
from attn.training import setup

SHALLOW = {
    "resnet50": "resnet50",
    "resnet101": "resnet50",
    "resnet152": "resnet50",
    "resnet18": "resnet18",
    "resnet34": "resnet18",
}
SHALLOW |= {"resnext50_32x4d": "resnext50_32x4d", "resnext101_32x4d": "resnext50_32x4d"}
SHALLOW |= {"cifar_resnet50": "cifar_resnet50", "cifar_resnet101": "cifar_resnet50"}


class Idle(Attention):
    def __init__(self, site: object) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 2, bias=False)

    def refine(self, x: torch.Tensor) -> torch.Tensor:
        return x


def check(model: nn.Module) -> None:
    ignore_unused(model, lambda twin, device: twin(torch.zeros(2, 3, 32, 32, device=device)).sum())


def test_a_parameter_without_gradient_is_named_before_training() -> None:
    model = attn.create_model("resnet18", {"stage": {"_target_": f"{__name__}.Idle"}}, 10)
    with pytest.raises(ValueError, match=r"layer1\.attn\.attention\.idle\.weight.*no gradient reaches them"):
        check(model)


def test_a_named_parameter_that_is_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attn.create_model("resnet18", "se", 10)
    module = next(m for m in model.modules() if isinstance(m, Attention))
    name = next(name for name, _ in module.named_parameters())
    monkeypatch.setattr(module, "unused_parameters", lambda: [name])
    with pytest.raises(ValueError, match="but used"):
        check(model)


def test_unused_layers_of_the_authors_are_known() -> None:
    model = attn.create_model("resnet18", {"block": {"_target_": "attn.modules.ba.BA", "unused": True}}, 10)
    assert len(unused_parameters(model)) == 4
    check(model)


WIDER = {"cifar_wrn28_10": "cifar_wrn28_8", "wrn18_2": "wrn18_15"}


def without_numbers(node: Any) -> Any:
    """A mapping whose numbers are all 0: those of an attention are widths, ratios and weights, and name no parameter."""
    if isinstance(node, Mapping):
        return {key: without_numbers(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [without_numbers(value) for value in node]
    return 0 if isinstance(node, (int, float)) and not isinstance(node, bool) else node


def printed() -> dict[str, tables.Build]:
    """The distinct networks of all printed commands, by the first row of each.

    Networks that differ only in numbers of their attention or in width count once, as do ResNets that differ only in depth,
    with five blocks: what an attention holds depends on which block is the first of the network or of its stage.
    """
    found: dict[str, tuple[str, tables.Build]] = {}
    for row in tables.with_alternatives((*tables.load_rows(), *tables.load_computed())):
        if row.build is None or row.build.detector is not None:
            continue
        build = row.build
        if build.backbone in SHALLOW:
            settings = (*build.own, ("backbone.layers", (2, 1, 1, 1)))
            build = replace(build, backbone=SHALLOW[build.backbone], own=settings)
        attention = without_numbers(build.mapping("attention"))
        key = json.dumps([WIDER.get(build.backbone, build.backbone), attention, build.data])
        found.setdefault(key, (row.id, build))
    return dict(found.values())


@pytest.mark.slow
def test_every_printed_pairing_names_what_gets_no_gradient() -> None:
    builds, failed, named = printed(), {}, 0
    configs = {size: composed(f"data.image_size={size}") for size in (32, 64)}
    for row, build in builds.items():
        size = 32 if build.data == "cifar100" else 64
        model = network(build)
        if objectives(model):  # wants values
            backbone = build.mapping("backbone")
            model = attn.create_model(backbone.pop("name"), build.mapping("attention"), 10, **backbone)
        try:
            ignore_unused(model, partial(setup.check_loss, configs[size]))
        except ValueError as error:
            failed[row] = str(error)
        named += bool(unused_parameters(model))
    assert failed == {}
    assert len(builds) > 150
    assert named > 20


@pytest.mark.slow
def test_printed_pairings_take_two_steps_on_two_ranks(tmp_path: Path) -> None:
    result = call(["tests/two_ranks.py", str(tmp_path)], ranks=2)
    assert result.returncode == 0, result.stderr
    trained = json.loads(result.stdout.strip().splitlines()[-1])
    assert len(trained) > 22
