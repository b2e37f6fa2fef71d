"""Studies: every run composes, tables follow from raw metrics, and verdicts from paired intervals alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import ROOT, composed
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from attn.config import analysis
from attn.errors import UserError
from attn.studies import figures, outcome, study, summary, table
from attn.studies.outcome import Difference

DIGITS = study.load("digits")
RESULTS = ROOT / "docs" / "results"


CLASSIFIERS = [name for name in study.names() if study.load(name).detector is None]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_method_composes_and_is_another_network(name: str) -> None:
    """The recipe is the same for all: the configs differ in the attention alone."""
    chosen = study.load(name)
    configs = {method: composed(*chosen.command(Path("runs"), method, 1)) for method in chosen.methods}
    assert len({str(cfg.attention) for cfg in configs.values()}) == len(configs) >= 13
    assert len({str((cfg.backbone, cfg.data, cfg.schedule, cfg.seed, cfg.metrics)) for cfg in configs.values()}) == 1
    assert set(chosen.scores) <= {"top1", *configs[chosen.baseline].metrics}


def test_runs_are_paired_also_when_a_study_is_interrupted() -> None:
    cells = list(DIGITS.cells())
    assert cells[: len(DIGITS.methods)] == [(method, 0) for method in DIGITS.methods]
    assert len(set(cells)) == len(DIGITS.methods) * len(DIGITS.seeds) == len(cells)
    assert list(DIGITS.cells(["se"], [1, 2])) == [("se", 1), ("se", 2)]
    with pytest.raises(UserError, match="did you mean 'se'"):
        list(DIGITS.cells(["see"]))
    with pytest.raises(UserError, match="seed 9"):
        list(DIGITS.cells(seeds=[9]))
    with pytest.raises(UserError, match="did you mean 'digits'"):
        study.load("digit")


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=3, max_size=8), st.integers(1, 20))
def test_the_interval_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]], comparisons: int) -> None:
    ours, plain = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    found = outcome.difference(ours, plain, comparisons)
    assert found is not None
    differences = np.subtract(*zip(*pairs, strict=True))
    assert found.mean == pytest.approx(differences.mean(), abs=1e-9)
    if differences.std() < 1e-6:
        return
    assert found.interval is not None
    assert found.corrected is not None
    test = stats.ttest_rel(list(ours.values()), list(plain.values()))
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-6, abs=1e-6)
    assert found.corrected == pytest.approx(tuple(test.confidence_interval(1 - 0.05 / comparisons)), rel=1e-6, abs=1e-6)
    assert (found.verdict == "helps") == (found.corrected[0] > 0)
    assert (found.verdict == "hurts") == (found.corrected[1] < 0)


def test_without_common_seeds_nothing_is_said() -> None:
    assert outcome.difference({0: 1.0}, {1: 1.0}, 3) is None
    single = outcome.difference({0: 2.0, 5: 9.0}, {0: 1.0}, 3)
    assert single == Difference(1.0, None, None, 1)
    assert single.verdict == "too few seeds"
    # Scores of few images are whole multiples of one image: two equal differences have no spread, and prove nothing.
    equal = outcome.difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}, 3)
    assert equal is not None
    assert equal.verdict == "too few seeds"


def written(runs: Path, method: str, seed: int, top1: float, speed: float, done: bool = True) -> None:
    """A run as training leaves it, as far as a table reads it."""
    folder = DIGITS.folder(runs, method, seed)
    folder.mkdir(parents=True)
    rows = [
        {
            "epoch": epoch,
            "val_top1": top1 - 5 * (2 - epoch),
            "val_balanced_accuracy": top1,
            "val_mcc": top1 / 100,
            "images_per_second": speed,
        }
        for epoch in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (folder / "DONE").touch()


def test_a_page_is_made_of_the_finished_runs(tmp_path: Path) -> None:
    for seed in range(3):
        written(tmp_path, "none", seed, 90 + seed, 100)
        written(tmp_path, "se", seed, 94 + seed + 0.01 * seed, 80)
        written(tmp_path, "eca", seed, 90 + seed + (-1) ** seed, 100)
    written(tmp_path, "ba", 0, 99, 50, done=False)
    written(tmp_path, "fca", 4, 99, 50)
    page = table.page(
        DIGITS, outcome.read(DIGITS, tmp_path), Path("runs"), table.sizes(DIGITS, ["none", "se", "eca", "fca"]), tmp_path
    )
    rows = {
        line.split("`")[1]: [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if line.startswith("| `")
    }
    assert list(rows) == ["none", "se", "eca", "fca"]
    assert rows["se"][1:6] == ["3 of 5", "95.01 ± 1.01", "95.01 ± 1.01", "0.950 ± 0.010", "+4.01"]
    assert rows["se"][7] == "helps"
    assert rows["se"][-1] == "1.25"
    assert rows["eca"][7] == "cannot be told apart"
    assert rows["fca"][5:8] == ["", "", ""]
    assert "10 of 65 runs are finished (0 to 3 of 5 seeds)" in page
    assert "## Pictures" not in page
    assert "- `se`: higher accuracy than `none`." in page
    assert float(rows["se"][8]) > float(rows["none"][8]) > 0.1


def test_results_are_made_and_remade(tmp_path: Path, in_process) -> None:
    """Two short runs; the page is the same when it is made from the raw metrics alone."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    chosen = ["--methods", "none", "--seeds", "0"]
    empty = in_process(["scripts/results.py", "table", "digits", "--runs", str(runs), "--out", str(out)])
    assert (empty.returncode, "no finished run" in empty.stderr) == (2, True)
    written(runs, "none", 0, 90, 100)
    again = in_process(["scripts/results.py", "run", "digits", "--runs", str(runs), *chosen])
    assert again.returncode == 0, again.stderr
    assert "all 1 runs of digits are finished" in again.stdout
    made = in_process(["scripts/results.py", "table", "digits", "--runs", str(runs), "--out", str(out)])
    assert made.returncode == 0, made.stderr
    first = (out / "digits.md").read_text()
    drawn = in_process(["scripts/results.py", "figures", "digits", "--runs", str(out / "raw"), "--out", str(out)])
    assert drawn.returncode == 0, drawn.stderr
    picture = out / "images" / "digits_curves.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size < 150_000
    remade = in_process(["scripts/results.py", "table", "digits", "--runs", str(out / "raw"), "--out", str(out)])
    assert remade.returncode == 0, remade.stderr
    again = (out / "digits.md").read_text()
    assert "(images/digits_curves.png)" in again
    assert re.sub("## Pictures.*?(?=## )", "", again, flags=re.DOTALL) == first
    wrong = in_process(["scripts/results.py", "run", "digits", "--methods", "nonne"])
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_published_pages_follow_from_the_published_metrics() -> None:
    """That of detectors is a test of its own: tests/detection/test_detection_study.py."""
    for page in sorted(path for path in RESULTS.glob("*.md") if path.stem in CLASSIFIERS):
        chosen = study.load(page.stem)
        reached = outcome.read(chosen, RESULTS / "raw")
        assert (
            table.page(chosen, reached, Path("runs"), table.sizes(chosen, reached), RESULTS / "images") == page.read_text()
        )


