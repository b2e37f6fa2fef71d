"""Parameters that no forward uses do not stop several ranks."""

from __future__ import annotations

import json

import pytest
import torch
from commands import call
from torch import nn

import attn
from attn.attention import Attention
from attn.models.unused import ignore_unused, unused_parameters


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


@pytest.mark.parametrize("share", range(2))
def test_every_printed_pairing_takes_two_steps_on_two_ranks(share: int) -> None:
    result = call(["tests/two_ranks.py", str(share), "2"], ranks=2, timeout=900)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert found["pairings"] > 90
    assert found["failed"] == {}
