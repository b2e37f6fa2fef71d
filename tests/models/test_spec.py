"""From a name or a mapping to what goes into each slot."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import attn
from attn.config import groups, parse
from attn.models.spec import resolve_attention
from attn.modules.aw import AW
from attn.modules.ba2m import BA2M
from attn.modules.cbam import CBAM
from attn.modules.se import SE
from attn.runs.directory import differences


def test_a_name_is_resolved_into_slots_and_settings() -> None:
    spec = resolve_attention("aw_se")
    assert set(spec.filled) == {"conv", "block"}
    assert spec.block is not None
    assert spec.block.func is SE
    assert spec.block.keywords["reduction"] == 16
    assert (spec.sites, spec.position, spec.convs) == ("all", None, None)
    assert resolve_attention(None).filled == {}
    assert resolve_attention({"block": partial(SE, reduction=4), "sites": "native"}).sites == "native"


def test_an_unknown_slot_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown attention key 'blok': did you mean 'block'"):
        resolve_attention({"blok": SE})


def test_a_config_of_version_0_1_is_the_same_run(tmp_path: Path) -> None:
    """Its yamls held `_partial_: true` beside every `_target_`, at every depth."""
    with initialize_config_dir(str(groups.config_dir()), version_base="1.3"):
        now = compose("train", ["attention=dca_se", "attention_name=dca_se", f"run_dir={tmp_path}"])
    old = OmegaConf.create(OmegaConf.to_container(now))
    OmegaConf.update(old, "attention.block._partial_", True, force_add=True)
    OmegaConf.update(old, "attention.block.base._partial_", True, force_add=True)
    assert differences(parse.parse(old), parse.parse(now)) == []
    assert parse.parse(old).attention == parse.parse(now).attention


@pytest.mark.parametrize(
    ("attention", "line"),
    [
        ({"block": partial(CBAM, pool="min")}, "CBAM: pool='min'; choose from avg, max, avg.max"),
        ({"stage": partial(BA2M, branches=["spatial"])}, "branches=.'spatial'.; choose from channel, local_spatial"),
        ({"conv": partial(AW, form=["taps"])}, "AW: form=.'taps'.; choose from auto, grouped, taps, scale"),
    ],
)
def test_the_annotation_of_an_option_lists_its_choices(attention: dict, line: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=line):
        attn.create_model("resnet18", attention)
