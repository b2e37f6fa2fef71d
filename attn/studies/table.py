"""The page of a study: its table, what it allows one to say, and the commands that make it again."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from attn.config import parse
from attn.config.groups import config_dir
from attn.models import flops
from attn.models.create import create_model
from attn.studies.outcome import Difference, Reached, difference, spread
from attn.studies.study import TITLES, Published, Study, shell
from attn.tabulate import markdown_lines

Finished = Mapping[str, Mapping[int, Reached]]  # from `outcome.read`


def sizes(study: Study, methods: Iterable[str]) -> dict[str, flops.Count]:
    """Parameters and operations of the methods' classifiers at the study's image size, counted on the meta device."""
    found = {}
    for method in methods:
        overrides = study.methods[method]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = parse.parse(compose("train", ["attention_name=study", "run_dir=runs", *study.base, *overrides]))
        options = dict(cfg.backbone)
        with torch.device("meta"):
            model = create_model(options.pop("name"), cfg.attention, cfg.data.num_classes, **options)
        found[method] = flops.count(model, (3, cfg.data.image_size, cfg.data.image_size))
    return found


def page(study: Study, reached: Finished, runs: Path, counts: Mapping[str, flops.Count], images: Path) -> str:
    """The page as Markdown.

    Args:
        study: which.
        reached: from `outcome.read`.
        runs: as the commands name it.
        counts: of each method, from `sizes` or, of a detector, from `detection.count`.
        images: the folder with the pictures of `figures`; those that are there are shown.
    """
    first = study.scores[0]
    differences = compared(study, reached, first)
    making = ("run", "figures", "table") if study.curves or study.figures else ("run", "table")
    done, planned = sum(map(len, reached.values())), len(study.methods) * len(study.seeds)
    parts = [
        f"# {study.title}",
        study.text.strip(),
        "" if done == planned else UNFINISHED.format(done=done, planned=planned, seeds=seeds_told(study, reached)),
        "\n".join(markdown_lines(list(_rows(study, reached, differences, counts)), right=range(1, 8 + len(study.scores)))),
        "Mean and standard deviation over the seeds, of the last epoch. The difference is paired: a method and"
        f" `{study.baseline}` have the same seeds, splits and batches. Intervals are of 95 %; the verdict uses the one that "
        f"is corrected for {len(study.methods) - 1} comparisons (Bonferroni).",
        f"`time per image` is the time of training beside that of `{study.baseline}`, median over the seeds, on a machine that did "
        "other work at the same time: take it as rough. [Benchmarks](../benchmarks.md) measures the cost on a quiet one.",
        "## What can be said",
        conclusion(study, differences),
        *(_beside(reached, published) for published in study.published),
        *_pictures(study, images),
        "## The same again",
        "\n".join(
            [
                "```bash",
                *study.prepare,
                *(f"python scripts/results.py {what} {study.name} --runs {runs}" for what in making),
                "```",
            ]
        ),
        f"One run alone: `{shell(study, runs, study.baseline, study.seeds[0])}`",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


UNFINISHED = (
    "**{done} of {planned} runs are finished ({seeds}); the table is of those.** Scores of methods with other numbers of seeds are "
    "means over other seeds; the differences are over the seeds that both have."
)


def seeds_told(study: Study, reached: Finished) -> str:
    """How many seeds the finished methods have, as in: 3 to 4 of 5 seeds."""
    numbers = sorted({len(reached.get(method, ())) for method in study.methods})
    told = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{told} of {len(study.seeds)} seeds"


def _beside(reached: Finished, published: Published) -> str:
    """A published score, and how far the methods here are from it."""
    means = [statistics.fmean(run.scores[published.score] for run in runs.values()) for runs in reached.values()]
    score = TITLES.get(published.score, published.score)
    return (
        f"{published.text}: {score} {published.value:.2f}. The means of the methods here are {min(means):.2f} to {max(means):.2f}, "
        f"so the best is {max(means) - published.value:+.2f} from it."
    )


def _pictures(study: Study, images: Path) -> Iterator[str]:
    """The section with the pictures that are there, each after what it shows."""
    curves = (
        f"Learning curves: the {study.score} on the held-out images after each epoch, mean over the seeds, with a band of one "
        "standard deviation to either side."
    )
    told = {"curves": curves, **{figure.kind: figure.text for figure in study.figures}}
    shown = {kind: text for kind, text in told.items() if (images / study.picture(kind)).exists()}
    if shown:
        yield "## Pictures"
    for kind, text in shown.items():
        yield text
        yield f"![{study.title}: {kind}](images/{study.picture(kind)})"


def compared(study: Study, reached: Finished, score: str) -> dict[str, Difference]:
    """Each method's paired difference to the baseline in one score."""
    values = {method: {seed: run.scores[score] for seed, run in runs.items()} for method, runs in reached.items()}
    found = {}
    for method in study.methods:
        if method != study.baseline:
            result = difference(values.get(method, {}), values.get(study.baseline, {}), len(study.methods) - 1)
            if result is not None:
                found[method] = result
    return found


def conclusion(study: Study, differences: Mapping[str, Difference]) -> str:
    """The verdicts as sentences."""
    by_verdict: dict[str, list[str]] = {}
    for method, result in differences.items():
        by_verdict.setdefault(result.verdict, []).append(f"`{method}`")
    score = study.score
    sentences = {
        "helps": f"higher {score} than `{study.baseline}`",
        "hurts": f"lower {score} than `{study.baseline}`",
        "cannot be told apart": f"cannot be told apart from `{study.baseline}` with this number of seeds, which is no proof that they are equal",
        "too few seeds": "too few seeds for an interval",
    }
    lines = [f"- {', '.join(by_verdict[verdict])}: {text}." for verdict, text in sentences.items() if verdict in by_verdict]
    return "\n".join(lines) or "No method has a seed in common with the baseline yet."


def _rows(
    study: Study, reached: Finished, differences: Mapping[str, Difference], counts: Mapping[str, flops.Count]
) -> Iterator[tuple[str, ...]]:
    titles = [TITLES.get(score, score) for score in study.scores]
    yield ("method", "seeds", *titles, "difference", "95 % interval", "verdict", "params, M", "MMACs", "time per image")
    plain = reached.get(study.baseline, {})
    for method, runs in reached.items():
        counted = counts[method]
        result = differences.get(method)
        pairs = [(plain[seed].speed, run.speed) for seed, run in runs.items() if seed in plain]
        times = [before / ours for before, ours in pairs if before is not None and ours is not None]
        yield (
            f"`{method}`",
            str(len(runs)) if len(runs) == len(study.seeds) else f"{len(runs)} of {len(study.seeds)}",
            *(score_text([run.scores[score] for run in runs.values()], score) for score in study.scores),
            "" if result is None else f"{result.mean:+.2f}",
            "" if result is None or result.interval is None else f"{result.interval[0]:+.2f} to {result.interval[1]:+.2f}",
            "" if result is None else result.verdict,
            f"{counted.params / 1e6:.3f}",
            f"{counted.macs / 1e6:.1f}",
            f"{statistics.median(times):.2f}" if times else "",
        )


def score_text(values: list[float], score: str) -> str:
    """Mean and standard deviation of a score over the seeds."""
    digits = 3 if score == "mcc" else 2
    deviation = spread(values)
    return f"{statistics.fmean(values):.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
