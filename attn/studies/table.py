"""The page of a study: its table, what it allows one to say, and the commands that make it again."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from attn.config import parse
from attn.config.groups import config_dir
from attn.models import flops
from attn.models.create import create_model
from attn.studies.outcome import Difference, Reached, difference, spread
from attn.studies.study import Study, shell
from attn.tabulate import markdown_lines

TITLES = {"top1": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "mcc": "MCC"}


def size(study: Study, method: str) -> flops.Count:
    """Parameters and operations of a method's network at the study's image size, counted on the meta device."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = parse.parse(compose("train", ["attention_name=study", *study.base, *study.methods[method]]))
    options = dict(cfg.backbone)
    with torch.device("meta"):
        model = create_model(options.pop("name"), cfg.attention, cfg.data.num_classes, **options)
    return flops.count(model, (3, cfg.data.image_size, cfg.data.image_size))


def page(study: Study, reached: Mapping[str, Mapping[int, Reached]], runs: Path) -> str:
    """The page as Markdown.

    Args:
        study: which.
        reached: from `outcome.read`.
        runs: as the commands name it.
    """
    first = study.scores[0]
    differences = compared(study, reached, first)
    done, planned = sum(map(len, reached.values())), len(study.methods) * len(study.seeds)
    parts = [
        f"# {study.title}",
        study.text.strip(),
        "" if done == planned else f"**{done} of {planned} runs are finished; the table is of those.**",
        "\n".join(markdown_lines(list(_rows(study, reached, differences)), right=range(1, 8 + len(study.scores)))),
        "Mean and standard deviation over the seeds, of the last epoch. The difference is paired: a method and"
        f" `{study.baseline}` have the same seeds, splits and batches. Intervals are of 95 %; the verdict uses the one that is"
        f" corrected for {len(study.methods) - 1} comparisons (Bonferroni).",
        "## What can be said",
        conclusion(study, differences),
        "## The same again",
        f"```bash\npython scripts/results.py run {study.name} --runs {runs}\npython scripts/results.py table {study.name} --runs {runs}\n```",
        f"One run alone: `{shell(study.command(runs, study.baseline, study.seeds[0]))}`",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def compared(study: Study, reached: Mapping[str, Mapping[int, Reached]], score: str) -> dict[str, Difference]:
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
    score = TITLES.get(study.scores[0], study.scores[0])
    sentences = {
        "helps": f"higher {score} than `{study.baseline}`",
        "hurts": f"lower {score} than `{study.baseline}`",
        "cannot be told apart": f"cannot be told apart from `{study.baseline}` with this number of seeds, which is no proof that they are equal",
        "too few seeds": "too few seeds for an interval",
    }
    lines = [f"- {', '.join(by_verdict[verdict])}: {text}." for verdict, text in sentences.items() if verdict in by_verdict]
    return "\n".join(lines) or "No method has a seed in common with the baseline yet."


def _rows(
    study: Study, reached: Mapping[str, Mapping[int, Reached]], differences: Mapping[str, Difference]
) -> Iterator[tuple[str, ...]]:
    titles = [TITLES.get(score, score) for score in study.scores]
    yield ("method", "seeds", *titles, "difference", "95 % interval", "verdict", "params, M", "MMACs", "time per image")
    plain = reached.get(study.baseline, {})
    for method, runs in reached.items():
        counted = size(study, method)
        result = differences.get(method)
        common = sorted(set(runs) & set(plain))
        time = statistics.median(plain[seed].speed / runs[seed].speed for seed in common) if common else None
        yield (
            f"`{method}`",
            str(len(runs)),
            *(_score([run.scores[score] for run in runs.values()], score) for score in study.scores),
            "" if result is None else f"{result.mean:+.2f}",
            "" if result is None or result.interval is None else f"{result.interval[0]:+.2f} to {result.interval[1]:+.2f}",
            "" if result is None else result.verdict,
            f"{counted.params / 1e6:.3f}",
            f"{counted.macs / 1e6:.1f}",
            "" if time is None else f"{time:.2f}",
        )


def _score(values: list[float], score: str) -> str:
    digits = 3 if score == "mcc" else 2
    deviation = spread(values)
    return f"{statistics.fmean(values):.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
