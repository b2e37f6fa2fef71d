"""The schema and the files of the config groups agree."""

from __future__ import annotations

import contextlib
import re
from dataclasses import fields
from typing import get_type_hints

import hydra
import pytest
from commands import composed
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import attn.config.evaluation  # noqa: F401  # the config that eval.yaml names
from attn.config import groups, parse, schema
from attn.config.schema import Config, Data, Schedule
from attn.errors import UserError


def test_the_defaults_are_those_of_the_field() -> None:
    cfg = composed("data.root=/data")
    schedule = cfg.schedule
    assert (schedule.optimizer, schedule.momentum, schedule.lr, schedule.batch_size) == ("sgd", 0.9, 0.1, 256)
    assert (schedule.weight_decay, schedule.epochs, schedule.curve) == (1e-4, 100, "cosine")
    assert (cfg.data.crop, cfg.data.image_size, cfg.data.test_resize, cfg.data.hflip) == ("random_resized", 224, 256, 0.5)


def test_defaults_of_schema_and_files_are_equal() -> None:
    cfg = composed("data.root=null")
    assert cfg.schedule == Schedule()
    assert cfg.data == Data(crop_ratio=[0.75, 4 / 3])


@pytest.mark.parametrize("group", ["data", "schedule"])
def test_every_choice_composes_and_is_valid(group: str) -> None:
    for name in groups.names(group):
        cfg = composed(f"{group}={name}", *(["data.dataset=torch/cifar10"] if name == "timm" else []))
        assert getattr(cfg, group).name == name


def test_every_key_of_data_can_be_overridden_at_evaluation() -> None:
    with hydra.initialize_config_dir(str(groups.config_dir()), version_base="1.3"):
        data = hydra.compose("eval", ["checkpoint=x", "data.root=/here"])["data"]
    assert list(data) == [field.name for field in fields(Data)]
    assert {key: value for key, value in data.items() if value is not None} == {"root": "/here"}


def test_a_config_survives_being_saved() -> None:
    cfg = composed("data=digits", "attention=ba")
    assert parse.from_dict(parse.to_dict(cfg)) == cfg


LIMITS = {key.name: key.limits for key in schema.keys(Config) if key.limits is not None}


@given(st.sampled_from(sorted(LIMITS)), st.floats(-10, 10, allow_nan=False))
def test_ranges_are_checked(key: str, value: float) -> None:
    mapping = OmegaConf.create(parse.to_dict(Config({"name": "resnet18"}, {}, Data(), Schedule(), schema.Logger())))
    section, _, name = key.rpartition(".")
    section_schema = {"": Config, "schedule": Schedule, "data": Data}[section]
    if get_type_hints(section_schema)[name] in (int, int | None):
        value = int(value)
    OmegaConf.update(mapping, key, value)
    if schema.LIMITS[LIMITS[key]](value):
        with contextlib.suppress(UserError):  # another rule may refuse it
            parse.parse(mapping)
    else:
        with pytest.raises(UserError, match=re.escape(LIMITS[key])):
            parse.parse(mapping)


def test_a_wrong_type_names_key_value_and_what_is_expected() -> None:
    for override, line in (
        ("seed=1.5", "seed=1.5: must be an integer"),
        ("schedule.lr=null", "schedule.lr=null: must be a number"),
        ("compile=maybe", "compile=maybe: must be true or false"),
        ("schedule.no_decay=bias", "schedule.no_decay=bias: must be a list of names, as in [norm,bias]"),
        ("data.mean=[a,b,c]", "data.mean[0]=a: must be a number"),
    ):
        with pytest.raises(UserError) as caught:
            composed("data.root=null", override)
        assert str(caught.value) == line
