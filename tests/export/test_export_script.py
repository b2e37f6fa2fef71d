"""scripts/export.py: files that other programs can use, and one line for what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT, SMALL, call, composed
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

import attn
from attn.config import parse
from attn.data.transforms import eval_transform
from attn.runs import convert, load

NEEDS = "pip install 'attn[export]'"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
Export = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with attention and class names, whose norms are not those of a new one."""
    path = tmp_path_factory.mktemp("export") / "best.pt"
    overrides = [*SMALL, "attention=ba", "attention_name=ba", "data=digits", "data.image_size=32", "data.test_resize=36"]
    config = composed(*overrides)
    torch.manual_seed(0)
    model = load.build(config)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    content = {"model": model.state_dict(), "config": parse.to_dict(config), "classes": [f"digit {i}" for i in range(10)]}
    convert.save(path, content)
    return path


@pytest.fixture
def export(in_process: Any, checkpoint: Path, tmp_path: Path) -> Export:
    def run(*arguments: str) -> subprocess.CompletedProcess:
        given = {argument.partition("=")[0] for argument in arguments}
        defaults = {"checkpoint": checkpoint, "format": "pt2", "out": tmp_path / "best.pt2"}
        return in_process(
            ["scripts/export.py", *(f"{key}={value}" for key, value in defaults.items() if key not in given), *arguments]
        )

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 71, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    return image


def consumed(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, known: dict[str, Any]) -> dict[str, Any]:
    """The variables of the page's consumer of a file, after it ran in the file's folder."""
    monkeypatch.chdir(folder)
    (code,) = [block for block in BLOCKS if f'"{name}"' in block]
    assert "attn." not in code.replace("attn.json", "")
    exec(compile(code, name, "exec"), known)
    return known


