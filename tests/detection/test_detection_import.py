"""Without the extra: one line that says what to install; with anything else, nothing else."""

from __future__ import annotations

import subprocess
import sys

from commands import ROOT, patience


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=patience(120)
    )


def test_import_without_mmdetection_says_how_to_install_it() -> None:
    result = python("import sys; sys.modules['mmcv'] = sys.modules['mmdet'] = None\nimport detection")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: detection needs MMDetection")
    assert "pip install 'attn[detection]'" in last


def test_import_with_half_an_mmcv_says_so() -> None:
    code = "import sys, types; m = types.ModuleType('mmcv'); m.__path__ = []; sys.modules['mmcv'] = m\nimport detection"
    result = python(code)
    assert result.returncode == 1
    assert "detection needs MMDetection with mmcv (" in result.stderr.strip().splitlines()[-1]


def test_attn_does_not_import_detection() -> None:
    result = python(
        "import attn, sys; attn.create_model; print(any(m.split('.')[0] in ('mmdet', 'detection') for m in sys.modules))"
    )
    assert result.stdout.strip() == "False", result.stderr
