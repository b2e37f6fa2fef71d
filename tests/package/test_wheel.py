"""The wheel: what is in it, and that it trains and evaluates without the repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from commands import NARROW, ROOT, patience

import attn


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the project's own backend, which is installed: nothing is downloaded."""
    pytest.importorskip("hatchling", reason="needs hatchling: pip install 'attn[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)], ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel in it, and with this environment's other packages."""
    environment = tmp_path_factory.mktemp("wheel") / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    options = ["--quiet", "--disable-pip-version-check", "install", "--no-deps", "--no-index"]
    run([sys.executable, "-m", "pip", "--python", str(python), *options, str(wheel)], ROOT)
    # A path in a .pth file is only a path: an editable attn there, which is a .pth file itself, is not seen.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return python.parent


def run(command: list[str], cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=patience(300), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_code_configs_types_and_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert f"\nVersion: {attn.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert any(re.fullmatch(r"attn-.*\.dist-info/licenses/LICENSE", name) for name in names)
    assert "attn/py.typed" in names
    assert not [name for name in names if not re.match(r"attn/|detection/|attn-.*\.dist-info/", name)]
    detection = {str(path.relative_to(ROOT)) for path in (ROOT / "detection").rglob("*.py")}
    assert detection == {name for name in names if name.startswith("detection/")}
    assert any(name.startswith("detection/configs/rows/") for name in detection)
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs == {name.removeprefix("attn/") for name in names if name.startswith("attn/configs/")}


@pytest.mark.slow
def test_the_wheel_trains_and_evaluates_in_another_folder(installed: Path, tmp_path: Path) -> None:
    found = run(
        [str(installed / "python"), "-c", "import attn; print(attn.__file__, len(attn.list_attentions()))"], tmp_path
    )
    path, attentions = found.split()
    assert Path(path).is_relative_to(installed.parent)
    assert int(attentions) == len(attn.list_attentions())

    run([str(installed / "attn-train"), *NARROW, "attention=se", "schedule.batch_size=256"], tmp_path)
    (folder,) = (tmp_path / "runs").glob("resnet10t-se-digits*/seed0")
    (row,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    run([str(installed / "attn-eval"), f"checkpoint={folder / 'last.pt'}"], tmp_path)
    scores = json.loads((folder / "eval-last.json").read_text())
    assert scores["top1"] == row["val_top1"]


@pytest.mark.slow
def test_the_commands_take_what_the_scripts_take(installed: Path, tmp_path: Path) -> None:
    composed = run([str(installed / "attn-train"), "attention=ba", "--cfg", "job"], tmp_path)
    assert composed == run([sys.executable, str(ROOT / "train.py"), "attention=ba", "--cfg", "job"], ROOT)
    wrong = subprocess.run(
        [installed / "attn-train", "attention=sse"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: unknown attention 'sse': did you mean 'se'? ")
