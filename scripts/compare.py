"""One table of many runs, with mean and spread over seeds.

    python scripts/compare.py runs --format md --picture compare.png

Every folder below the given ones that holds a config.yaml and a metrics.jsonl is a run. Runs that differ in the seed alone
are one row; runs of one backbone, attention and data set that differ in more are labelled with the keys in which they
differ. `best` is the highest validation top-1 of a run and so is biased upwards a little; `last` is that of its last epoch.
Both are of the averaged weights where there are any. The spread is the sample standard deviation, in percentage points.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn import console, tabulate
from attn.config import scripts
from attn.errors import UserError
from attn.report.runs import Result as Result
from attn.report.runs import Row, find, gain, spread, table
from attn.runs.files import to_json
from attn.runs.outputs import expect_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cells(rows: list[Row]) -> list[list[str]]:
    """The table as text, its header first."""

    def score(values: list[float]) -> str:
        deviation = spread(values)
        return f"{statistics.mean(values):.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")

    text = [["data", "backbone", "attention", "params (M)", "runs", "best top-1 (%)", "last top-1 (%)", "gain"]]
    for row in rows:
        better = gain(row, rows)
        count = str(len(row.runs))
        if row.unfinished:
            count += (
                f" (+{row.unfinished} unfinished)"
                if row.unfinished < len(row.runs) or row.runs[0].finished
                else " unfinished"
            )
        text.append(
            [
                *(row.data, row.backbone, row.label, f"{row.parameters / 1e6:.2f}", count),
                *(score(row.best()), score(row.last()), "" if better is None else f"{better:+.2f}"),
            ]
        )
    return text


NUMBERS = range(3, 8)  # columns that are aligned to the right


def as_text(rows: list[Row]) -> str:
    return "\n".join(tabulate.text_lines(cells(rows), NUMBERS))


def as_markdown(rows: list[Row]) -> str:
    return "\n".join(tabulate.markdown_lines(cells(rows), NUMBERS))


def as_json(rows: list[Row]) -> str:
    return to_json(
        [
            {
                "data": row.data,
                "backbone": row.backbone,
                "attention": row.attention,
                "variant": row.variant,
                "parameters": row.parameters,
                "seeds": [result.cfg.seed for result in row.runs],
                "unfinished": row.unfinished,
                "best": {"mean": statistics.mean(row.best()), "std": spread(row.best()), "values": row.best()},
                "last": {"mean": statistics.mean(row.last()), "std": spread(row.last()), "values": row.last()},
                "gain": gain(row, rows),
                "run_dirs": [str(result.folder) for result in row.runs],
            }
            for row in rows
        ],
        indent=2,
    )


FORMATS: dict[str, Callable[[list[Row]], str]] = {"text": as_text, "md": as_markdown, "json": as_json}


LINE = 0.2  # inches between two labels


def picture(rows: list[Row]) -> Figure:
    """Last top-1 over parameters: a panel per data set, a colour per backbone; bars are the spread, dots the runs."""
    from matplotlib.figure import Figure  # seconds

    sets = list(dict.fromkeys(row.data for row in rows))
    longest = max(sum(row.data == data for row in rows) for data in sets)
    height = max(4.5, 1.2 + LINE * longest)
    figure = Figure(figsize=(7 * len(sets), height), layout="constrained")
    for panel, data in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        here = [row for row in rows if row.data == data]
        for number, backbone in enumerate(dict.fromkeys(row.backbone for row in here)):
            colour = f"C{number % 10}"
            for index, row in enumerate(row for row in here if row.backbone == backbone):
                x, y = row.parameters / 1e6, statistics.mean(row.last())
                label = backbone if index == 0 else None
                panel.errorbar(x, y, yerr=spread(row.last()), fmt="o", color=colour, capsize=3, label=label)
                panel.scatter([x] * len(row.runs), row.last(), s=8, color=colour, alpha=0.5)
        panel.set(title=data, xlabel="parameters (millions)", ylabel="top-1 in the last epoch (%)")
        panel.grid(alpha=0.3)
        panel.legend()
        label_points(panel, here, LINE / (height - 1))
    return figure


def label_points(panel: Any, rows: list[Row], gap: float) -> None:
    """Names the rows at the right edge of a panel, in the order of their points, each joined to its point by a line.

    Args:
        gap: distance between two names, as a fraction of the panel's height.
    """
    low, high = panel.get_ylim()
    panel.set_ylim(low, high)
    ordered = sorted(rows, key=lambda row: statistics.mean(row.last()))
    heights: list[float] = []
    for row in ordered:  # as near to the point as those below it allow
        wanted = (statistics.mean(row.last()) - low) / (high - low)
        heights.append(max(wanted, heights[-1] + gap) if heights else max(wanted, 0.0))
    for place in range(len(heights) - 1, -1, -1):  # and back below the upper edge
        heights[place] = min(heights[place], 1 - gap * (len(heights) - 1 - place))
    for row, at in zip(ordered, heights, strict=True):
        panel.annotate(
            row.label,
            (row.parameters / 1e6, statistics.mean(row.last())),
            xytext=(1.03, at),
            textcoords="axes fraction",
            fontsize=8,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "grey", "linewidth": 0.5},
        )


def main() -> int:
    parser = scripts.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders with runs in or below them, such as runs")
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the table (default text)")
    parser.add_argument("--picture", type=Path, help="also draw top-1 over parameters, to this file")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="MODULE",
        help="module of your own that runs may name, which is then imported; may be given again",
    )
    options = parser.parse_args()
    try:
        if options.picture:
            expect_picture(options.picture)
        results, left_out = find(options.runs, options.trust)
        for folder, reason in left_out:
            console.warn(f"{folder} is left out: {reason}")
        rows = table(results)
        if not rows:
            raise UserError(f"no run with an evaluated epoch in {', '.join(map(str, options.runs))}")
        print(FORMATS[options.format](rows))
        if options.picture:
            picture(rows).savefig(options.picture, dpi=120)
            print(f"saved {options.picture}", file=sys.stderr)
    except BrokenPipeError:
        raise  # a reader that closes the pipe is no error: `scripts.run`
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    return 0


if __name__ == "__main__":
    scripts.run(main)
