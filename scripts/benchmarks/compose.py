"""The config of `train.py OVERRIDES`, for measurements."""

from __future__ import annotations

from hydra import compose, initialize_config_dir

from attn.config import parse
from attn.config.groups import config_dir
from attn.config.schema import Config


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return parse.parse(compose("train", ["attention_name=measured", "run_dir=measured", *overrides]))