def expected(checkpoint: Path, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """The prepared image, and the network's scores for it."""
    data = load.load_config(attn.runs.checkpoint.read(checkpoint), checkpoint).data
    pixels = eval_transform(data).normalised(image)[None]
    with torch.no_grad():
        return pixels, attn.load(checkpoint)(pixels)


def expect_meaning(about: dict[str, Any]) -> None:
    assert about["classes"] == [f"digit {i}" for i in range(10)]
    assert about["mean"] == [0.305, 0.305, 0.305]
    assert (about["image_size"], about["resize"], about["interpolation"]) == (32, 36, "bilinear")
    assert (about["backbone"], about["attention"], about["batch_size"]) == ("resnet10t", "ba", None)


def test_onnx_and_its_consumer(
    export: Export, checkpoint: Path, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=NEEDS)
    done = export("format=onnx", f"out={tmp_path / 'best.onnx'}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"best\.onnx: onnx, \d+\.\d MB, any batch, equal to the checkpoint up to \de-0\d\n$", done.stdout)
    assert done.stderr == ""
    found = consumed(tmp_path, monkeypatch, "best.onnx", {})
    pixels, scores = expected(checkpoint, picture)
    expect_meaning(found["about"])
    torch.testing.assert_close(torch.from_numpy(found["pixels"]), pixels, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(found["scores"]), scores, rtol=1e-4, atol=1e-4)
    assert capsys.readouterr().out == f"digit {int(scores.argmax())}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.onnx", "image.png"]


def test_pt2_and_its_consumer(
    export: Export, checkpoint: Path, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export().returncode == 0
    pixels, scores = expected(checkpoint, picture)
    found = consumed(tmp_path, monkeypatch, "best.pt2", {"pixels": pixels.numpy()})
    expect_meaning(found["about"])
    torch.testing.assert_close(found["scores"], scores, rtol=1e-4, atol=1e-4)
    assert found["model"](torch.randn(5, 3, 32, 32)).shape == (5, 10)


@pytest.mark.slow
def test_aoti_and_its_consumer(
    export: Export, checkpoint: Path, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attn.kernels.build import compiler

    if compiler() is None:
        pytest.skip("no C++ compiler")
    done = export("format=aoti", f"out={tmp_path / 'best.aoti.pt2'}")
    assert done.returncode == 0, done.stderr
    pixels, scores = expected(checkpoint, picture)
    found = consumed(tmp_path, monkeypatch, "best.aoti.pt2", {"pixels": pixels.numpy()})
    expect_meaning(found["about"])
    torch.testing.assert_close(found["scores"], scores, rtol=1e-4, atol=1e-4)


def test_int8_and_its_consumer(
    export: Export, checkpoint: Path, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao", reason=NEEDS)
    done = export("format=int8", f"out={tmp_path / 'best.int8.pt2'}", "calibration=40")
    assert done.returncode == 0, done.stderr
    assert re.search(r"any batch, top-1 of the validation images \d+\.\d\d % \(float32: \d+\.\d\d %\)\n$", done.stdout)
    assert (tmp_path / "best.int8.pt2").stat().st_size < 0.5 * checkpoint.stat().st_size
    pixels, scores = expected(checkpoint, picture)
    found = consumed(tmp_path, monkeypatch, "best.int8.pt2", {"pixels": pixels.numpy()})
    expect_meaning(found["about"])
    assert found["about"]["calibration_images"] == 40
    error = (found["scores"] - scores).norm() / scores.norm()
    assert 0 < error < 0.3


def test_a_fixed_batch_and_another_size(export: Export, tmp_path: Path) -> None:
    assert export("batch_size=2", "image_size=40").returncode == 0
    model = torch.export.load(tmp_path / "best.pt2").module()
    assert model(torch.randn(2, 3, 40, 40)).shape == (2, 10)
    with pytest.raises(AssertionError):
        model(torch.randn(3, 3, 40, 40))


def test_a_file_is_not_replaced_without_force(export: Export, tmp_path: Path) -> None:
    (tmp_path / "best.pt2").write_text("mine")
    done = export()
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"error: {tmp_path / 'best.pt2'} exists: name another file with out=, or replace it with force=true\n"
    )
    assert (tmp_path / "best.pt2").read_text() == "mine"
    assert export("force=true").returncode == 0
    torch.export.load(tmp_path / "best.pt2")


def test_nothing_is_left_where_it_fails(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attn.export.program.read_pt2", lambda path: lambda images: torch.zeros(len(images), 10))
    done = export()
    assert done.returncode == 2
    assert re.match(r"error: format=pt2 differs from the network by .*: it was not kept\n$", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["format=tflite"], "format=tflite: unknown value 'tflite': choose from onnx, pt2, aoti, int8"),
        (["checkpoint=absent.pt"], "absent.pt"),
        (["batch_size=0"], "batch_size=0: must be greater than 0"),
        (["image_size=0"], "image_size=0: must be greater than 0"),
        (["out=."], "out=. is a folder; name a file, such as model.pt2"),
        (["out=best.onnx"], "out=best.onnx: a file of format=pt2 must end in .pt2, or torch does not load it"),
        (["data=cifar100"], "data=cifar100 has 100 classes, the checkpoint was trained on 10 (digits)"),
        (["calibration=many"], "calibration"),
        (["quality=high"], "quality"),
    ],
)
def test_one_line_for_a_mistake(export: Export, tmp_path: Path, arguments: list[str], line: str) -> None:
    done = export(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert line in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_named(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert export("format=int8").stderr == "error: format=int8 needs torchao: pip install 'attn[export]'\n"
    assert "needs onnx, onnxscript, onnxruntime: pip install" in export("format=onnx").stderr


def test_the_names_of_classes_without_names_are_numbers() -> None:
    from attn.export.about import about

    data = composed(*SMALL, "attention=se", "data=cifar100").data
    found = about(data, None, 64, 8, "resnet18", "se", versions={})
    assert found.classes == [str(i) for i in range(100)]
    assert (found.image_size, found.resize) == (64, round(data.test_resize * 64 / data.image_size))


def test_help_needs_no_torch() -> None:
    code = "import sys; sys.argv = ['scripts/export.py', '--help']; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "  calibration=256  for int8, training images whose activations set the ranges" in done.stdout
    assert (
        call(["scripts/export.py"]).stderr
        == "error: checkpoint must be set, as in checkpoint=runs/resnet50-ba-digits/seed0/best.pt\n"
    )
