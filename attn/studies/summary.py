"""The results of all studies in one table, for README.md: written between two marks, so that a test can tell whether it is true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from attn.errors import UserError
from attn.studies import study as studies
from attn.studies import table
from attn.studies.outcome import read
from attn.studies.study import Study
from attn.tabulate import markdown_lines

BEGIN = "<!-- results: written by scripts/results.py readme -->"
END = "<!-- end of results -->"


def section(results: Path) -> str:
    """The table and what it allows one to say, of every study with a page.

    Args:
        results: the folder with the pages and their raw metrics; links are as from the root of the repository.
    """
    chosen = [studies.load(page.stem) for page in sorted(results.glob("*.md"))]
    found: list[tuple[Study, table.Finished]] = [(study, read(study, results / "raw")) for study in chosen]
    lines = markdown_lines(list(_rows(found)), right=range(1, 1 + len(found)))
    told = [
        f"**[{study.title}](docs/results/{study.name}.md)** ({table.seeds_told(study, reached)}):\n\n"
        + table.conclusion(study, table.compared(study, reached, study.scores[0]))
        for study, reached in found
    ]
    return "\n\n".join(["\n".join(lines), *told])


def replaced(text: str, content: str) -> str:
    """A page with `content` between the two marks.

    Raises:
        UserError: a mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"README.md: the results go between the lines {BEGIN!r} and {END!r}, and one is missing")
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def _rows(found: Sequence[tuple[Study, table.Finished]]) -> Iterator[tuple[str, ...]]:
    yield ("method", *(f"[{study.name}](docs/results/{study.name}.md): {study.score}" for study, _ in found))
    differences = [table.compared(study, reached, study.scores[0]) for study, reached in found]
    for method in dict.fromkeys(method for study, _ in found for method in study.methods):
        cells = []
        for (study, reached), of_study in zip(found, differences, strict=True):
            scores = [run.scores[study.scores[0]] for run in reached.get(method, {}).values()]
            cell = table.score_text(scores, study.scores[0]) if scores else ""
            if method in of_study:
                cell += f" ({of_study[method].mean:+.2f})"
                cell = f"**{cell}**" if of_study[method].verdict in ("helps", "hurts") else cell
            cells.append(cell)
        yield (f"`{method}`", *cells)
