"""The mutants of scripts/mutants.yaml still fit the code that they change, and the tests that they name exist."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from commands import ROOT


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "scripts" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["mutants"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mutant_fits_the_code(mutants: ModuleType) -> None:
    found = mutants.load()
    assert len(found) >= 60
    assert mutants.problems(found) == []


def test_what_no_longer_fits_is_named(mutants: ModuleType) -> None:
    one = mutants.load()[0]
    changed = {
        "does not exist": replace(one, file="attn/nowhere.py"),
        "occurs 0 times": replace(one, old="no such text"),
        "are the same": replace(one, new=one.old),
        "no test": replace(one, tests=("tests/test_mutants.py::test_nothing",)),
    }
    for words, mutant in changed.items():
        (line,) = mutants.problems([mutant])
        assert line.startswith(f"{one.name}: ")
        assert words in line


def test_two_of_a_name_are_refused(mutants: ModuleType, tmp_path: Path) -> None:
    text = mutants.DATA.read_text()
    (tmp_path / "mutants.yaml").write_text(text + text.partition("\n- ")[2].join(["- ", ""]))
    with pytest.raises(ValueError, match="two mutants have the name"):
        mutants.load(tmp_path / "mutants.yaml")


@pytest.mark.parametrize(("body", "code"), [("assert VALUE == 1", 0), ("assert VALUE == 2", 1), ("while True: pass", 124)])
def test_a_copys_tests_see_the_copys_code(mutants: ModuleType, tmp_path: Path, body: str, code: int) -> None:
    copy = tmp_path / "copy"
    (copy / "attn").mkdir(parents=True)
    (copy / "attn" / "__init__.py").write_text("VALUE = 1\n")
    (copy / "test_it.py").write_text(f"from attn import VALUE\n\n\ndef test_it():\n    {body}\n")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import mutants; from pathlib import Path; copy = Path(sys.argv[2]);"
        "mutants.those_that_can_run(mutants.load());"
        "print(mutants.run_tests(copy, ['test_it.py::test_it'], copy.parent / 'output.txt', 10))"
    )
    result = mutants.subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "scripts"), str(copy)], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{code}\n", (tmp_path / "output.txt").read_text()
