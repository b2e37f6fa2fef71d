"""The papers' tables as data (`configs/papers/`), and every row of them built, counted and compared with what was printed.

A file holds `title`, `flops` (the convention of its printed FLOPs, see `attn.models.flops`), `recipes` (a schedule, a data
set, what else the command sets, and in `count` how detectors are counted), `remarks`, `definitions` and `rows`. The keys of
a row:

    table, model, method, setting, detector, task   as printed
    printed        the numbers: params and flops in units of 1e6 and 1e9, accuracies, errors and AP in percent
    unit           Mi: params are printed in units of 2**20
    digits         decimals of the printed params, where they are not two
    counts         with_statistics: the printed params contain the running statistics of BatchNorm
    added_to       the plain network, printed and exact, where the printed params are its printed ones plus a rounded
                   increment
    flops          the convention, where it is not the file's; of detectors MMDetection's, which is that of `ptflops`
    measured       what the definition gives: params (exact), flops and macs in 1e9
    reproduced     whether the definition gives the printed params, to the digit; absent where none are printed
    flops_reproduced   the same of the FLOPs, where it is known
    definition     the exact module: a key of `definitions`, or the text
    reason         why a row does not reproduce; `note`: what else is known; `source`: where the paper has it from
    elsewhere      numbers that the table lacks, and where the paper gives them
    build          backbone, attention, recipe, in `set` what the command overrides and in `test` what testing does; absent
                   if the row is no network. In detection `detector` is the config, which says the same, and `set` makes it
                   the network of an ImageNet row of the same paper, whose weights it starts from
    form           name of the row's own form, where there are several; a file's `form` is that of all such rows
    alternatives   other forms of the row, by name: what they `set` beside the build, in `recipes` which recipe they have in
                   place of the row's, and a `note` that says what they are. Each has a command of its own. A file's
                   `alternatives` are those of all its rows: there `set` holds the settings by attention, and rows with other
                   attentions have none

`rows` reads them, `build` says what makes and trains a network, `measure` counts it, `runs` finds what has trained it,
`scores` compares what they reached, `verdict` compares all that with the printed numbers, and `render` prints it.
"""

from __future__ import annotations

from attn.tables.build import Build
from attn.tables.measure import Measured, measure, network
from attn.tables.render import as_json, as_markdown, as_text, pages
from attn.tables.rows import METRICS, Row, load_computed, load_rows, papers, pretraining, training_command, with_alternatives
from attn.tables.runs import Run, compose, find_runs, matching_runs, network_key
from attn.tables.scores import Score, compare
from attn.tables.verdict import (
    EQUAL,
    EXPLAINED,
    INSTALL,
    OTHER,
    UNCOUNTED,
    WRONG,
    Result,
    agree,
    decimals,
    evaluate,
    judge,
    summary,
)

__all__ = [
    "EQUAL",
    "EXPLAINED",
    "INSTALL",
    "METRICS",
    "OTHER",
    "UNCOUNTED",
    "WRONG",
    "Build",
    "Measured",
    "Result",
    "Row",
    "Run",
    "Score",
    "agree",
    "as_json",
    "as_markdown",
    "as_text",
    "compare",
    "compose",
    "decimals",
    "evaluate",
    "find_runs",
    "judge",
    "load_computed",
    "load_rows",
    "matching_runs",
    "measure",
    "network",
    "network_key",
    "pages",
    "papers",
    "pretraining",
    "summary",
    "training_command",
    "with_alternatives",
]
