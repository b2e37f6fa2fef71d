"""The documentation: every page builds, every link leads somewhere, every named test exists, the notebook runs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import nbformat
import pytest
import yaml
from commands import ROOT, call, composed, patience
from nbclient import NotebookClient
from omegaconf import ListConfig, OmegaConf

from attn.config import groups

sys.path.insert(0, str(ROOT / "scripts"))
from pages import attentions, figure, markup, recipes, site

PAGES = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if ".venv" not in path.parts)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files(path: Path) -> None:
    """Anchors are checked where the site is built."""
    text = markup.FENCE.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", text):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_named_tests_exist() -> None:
    found = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "complaints.md").read_text())
    assert len(found) >= 20
    for file, name in found:
        assert (ROOT / file).is_file(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    made = call(["scripts/docs.py", str(tmp_path / "build")])
    assert made.returncode == 0, made.stderr
    built = call(["-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(tmp_path / "build" / "mkdocs.yml")])
    assert built.returncode == 0, built.stdout + built.stderr
    page = (tmp_path / "build" / "site" / "attentions" / "ba.html").read_text()
    assert "<math" in page
    assert 'class="slot"' in page
    assert "attention.block.reduction" in page
    assert "28,706,376" in page
    assert "ba_net/2/" in page
    assert "$$" not in page
    again = call(["scripts/docs.py", str(tmp_path)])
    assert again.returncode == 2
    assert "exists and is not a site" in again.stderr


def test_the_options_of_a_page_are_those_of_the_yaml() -> None:
    """Each is a path that the command line takes, with its default."""
    for path in sorted((ROOT / "configs" / "attention").glob("*.yaml")):
        content = OmegaConf.load(path)
        found = attentions.options(path.stem)
        for option in found:
            value = OmegaConf.select(content, option.path)
            shown = yaml.safe_load(option.default)
            assert (OmegaConf.to_container(value) if isinstance(value, ListConfig) else value) == shown, option
        named = sum(len(node) for node in _mappings(yaml.safe_load(path.read_text())))
        assert len(found) == named, path.stem


def _mappings(node: object) -> Iterator[list[str]]:
    """The options of every mapping in a yaml: keys other than `_target_` whose values are no mappings or lists of them."""
    if isinstance(node, dict):
        inner = {key: child for key, child in node.items() if any(True for _ in _mappings(child))}
        yield [key for key in node if key not in inner and key != "_target_"]
        for child in inner.values():
            yield from _mappings(child)
    elif isinstance(node, list):
        for child in node:
            yield from _mappings(child)


@pytest.mark.parametrize("name", groups.names("schedule"))
def test_the_command_of_a_recipe_is_one_that_train_takes(name: str) -> None:
    command = next(line for line in recipes.table().splitlines() if line.endswith(f" schedule={name}"))
    composed(*command.removeprefix("python train.py ").split())
    assert name in recipes.EXAMPLES or recipes.USUAL in command


def test_examples_are_of_recipes_that_exist() -> None:
    assert set(recipes.EXAMPLES) <= set(groups.names("schedule"))


def test_a_generated_page_keeps_its_pictures() -> None:
    old, new = PurePosixPath("docs/recipes.md"), PurePosixPath("recipes.md")
    page = site._page((ROOT / old).read_text(), old, new, {str(old): str(new)})
    shown = re.findall(r"!\[[^\]]+\]\((\S+)\)", page)
    assert shown == [f"images/schedule_{name}.svg" for name in groups.names("schedule")]


def test_arguments_are_read_from_the_docstring() -> None:
    class Documented:
        """Something.

        Args:
            first, second: two of them,
                over two lines.
            third: one: with a colon.

        Raises:
            ValueError: never.
        """

    assert attentions.arguments(Documented) == {
        "first": "two of them, over two lines.",
        "second": "two of them, over two lines.",
        "third": "one: with a colon.",
    }


def test_formulas_are_typeset_outside_code_alone() -> None:
    text = markup.typeset("$$ w = \\sigma(\\mathrm{gap}(x)) $$\n```text\n$$ x $$\n```\n")
    assert text.startswith("<math")
    assert "<mtext>gap</mtext>" in text
    assert "```text\n$$ x $$\n```" in text


def test_links_follow_the_pages_that_move() -> None:
    moved = {"README.md": "index.md", "docs/keys.md": "keys.md", "docs/tables/ba_net.md": "tables/ba_net.md"}
    text = "[keys](docs/keys.md#data) [a](LICENSE) [b](https://example.org) `[c](docs/keys.md)`"
    page = markup.relink(text, PurePosixPath("README.md"), PurePosixPath("index.md"), moved)
    assert page.startswith("[keys](keys.md#data) a (`LICENSE`) [b](https://example.org)")
    back = markup.relink(
        "[start](../../README.md)", PurePosixPath("docs/tables/ba_net.md"), PurePosixPath("tables/ba_net.md"), moved
    )
    assert back == "[start](../index.md)"


@pytest.mark.parametrize(
    ("slot", "reads", "state"),
    [("block", "all", "x"), ("block", "input", None), ("conv", "last", "x"), ("stage", "output", None)],
)
def test_pictures_of_slots_are_whole(slot: str, reads: str, state: str | None) -> None:
    from xml.etree import ElementTree

    drawing = ElementTree.fromstring(figure.picture(slot, reads, state, "a<b"))
    width = float(drawing.attrib["viewBox"].split()[2])
    texts = [element.text for element in drawing.iter("text")]
    assert "a<b" in texts
    assert state is None or f"state: {state}" in texts
    for box in drawing.iter("rect"):
        assert float(box.attrib["x"]) >= 0
        assert float(box.attrib["x"]) + float(box.attrib["width"]) <= width


def test_every_page_is_in_the_navigation() -> None:
    content = yaml.safe_load(site._configuration(ROOT))
    named = set(re.findall(r"[\w/]+\.md", json.dumps(content["nav"])))
    pages = {str(new) for new in site._files(ROOT).values() if new.suffix == ".md"}
    assert pages == {page for page in named if not page.startswith("attentions/")}


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell runs and prints what the page shows."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(ROOT / "docs" / "write_your_own.ipynb", 4)
    shown = [
        "".join(output["text"] for output in cell.get("outputs", [])) for cell in book.cells if cell.cell_type == "code"
    ]
    NotebookClient(book, timeout=patience(300), resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [
        "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout")
        for cell in book.cells
        if cell.cell_type == "code"
    ]
    assert printed == shown
