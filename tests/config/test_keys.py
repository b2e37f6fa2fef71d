"""The help and the reference of keys say what the schema says."""

from __future__ import annotations

import subprocess
import sys

from commands import ROOT, call

from attn.config import reference
from attn.config.evaluation import Request
from attn.config.schema import Config, keys


def test_every_key_has_a_meaning() -> None:
    for schema in (Config, Request):
        for key in keys(schema):
            assert key.meaning, key.name
            assert not key.meaning.endswith("."), key.name


def test_the_page_of_keys_is_up_to_date() -> None:
    assert (ROOT / "docs" / "keys.md").read_text() == reference.markdown(), "run python scripts/reference.py"


def test_help_lists_every_key_and_the_chosen_attention_without_torch() -> None:
    shown = call(["train.py", "attention=dca_se", "--help"]).stdout
    for key in keys(Config):
        assert key.name in ("backbone", "attention") or f"  {key.name}=" in shown, key.name
    assert "papers" not in shown
    assert "connection: direct" in shown
    shown = call(["eval.py", "-h"]).stdout
    for key in keys(Request):
        assert f"  {key.name}=" in shown, key.name
    code = "import sys; from attn.config import command_line, evaluation, reference; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_stops_quietly_with_its_reader() -> None:
    command = f"{sys.executable} train.py --help | head -1"
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr == ""
