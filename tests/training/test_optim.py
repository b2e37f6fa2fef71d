"""The learning rate as a function of the step, and which parameters decay."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import composed
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import get_optimizer_info, list_optimizers
from torch import nn

from attn import create_model
from attn.config.parse import validate
from attn.config.schema import Schedule
from attn.errors import UserError
from attn.runs import checkpoint
from attn.training import optimizers
from attn.training.optim import build_optimizer, classify, learning_rate, set_learning_rate, total_steps

PER_EPOCH = 10


def curve(schedule: Schedule) -> list[float]:
    return [learning_rate(schedule, step, PER_EPOCH) for step in range(total_steps(schedule, PER_EPOCH))]


def test_cosine_from_lr_to_nearly_nothing() -> None:
    lrs = curve(Schedule(epochs=10))
    assert lrs[0] == 0.1
    assert lrs[50] == pytest.approx(0.05)
    assert lrs[-1] == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.99)))


def test_warmup_inside_overlap_and_before() -> None:
    inside, overlap, before = (
        curve(Schedule(epochs=10, warmup_epochs=2, warmup_mode=mode)) for mode in ("inside", "overlap", "before")
    )
    plain = curve(Schedule(epochs=10))
    assert (len(inside), len(overlap), len(before)) == (100, 100, 120)
    for lrs in (inside, overlap, before):
        assert lrs[:20] == pytest.approx([0.1 * (s + 1) / 20 for s in range(20)])
    assert inside[20] == 0.1
    assert inside[60] == pytest.approx(0.05)  # half of the 80 steps that remain
    assert overlap[20:] == plain[20:]
    assert before[20:] == plain


def test_warmup_from_a_given_rate() -> None:
    lrs = curve(Schedule(epochs=10, warmup_epochs=1, warmup_lr=0.01))
    assert lrs[:2] == pytest.approx([0.01, 0.019])


def test_steps_by_milestones() -> None:
    lrs = curve(Schedule(epochs=10, curve="step", milestones=[3, 6], gamma=0.1))
    assert [lrs[i] for i in (0, 29, 30, 59, 60, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_once_an_epoch() -> None:
    lrs = curve(Schedule(epochs=10, update="epoch", warmup_epochs=2))
    for epoch in range(10):
        assert len(set(lrs[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH])) == 1
    assert lrs[0] == pytest.approx(0.05)
    assert lrs[10] == pytest.approx(0.1)


def test_once_an_epoch_with_a_warmup_that_ends_within_one() -> None:
    lrs = curve(Schedule(epochs=4, update="epoch", warmup_epochs=1.5))
    after = [0.1 * (1 + math.cos(math.pi * (step - 15) / 25)) / 2 for step in (20, 30)]
    assert lrs[::PER_EPOCH] == pytest.approx([0.1 * 10 / 15, 0.1, *after])


@given(
    st.sampled_from(["cosine", "step", "constant"]),
    st.sampled_from(["inside", "overlap", "before"]),
    st.sampled_from(["step", "epoch"]),
    st.integers(1, 12),
    st.floats(0, 12),
)
def test_it_rises_during_warmup_then_never_rises(
    mode: str, warmup_mode: str, update: str, epochs: int, warmup: float
) -> None:
    warmup = min(warmup, epochs)
    schedule = Schedule(curve=mode, warmup_mode=warmup_mode, update=update, epochs=epochs, warmup_epochs=warmup)
    lrs = curve(schedule)
    assert all(0 <= lr <= 0.1 + 1e-12 for lr in lrs)
    last = round(warmup * PER_EPOCH)  # steps of the warm-up; the epoch in which it ends keeps the rate of its beginning
    last = math.ceil(last / PER_EPOCH) * PER_EPOCH if update == "epoch" else last
    rising, falling = lrs[:last], lrs[last:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


def test_parameters_without_decay() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Linear(4, 2))
    layer_norm = [free for _, free in classify(nn.LayerNorm(4), {"batchnorm"})]
    assert layer_norm == [False, False]
    assert [free for _, free in classify(nn.Conv2d(4, 8, 3, groups=2), {"depthwise"})] == [False, False]  # grouped

    def exempt(*kinds: str) -> list[bool]:
        return [free for _, free in classify(model, set(kinds))]

    # depthwise weight and bias, norm weight and bias, linear weight and bias
    assert exempt() == [False] * 6
    assert exempt("norm") == [False, False, True, True, False, False]
    assert exempt("batchnorm") == exempt("norm")
    assert exempt("bias") == [False, True, False, True, False, True]
    assert exempt("vector") == [False, True, True, True, False, True]
    assert exempt("depthwise") == [True, False, False, False, False, False]


def test_every_parameter_is_optimised_once() -> None:
    model = create_model("resnet18", "ba", 10)
    optimizer = build_optimizer(replace(Schedule(), no_decay=["norm", "bias"]), model)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len({id(p) for p in held})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]


def test_adamw() -> None:
    optimizer = build_optimizer(Schedule(optimizer="adamw", betas=[0.8, 0.9]), nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.9)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 3))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, which: range) -> None:
    for step in which:
        torch.manual_seed(step)
        set_learning_rate(optimizer, 0.01 / (1 + step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, 3, 4, 4)), torch.randint(0, 3, (8,))).backward()
        optimizer.step()


@pytest.mark.parametrize("name", optimizers.names())
def test_continued_from_a_file_every_optimizer_makes_the_same_steps(name: str, tmp_path: Path) -> None:
    schedule = Schedule(optimizer=name, lr=0.01, weight_decay=0.05, no_decay=["norm", "bias"])
    whole = network()
    steps(whole, build_optimizer(schedule, whole), range(6))
    first = network()
    optimizer = build_optimizer(schedule, first)
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.05, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 4]
    steps(first, optimizer, range(3))
    content = {"model": first.state_dict(), "config": {}, "optimizer": optimizer.state_dict()}
    checkpoint.write(content, tmp_path / "last.pt")
    read = checkpoint.read(tmp_path / "last.pt")
    second = network()
    optimizer = build_optimizer(schedule, second)
    second.load_state_dict(read["model"])
    optimizer.load_state_dict(read["optimizer"])
    steps(second, optimizer, range(3, 6))
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key
    assert not torch.equal(whole[0].weight, network()[0].weight)


def test_options_are_those_of_the_optimizer() -> None:
    lamb = optimizers.build(
        Schedule(optimizer="lamb", optimizer_options={"betas": [0.8, 0.9]}), [{"params": [nn.Parameter(torch.ones(1))]}]
    )
    assert lamb.defaults["betas"] == (0.8, 0.9)
    clipped = Schedule(optimizer="adamw", optimizer_options={"amsgrad": True})
    assert build_optimizer(clipped, nn.Linear(2, 2)).defaults["amsgrad"] is True
    lion = optimizers.build(Schedule(optimizer="lion"), [{"params": [nn.Parameter(torch.ones(1))]}])
    assert lion.defaults["betas"] == (0.9, 0.99)  # its own, not AdamW's


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lamp", {}, "schedule.optimizer=lamp: unknown optimizer 'lamp': did you mean 'lamb'\\? choose from adabelief, "),
        ("adahessian", {}, "it needs a backward pass through the gradients"),
        ("kron", {}, "compiles it anew for each shape"),
        ("fusedlamb", {}, "it needs NVIDIA's apex"),
        ("lamb", {"trust": 1}, "unknown option 'trust': did you mean 'trust_clip'"),
        ("lamb", {"lr": 1}, "unknown option 'lr'"),
        ("sgd", {"momentum": 0.5}, "unknown option 'momentum'"),
        ("lamb", {"eps": -1}, "schedule.optimizer=lamb .*: Invalid epsilon: -1"),
        ("lamb", {"eps": math.nan}, "must be a finite number"),
        ("adopt", {"betas": [0.9]}, "schedule.optimizer=adopt"),
    ],
)
def test_wrong_names_and_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimizers.check(Schedule(optimizer=name, optimizer_options=options))


def test_second_order_optimizers_are_refused_by_their_property() -> None:
    assert {name for name in list_optimizers() if get_optimizer_info(name).second_order}.isdisjoint(optimizers.names())


@pytest.mark.parametrize("change", [{"nesterov": True}, {"momentum": 0.8}, {"betas": [0.9, 0.95]}])
def test_keys_that_an_optimizer_does_not_read_are_refused(change: dict[str, object]) -> None:
    cfg = composed("data=fake")
    with pytest.raises(UserError, match=r"schedule\.optimizer=lamb does not read it"):
        validate(replace(cfg, schedule=replace(cfg.schedule, optimizer="lamb", **change)))
