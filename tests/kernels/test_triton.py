"""The Triton form where there is no GPU: its values in Triton's interpreter, what its kernels are compiled to, and who imports it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, call_fresh

from attn.kernels import cuda as package
from attn.kernels import form_here, fused_devices, missing
from attn.kernels.cuda import form, scaled_conv

# The files with kernels.
KERNELS = ("activations", "maps", "vectors", "convolutions")
CACHES = (form.kernels, scaled_conv.kernels)


def test_kernels_are_their_definition_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    done = call_fresh(["tests/kernels/interpreted.py"], env={"TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": equal") == 4


# --- Compiled for a GPU that is not here.


class Compiled:
    """In the place of a form's `start`: compiles each kernel for a GPU and keeps its PTX by name, and runs nothing."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.ptx: dict[str, str] = {}

    def maps(self, module: int, name: str, _y: Any, _grid: Any, *arguments: Any, **constants: Any) -> None:
        self.compile(getattr(form.kernels()[module], name), arguments, constants)

    def convolutions(self, name: str, _x: Any, _grid: Any, *arguments: Any, **constants: Any) -> None:
        self.compile(getattr(scaled_conv.kernels(), name), arguments, constants)

    def compile(self, kernel: Any, arguments: Any, constants: dict[str, Any]) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        options = {name: constants.pop(name) for name in list(constants) if name.startswith("num_")}
        values = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        types = {torch.float32: "*fp32", torch.bfloat16: "*bf16", float: "fp32", int: "i32"}
        signature, fixed, aligned = {}, {}, {}
        for i, parameter in enumerate(kernel.params):
            value = values[parameter.name]
            free = not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (free and type(value) is int and value == 1):
                signature[parameter.name], fixed[(i,)] = "constexpr", value
                continue
            signature[parameter.name] = types[value.dtype if isinstance(value, torch.Tensor) else type(value)]
            if isinstance(value, torch.Tensor) or (free and type(value) is int and value % 16 == 0):
                aligned[(i,)] = [["tt.divisibility", 16]]
        try:
            source = ASTSource(kernel, signature, constexprs=fixed, attrs=aligned)
        except TypeError:  # before Triton 3.3
            pytest.skip("this Triton describes kernels in another way")
        built = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=options)
        self.ptx[kernel.__name__] = built.asm["ptx"]


def test_kernels_are_compiled_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton.backends.nvidia", reason="Triton is not installed, or has no compiler for NVIDIA")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = Compiled(90)
    monkeypatch.setattr(form, "start", compiled.maps)
    monkeypatch.setattr(scaled_conv, "start", compiled.convolutions)
    y = torch.zeros(2, 128, 8, 8, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    vector, weights = torch.zeros(128), torch.zeros(2, 128)
    mean, variance, norm, raw = form.squeeze(y, vector, vector, None, None, None, 1e-5, "none")
    form.scale(y, norm, weights, y, "none", True)
    masked, link, _ = form.scale_backward(y, y, y, norm, weights, None, "none", True)
    form.squeeze_backward(masked, link, y, norm, raw, mean, variance, None, True, "none")
    form.norm_act(y, vector, vector, None, None, 1e-5, "silu", True)
    form.norm_act_backward(y, mean, y, norm, True, "silu")
    for name in ("moments", "activate", "scale", "scale_sums", "activate_sums", "backward"):
        assert "ld.global.v4.b32" in compiled.ptx[name], name  # eight values at once
    filters, scale, settings = torch.zeros(64, 128, 3, 3, dtype=y.dtype), torch.zeros(2, 64, 3, 3), [(1, 1)] * 3
    grad = scaled_conv.scaled_conv(y, filters, scale, *settings, 1)
    scaled_conv.scaled_conv_backward(grad, y, filters, scale, *settings, 1, True)
    for name in ("forward", "backward_input", "backward_filters"):
        assert "cp.async" in compiled.ptx[name], name  # loaded during the products
        assert "wgmma" in compiled.ptx[name], name


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports, by their full names, and what it imports from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


# --- Who imports it, and what is said where it cannot serve.


def test_only_kernels_import_triton_and_only_functions_import_kernels() -> None:
    for path in (ROOT / "attn").rglob("*.py"):
        tree = ast.parse(path.read_text())
        if path.stem in KERNELS and path.parent.name == "cuda":
            continue
        assert not any(module.partition(".")[0] == "triton" for module in imports(tree)), path
        outside = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
        assert not {f"{package.__name__}.{name}" for name in KERNELS} & set(imports(outside)), path


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in KERNELS:
        monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", None)
        monkeypatch.delattr(package, name, raising=False)
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


def test_without_triton_the_reference_serves(without_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.randn(2, 16, 3, 3)
    assert not form.serves(y)
    assert not scaled_conv.serves(y, torch.randn(16, 16, 3, 3), 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with pytest.raises(
        ValueError, match="kernels=fused: Triton is not installed here; install it with pip install triton, or"
    ):
        form_here("fused", "cuda")
    assert form_here("auto", "cuda") == "reference"
    assert "cuda" not in fused_devices("auto")


def test_what_a_gpu_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert missing("cuda") == "torch sees no CUDA device here"
    with pytest.raises(ValueError, match="kernels=fused: torch sees no CUDA device here, or use kernels=auto"):
        form_here("fused", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (6, 0))
    assert "Tesla P100 is older than compute capability 7.0" in str(missing("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    assert form_here("auto", "cuda") == form_here("fused", "cuda") == "fused"
    assert "cuda" in fused_devices("fused")
