"""Writes the whole site: copied pages, generated pages, and the configuration that names them all."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from attn.errors import UserError
from attn.models.create import list_attentions
from pages import attentions, backbones, markup, recipes

OWNED = ".made_by_docs.py"  # marks a directory that may be replaced
# Pages at the top of the repository, with their paths on the site.
ABOVE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# What replaces a mark in a page of docs/, such as <!-- generated: recipes -->.
GENERATED = {"recipes": recipes.table, "backbones": backbones.table}


def write(root: Path, out: Path) -> int:
    """Writes OUT/docs and OUT/mkdocs.yml, and returns the number of pages.

    Args:
        root: the repository.
        out: the directory; replaced, unless it holds something else.

    Raises:
        UserError: `out` is a file, or a directory that this function has not made.
    """
    if out.exists() and not (out / OWNED).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a site: remove it, or choose another directory")
    files = _files(root)
    moved = {str(old): str(new) for old, new in files.items()}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / OWNED).touch()
    docs = out / "docs"
    for old, new in files.items():
        target = docs / new
        target.parent.mkdir(parents=True, exist_ok=True)
        if old.suffix == ".md":
            target.write_text(_page((root / old).read_text(), old, new, moved))
        elif old.suffix == ".ipynb":
            target.write_text(_page(markup.notebook(root / old), old, new, moved))
        else:
            shutil.copyfile(root / old, target)
    for path, content in {**attentions.write(root / "docs"), **recipes.pictures()}.items():
        (docs / path).parent.mkdir(parents=True, exist_ok=True)
        (docs / path).write_text(content)
    (out / "mkdocs.yml").write_text(_configuration(root))
    return sum(1 for _ in docs.rglob("*.md"))


def _files(root: Path) -> dict[PurePosixPath, PurePosixPath]:
    """Every file that the site copies: its path in the repository and on the site."""
    found = {PurePosixPath(old): PurePosixPath(new) for old, new in ABOVE.items()}
    for path in sorted((root / "docs").rglob("*")):
        if path.is_file() and path.suffix in (".md", ".ipynb", ".svg", ".png", ".jpg", ".css", ".html"):
            old = PurePosixPath(path.relative_to(root).as_posix())
            new = old.relative_to("docs")
            found[old] = new.with_suffix(".md") if new.suffix == ".ipynb" else new
    return found


def _page(text: str, old: PurePosixPath, new: PurePosixPath, moved: dict[str, str]) -> str:
    text = markup.relink(text, old, new, moved)
    for name, make in GENERATED.items():  # their links are those of the site already
        mark = f"<!-- generated: {name} -->"
        if mark in text:
            text = text.replace(mark, make())
    return markup.typeset(text)


def _configuration(root: Path) -> str:
    """mkdocs.yml with the pages of the attentions and of the studies' results in its navigation."""
    content: dict[str, Any] = yaml.safe_load((root / "mkdocs.yml").read_text())
    for section in content["nav"]:
        if "Attentions" in section:
            section["Attentions"] = ["attentions/index.md", *(f"attentions/{name}.md" for name in list_attentions())]
        for entry in section.get("Results", []):
            if "Results of the studies" in entry:
                pages = sorted((root / "docs" / "results").glob("*.md"))
                entry["Results of the studies"] = [f"results/{page.name}" for page in pages]
    return yaml.safe_dump(content, sort_keys=False)
