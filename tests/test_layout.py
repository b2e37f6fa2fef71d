"""The rooms of the package: imports run downward only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from commands import ROOT

PACKAGE = ROOT / "attn"
# Each may import those before it.
ROOMS = [
    "errors",
    "rng",
    "tabulate",
    "console",
    "attention",
    "kernels",
    "modules",
    "backbones",
    "config",
    "models",
    "timm",
    "distributed",
    "data",
    "build",
]
ROOMS += ["runs", "evaluation", "export", "tables", "analysis", "training", "report", "studies", "eval", "train"]


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, by their full names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_is_listed() -> None:
    found = {room(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert found == set(ROOMS)


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_those_below_it(name: str) -> None:
    below = ROOMS[: ROOMS.index(name) + 1]
    for path in sorted(PACKAGE.rglob("*.py")):
        if room(path) != name:
            continue
        for module in imports(path):
            top, _, rest = module.partition(".")
            assert top != "detection", f"{path} imports {module}"
            if top == "attn" and rest and not rest.startswith("__"):
                assert rest.partition(".")[0] in below, f"{path} imports {module}"


def test_no_file_imports_one_that_imports_it() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in ("attn", "detection")
        for path in (ROOT / folder).rglob("*.py")
    }
    del files["attn"]  # the public names, and the version
    graph = {}
    for name, path in files.items():
        names = [module if module in files else module.rpartition(".")[0] for module in imports(path)]
        graph[name] = {other for other in names if other in files and other != name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_config_and_the_command_line_need_no_torch() -> None:
    for path in (PACKAGE / "config").glob("*.py"):
        assert not any(module.partition(".")[0] in ("torch", "timm") for module in imports(path)), path


def test_every_room_says_what_may_be_put_there() -> None:
    for folder in PACKAGE.iterdir():
        if (folder / "__init__.py").exists():
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_the_loop_stays_readable() -> None:
    assert len((PACKAGE / "training" / "loop.py").read_text().splitlines()) < 200