def test_the_readme_gives_the_published_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert summary.replaced(text, summary.section(RESULTS)) == text, "run: python scripts/results.py readme"
    for page in RESULTS.glob("*.md"):
        assert f"(docs/results/{page.name})" in text
    with pytest.raises(UserError, match="one is missing"):
        summary.replaced("no marks", "")


def test_a_bold_difference_is_one_that_a_verdict_says(tmp_path: Path) -> None:
    for seed in range(3):
        written(tmp_path / "raw", "none", seed, 90 + seed, 100)
        written(tmp_path / "raw", "se", seed, 94 + seed + 0.01 * seed, 0)
        written(tmp_path / "raw", "eca", seed, 90 + seed + (-1) ** seed, 100)
    (tmp_path / "digits.md").touch()
    lines = summary.section(tmp_path).splitlines()
    assert "| `none` | 91.00 ± 1.00 |" in lines
    assert "| `se` | **95.01 ± 1.01 (+4.01)** |" in lines
    assert "| `eca` | 91.33 ± 1.53 (+0.33) |" in lines
    assert "| `ba` |  |" in lines
    assert "**[Attentions on real digits](docs/results/digits.md)** (0 to 3 of 5 seeds):" in lines


def test_pictures_small_enough_for_a_repository() -> None:
    pictures = {path.name: path.stat().st_size for path in (RESULTS / "images").glob("*.png")}
    assert pictures
    assert max(pictures.values()) < 150_000
    raw = sum(path.stat().st_size for path in (RESULTS / "raw").rglob("*.jsonl"))
    assert raw < 5_000_000


def test_a_figure_needs_its_checkpoints(tmp_path: Path) -> None:
    chosen = study.load("elpv_four")
    figure = study.Figure("gradcam", ("none", "se"), ("at=3",), "text")
    with pytest.raises(UserError, match=r"none/seed0/last\.pt: no such checkpoint; make it by: .* run elpv_four"):
        figures.arguments(chosen, figure, tmp_path, tmp_path / "out")
    for method in ("none", "se"):
        chosen.folder(tmp_path, method, 0).mkdir(parents=True)
        (chosen.folder(tmp_path, method, 0) / "last.pt").touch()
    for drawn in [figure, *chosen.figures]:
        if set(drawn.methods) <= {"none", "se"}:
            kind, options = analysis.read(figures.arguments(chosen, drawn, tmp_path, tmp_path / "out"))
            assert (kind, len(options.checkpoint)) == (drawn.kind, len(drawn.methods))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curves": ["bb"]}, "curves: unknown method 'bb'"),
        ({"baseline": "nonne"}, "baseline: unknown method 'nonne'"),
        ({"figures": [{"kind": "maps", "methods": ["none"], "text": "x"}] * 2}, "one of each kind"),
        ({"figure": []}, "unknown key 'figure'"),
        ({"title": None}, "title is missing"),
    ],
)
def test_a_study_with_a_mistake_is_told(
    change: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load((ROOT / "configs" / "studies" / "digits.yaml").read_text()) | change
    content = {key: value for key, value in content.items() if value is not None}
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "wrong.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(study, "config_dir", lambda: tmp_path)
    with pytest.raises(UserError, match=message):
        study.load("wrong")
