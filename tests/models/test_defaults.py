"""An option that a config lacks is its default: for resuming, and for finding runs of a table's row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import attn
from attn.attention import Attention, Site
from attn.config import groups, parse
from attn.errors import UserError
from attn.models.defaults import without_defaults
from attn.models.options import defaults_of
from attn.runs import checkpoint
from attn.runs.directory import differences
from attn.training.setup import find_checkpoint


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(groups.config_dir()), version_base="1.3"):
        name = next((o.partition("=")[2] for o in overrides if o.startswith("attention=")), "none")
        return compose("train", [f"attention_name={name}", "run_dir=runs", *overrides])


def before(cfg: DictConfig, *keys: str) -> DictConfig:
    """The config as it was before some options existed."""
    content: Any = OmegaConf.to_container(cfg)
    for key in keys:
        *path, last = key.split(".")
        node = content
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node[part]
        del node[last]
    return OmegaConf.create(content)


CASES = [
    ("dca_se", "attention.block.form", "equations", "attention.block.form: None -> equations"),
    ("dca_se", "attention.block.base.first_reduction", 4, "attention.block.base.first_reduction: None -> 4"),
    ("ba", "attention.block.q", 3, "attention.block.q: None -> 3"),
    ("ba_fca", "attention.block.q", 3, "attention.block.q: None -> 3"),  # an option of its base class
    ("ba", "attention.sites", "native", "attention.sites: None -> native"),
    ("ba2m", "attention.stage.inference", "softmax", "attention.stage.inference: None -> softmax"),
    ("ba2m", "attention.stage.branches", ["channel"], "attention.stage.branches: None -> ['channel']"),  # a tuple in Python
    ("aw", "attention.conv.every", 2, "attention.conv.every: None -> 2"),  # an option of `place`
    ("bam", "attention.stage.stages", [1, 2], "attention.stage.stages: None -> [1, 2]"),
]


@pytest.mark.parametrize(("attention", "key", "value", "difference"), CASES)
def test_a_new_option_with_its_default_is_no_difference_and_another_value_is(
    attention: str, key: str, value: Any, difference: str
) -> None:
    now = composed(f"attention={attention}")
    old = before(now, key)
    assert differences(parse.parse(old), parse.parse(now)) == []
    assert differences(parse.parse(now), parse.parse(old)) == []
    OmegaConf.update(now, key, value)
    assert differences(parse.parse(old), parse.parse(now)) == [difference]


def test_options_in_lists_of_attentions_have_defaults_too() -> None:
    now = composed("attention=bam_ba2m")
    old = before(now, "attention.stage.parts.1.inference", "attention.stage.parts.0.stages")
    assert differences(parse.parse(old), parse.parse(now)) == []
    now.attention.stage.parts[1].inference = "sar"
    (difference,) = differences(parse.parse(old), parse.parse(now))
    assert difference.startswith("attention.stage.parts: ")


def test_values_are_shown_as_they_were_given() -> None:
    sixteen, eight = composed("attention=se"), composed("attention=se", "attention.block.reduction=8")
    assert differences(parse.parse(sixteen), parse.parse(eight)) == ["attention.block.reduction: 16 -> 8"]


@pytest.mark.parametrize(
    ("option", "same"),
    [
        ("++backbone.drop_path_rate=0.0", True),
        ("++backbone.drop_path_rate=0.1", False),
        ("++backbone.in_chans=3", True),
        ("++backbone.zero_init_last=true", False),  # of the variant, for all that its signature says
    ],
)
def test_a_backbones_rates_have_defaults(option: str, same: bool) -> None:
    found = differences(parse.parse(composed("backbone=resnet18")), parse.parse(composed("backbone=resnet18", option)))
    assert (found == []) == same


def test_the_rate_is_that_of_the_network() -> None:
    swin = {"name": "swin_tiny_patch4_window7_224"}
    assert without_defaults({**swin, "drop_path_rate": 0.1}, {})["backbone"] == swin
    assert without_defaults({**swin, "drop_path_rate": 0.0}, {})["backbone"] == {**swin, "drop_path_rate": 0.0}


def test_a_class_that_is_gone_keeps_all_its_options() -> None:
    for target in ("gone.module.Mine", "os.path.join", 3):
        attention = {"block": {"_target_": target, "reduction": 16}}
        assert without_defaults({"name": "resnet18"}, attention)["attention"] == attention


def test_true_is_not_one() -> None:
    mapping = {"block": {"_target_": "attn.modules.se.SE", "bias": 1}}
    assert without_defaults({"name": "resnet18"}, mapping)["attention"] == mapping


def test_defaults_are_those_that_reach_the_constructor() -> None:
    class Base(Attention):
        def __init__(self, site: Site, width: int = 4, act: str = "relu") -> None:
            super().__init__()

    class Passing(Base):
        def __init__(self, site: Site, act: str = "silu", **options: Any) -> None:
            super().__init__(site, act=act, **options)

    class Closed(Base):
        def __init__(self, site: Site, own: int = 1) -> None:
            super().__init__(site)

    assert defaults_of(Passing) == {"stages": None, "act": "silu", "width": 4}
    assert defaults_of(Closed) == {"stages": None, "own": 1}


def test_every_attention_of_the_project_can_drop_any_option_that_has_its_default() -> None:
    for name in attn.list_attentions():
        mapping = groups.load("attention", name)
        short = without_defaults({"name": "resnet18"}, mapping)["attention"]
        assert without_defaults({"name": "resnet18"}, short)["attention"] == short
        assert set(short) == {slot for slot in ("block", "conv", "stage") if mapping.get(slot)}, name


def test_a_run_from_before_an_option_existed_is_continued(tmp_path: Path) -> None:
    cfg = composed("attention=dca_se")
    old: Any = OmegaConf.to_container(before(cfg, "attention.block.form"), resolve=True)  # a file holds values
    checkpoint.save({"model": {}, "config": old}, tmp_path, best=False)
    assert find_checkpoint(parse.parse(cfg), tmp_path) == tmp_path / "last.pt"
    cfg.attention.block.form = "equations"
    with pytest.raises(UserError, match=r"attention\.block\.form: None -> equations"):
        find_checkpoint(parse.parse(cfg), tmp_path)
