"""The papers' recipes: the learning rate at chosen steps, and the settings that their sources give."""

import math
from functools import cache

import pytest
from commands import composed

from attn.config.groups import names
from attn.config.schema import Schedule
from attn.training.optim import learning_rate, total_steps

PER_EPOCH = 100
RECIPES = {
    "ba_net": 100,
    "ba_net_paper": 100,
    "ba_net_efficientnet": 100,
    "ba_v2": 300,
    "dcanet_resnet": 100,
    "dcanet_mobile": 150,
    "dcanet_resnet_paper": 100,
    "dcanet_mobile_paper": 150,
    "ba2m_cifar100": 300,
    "ba2m_imagenet": 100,
    "aw": 100,
}


@cache
def schedule(name: str) -> Schedule:
    return composed(f"schedule={name}", "run_dir=runs/test", "attention_name=none").schedule


def lr(name: str, epoch: float) -> float:
    return learning_rate(schedule(name), round(epoch * PER_EPOCH), PER_EPOCH)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_choice_and_has_its_length(name: str) -> None:
    assert name in names("schedule")
    found = schedule(name)
    assert found.name == name
    assert total_steps(found, PER_EPOCH) == RECIPES[name] * PER_EPOCH
    # DCANet's text alone says Nesterov.
    assert (found.momentum, found.nesterov) == (0.9, name in ("dcanet_resnet_paper", "dcanet_mobile_paper"))


@pytest.mark.parametrize("name", ["dcanet_resnet", "dcanet_mobile"])
def test_dcanet_by_its_text(name: str) -> None:
    code, text = schedule(name), schedule(f"{name}_paper")
    assert (text.nesterov, text.weight_decay, text.no_decay, text.amp, text.warmup_epochs) == (True, 1e-4, [], None, 0)
    assert (text.epochs, text.batch_size, text.lr, text.curve) == (code.epochs, code.batch_size, code.lr, code.curve)
    assert lr(f"{name}_paper", 0) == pytest.approx(0.1)


def test_ba_net_warms_up_for_five_epochs_then_follows_a_cosine_over_95() -> None:
    found = schedule("ba_net")
    assert learning_rate(found, 0, PER_EPOCH) == pytest.approx(0.1 / (5 * PER_EPOCH))  # lr / steps of the warm-up
    assert lr("ba_net", 2.5) == pytest.approx(0.1 * (2.5 * PER_EPOCH + 1) / (5 * PER_EPOCH))
    assert lr("ba_net", 5) == pytest.approx(0.1)
    assert lr("ba_net", 5 + 95 / 2) == pytest.approx(0.05)
    assert lr("ba_net", 5 + 95 / 4) == pytest.approx(0.05 * (1 + math.sqrt(0.5)))
    assert learning_rate(found, 100 * PER_EPOCH - 1, PER_EPOCH) == pytest.approx(0, abs=1e-6)
    assert (found.label_smoothing, found.weight_decay, found.zero_init_last, found.no_decay) == (0.1, 1e-4, False, [])


def test_ba_net_by_its_text_is_a_plain_cosine() -> None:
    assert lr("ba_net_paper", 0) == pytest.approx(0.1)
    assert lr("ba_net_paper", 50) == pytest.approx(0.05)
    assert schedule("ba_net_paper").label_smoothing == 0


@pytest.mark.parametrize("name", ["ba_net_efficientnet", "dcanet_resnet", "ba2m_imagenet", "aw"])
def test_the_step_schedules_divide_by_ten_every_thirty_epochs(name: str) -> None:
    expected = {0: 0.1, 29.98: 0.1, 30: 0.01, 59.98: 0.01, 60: 0.001, 89.98: 0.001, 90: 0.0001, 99: 0.0001}
    assert {epoch: lr(name, epoch) for epoch in expected} == pytest.approx(expected)
    assert schedule(name).batch_size == 256


def test_ba2m_on_cifar_scales_the_rate_with_the_batch() -> None:
    found = schedule("ba2m_cifar100")
    assert found.lr == pytest.approx(0.1 * found.batch_size / 128)
    expected = {0: 0.2, 149.98: 0.2, 150: 0.02, 224.98: 0.02, 225: 0.002, 299: 0.002}
    assert {epoch: lr("ba2m_cifar100", epoch) for epoch in expected} == pytest.approx(expected)


def test_dcanet_mobile_spares_norms_biases_and_depthwise_weights() -> None:
    found = schedule("dcanet_mobile")
    assert (found.batch_size, found.lr, found.weight_decay) == (512, 0.1, 4e-5)
    assert set(found.no_decay) == {"batchnorm", "bias", "depthwise"}
    assert lr("dcanet_mobile", 5) == pytest.approx(0.1)
    assert lr("dcanet_mobile", 5 + 145 / 2) == pytest.approx(0.05)


def test_ba_v2_warms_up_over_the_beginning_of_its_cosine() -> None:
    found = schedule("ba_v2")
    assert (found.optimizer, found.clip_grad, found.mixup, found.cutmix, found.weight_decay) == ("adamw", 5, 0.8, 1, 0.05)
    assert lr("ba_v2", 0) == pytest.approx(1e-6)
    assert lr("ba_v2", 10) == pytest.approx((1e-6 + 1e-3) / 2)
    cosine = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * 20 / 300)) / 2
    assert lr("ba_v2", 20) == pytest.approx(cosine)
    assert cosine < 1e-3
    assert lr("ba_v2", 150) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(found, 300 * PER_EPOCH - 1, PER_EPOCH) == pytest.approx(1e-5, rel=1e-3)
