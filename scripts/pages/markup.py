"""From the Markdown of the repository to that of the site: formulas, links out of docs/, notebooks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from latex2mathml.converter import convert

FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?\)")


def formula(latex: str) -> str:
    """A displayed formula as MathML, which browsers typeset without a script.

    Args:
        latex: words are in \\mathrm{...}; they become one upright word each.
    """
    return convert(re.sub(r"\\mathrm\{", r"\\text{", latex), display="block")


def typeset(text: str) -> str:
    """A page with each $$...$$ outside its code typeset."""
    return _outside_code(text, lambda part: FORMULA.sub(lambda match: formula(match[1].strip()), part))


def relink(text: str, old: PurePosixPath, new: PurePosixPath, moved: dict[str, str]) -> str:
    """A page with the relative links that it has on the site.

    Args:
        text: the page.
        old: its path in the repository.
        new: its path on the site.
        moved: path in the repository -> path on the site, of all files that the site holds. Links to others become plain
            text.
    """

    def target(match: re.Match[str]) -> str:
        path = os.path.normpath(old.parent / match[2])
        if path not in moved:
            return match[0]
        return f"{match[1]}{os.path.relpath(moved[path], new.parent)}{match[3] or ''})"

    def part(content: str) -> str:
        content = LINK.sub(target, content)
        return re.sub(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)", lambda match: _plain(match, new, moved), content)

    return _outside_code(text, part)


def _plain(match: re.Match[str], new: PurePosixPath, moved: dict[str, str]) -> str:
    """The link, or, where its target is not on the site, its text and path."""
    on_site = os.path.normpath(new.parent / match[2])
    return match[0] if on_site in moved.values() else f"{match[1]} (`{match[2].removeprefix('../')}`)"


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    parts: list[str] = []
    end = 0
    for fence in FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def notebook(path: Path) -> str:
    """A notebook as Markdown: its texts, its code, and what it printed."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            printed = "".join(output.get("text") or output.get("data", {}).get("text/plain", ""))
            if printed.strip():
                parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
