"""Which keys may differ when a run is continued: all others are refused."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from attn.config.schema import Config, Data, Logger, Schedule
from attn.runs import directory

# What a run computes does not depend on these, up to the rounding of another device.
MAY_DIFFER = {
    "run_dir", "resume", "force", "device", "channels_last", "compile", "grad_checkpointing", "deterministic", "nonfinite",
    "max_skipped", "dist_timeout", "log_every", "save_every_steps", "save_every_minutes", "save_error", "pretrained", "init",
    "attention_name", "data.root", "data.workers", "data.name", "data.on_error", "schedule.name", "logger.csv",
    "logger.plot", "logger.wandb", "logger.wandb_project", "logger.wandb_mode",
}  # fmt: skip
RUN = Config({"name": "resnet50", "width": 1}, {"block": {"reduction": 4}}, Data(), Schedule(), Logger())


def keys(node: Any, prefix: str = "") -> list[str]:
    """Every key of the schema, dotted."""
    found = []
    for field in fields(node):
        value = getattr(node, field.name)
        found += keys(value, f"{field.name}.") if is_dataclass(value) else [prefix + field.name]
    return found


def changed(cfg: Config, key: str) -> Config:
    """With another value for one key."""
    group, _, name = key.rpartition(".")
    if group:
        return replace(cfg, **{group: changed_field(getattr(cfg, group), name)})
    return changed_field(cfg, name)


def changed_field(node: Any, name: str) -> Any:
    kind, value = next(field.type for field in fields(node) if field.name == name), getattr(node, name)
    others = {"bool": not value, "str": "another", "int": 7, "float": 0.75, "dict[str, Any]": {"name": "another"}}
    others |= {"list[float]": [0.75, 0.8], "list[int]": [7], "list[str]": ["bias"]}
    return replace(node, **{name: others[kind.removesuffix(" | None")]})


@pytest.mark.parametrize("key", keys(RUN))
def test_only_what_changes_no_result_may_differ(key: str) -> None:
    found = directory.differences(RUN, changed(RUN, key))
    if key in MAY_DIFFER:
        assert found == []
    else:
        assert found
        assert all(line.startswith(key) for line in found)


def test_the_list_names_keys_that_exist() -> None:
    assert set(keys(RUN)) >= MAY_DIFFER


@pytest.mark.parametrize("curve", ["step", "constant"])
def test_the_length_may_differ_where_no_rate_depends_on_it(curve: str) -> None:
    run = replace(RUN, schedule=replace(RUN.schedule, curve=curve))
    assert directory.differences(run, changed(run, "schedule.epochs")) == []
    assert directory.differences(run, changed(run, "schedule.lr")) == ["schedule.lr: 0.1 -> 0.75"]


def test_a_key_that_is_new_or_gone_is_a_difference() -> None:
    wider = replace(RUN, backbone=RUN.backbone | {"depth": 3})
    assert directory.differences(RUN, wider) == ["backbone.depth: None -> 3"]
    assert directory.differences(wider, RUN) == ["backbone.depth: 3 -> None"]
