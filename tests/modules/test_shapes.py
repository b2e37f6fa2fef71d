"""The shapes that attn/attention.py promises, of every attention of the registry at every site of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import PAIRS, SIZES
from torch import Tensor, nn

import attn
from attn.attention import Attention, Gate, Site, StageAttention
from attn.backbones import families
from attn.models.create import attach
from attn.models.spec import resolve_attention

N = 2


def placed(backbone: str, attention: str) -> tuple[nn.Module, list[tuple[str, Site, Attention]]]:
    """A network, and each of its attentions with the slot and the site that it was built for."""
    torch.manual_seed(0)
    model = attn.create_model(backbone, None, 8, **SIZES.get(backbone, {}))
    family = next(family for family in families() if isinstance(model, family.network))
    spec = resolve_attention(attention)
    where = {
        "block": spec.position or family.block_positions[0],
        "conv": spec.convs or (family.conv_kinds or ("",))[0],
        "stage": "",
    }
    sockets = [(slot, place) for slot in spec.filled for place in family.sockets(model, slot, where[slot])]
    attach(model, family, spec)
    found = []
    for slot, place in sockets:
        module = getattr(place.owner, place.name, None)
        module = module.attention if isinstance(module, StageAttention) else module
        if isinstance(module, Attention):
            found.append((slot, place.site, module))
    return model, found


def watch(module: nn.Module, name: str, check: Callable[[tuple[Any, ...], Any], None]) -> None:
    """Lets `check` see the arguments and the result of every call of a method."""
    original = getattr(module, name)

    def watched(*arguments: Any) -> Any:
        result = original(*arguments)
        check(arguments, result)
        return result

    setattr(module, name, watched)


def check_forward(slot: str, site: Site, arguments: tuple[Any, ...], result: Any) -> None:
    feats, _ = arguments
    assert isinstance(feats, tuple)
    assert isinstance(result, tuple)
    refined, _ = result
    assert [f.ndim for f in feats] == [4] * len(feats)
    assert [len(f) for f in feats] == [N] * len(feats)
    if slot == "conv":  # its output is what the attention makes
        assert site.conv is not None
        assert [f.shape[1] for f in feats] == [site.widths[0]]
        assert refined.shape == torch.nn.Conv2d.forward(site.conv, feats[-1]).shape
    else:
        assert tuple(f.shape[1] for f in feats) == site.widths
        assert refined.shape == feats[-1].shape
    assert refined.dtype == feats[-1].dtype


def check_squeeze(arguments: tuple[Tensor, ...], result: Tensor) -> None:
    (x,) = arguments
    assert x.ndim == 4
    assert result.shape == x.shape[:2]


def check_excite(arguments: tuple[Tensor, ...], result: Tensor) -> None:
    (z,) = arguments
    assert z.ndim == 2
    assert result.shape == z.shape


def check_refine(arguments: tuple[Tensor, ...], result: Tensor) -> None:
    (x,) = arguments
    assert x.ndim == 4
    assert result.shape == x.shape


@pytest.mark.parametrize(("backbone", "attention"), [pair for pair in PAIRS if pair[1] not in ("none", "strip")])
def test_every_attention_keeps_the_shapes_of_the_protocol(backbone: str, attention: str) -> None:
    model, modules = placed(backbone, attention)
    calls: Counter[str] = Counter()

    def counted(name: str, check: Callable[..., None]) -> Callable[[tuple[Any, ...], Any], None]:
        def checked(arguments: tuple[Any, ...], result: Any) -> None:
            calls[name] += 1
            check(arguments, result)

        return checked

    assert modules
    for slot, site, module in modules:
        watch(module, "forward", counted("forward", lambda a, r, slot=slot, site=site: check_forward(slot, site, a, r)))
        if slot != "conv":
            watch(module, "refine", counted("refine", check_refine))
    gates = [m for m in model.modules() if isinstance(m, Gate)]
    for gate in gates:
        watch(gate, "squeeze", counted("squeeze", check_squeeze))
        if type(gate).excite is not Gate.excite:
            watch(gate, "excite", counted("excite", check_excite))
    model.train()(torch.randn(N, 3, 64, 64))

    assert calls["forward"] == len(modules)
    plain = sum(type(gate).forward is Attention.forward for gate in gates)  # else forward may pool in its own way
    assert calls["squeeze"] >= plain
    assert calls["excite"] >= plain
