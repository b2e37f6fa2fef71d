"""The papers' tables: data complete, every row built and equal to what is printed, commands compose, runs are found."""

import dataclasses
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from attn import tables
from attn.config import groups, scripts
from attn.config.parse import to_dict
from attn.models.flops import Count
from attn.tables import EQUAL, EXPLAINED, UNCOUNTED, WRONG, Build, Measured, Row

ROOT = Path(__file__).resolve().parents[2]
ROWS = tables.load_rows()
FORMS = [row for row in tables.with_alternatives(ROWS) if row.alternative]
IDS = [row.id for row in ROWS]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scripts_tables", ROOT / "scripts" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_row_is_missing() -> None:
    assert Counter(row.paper for row in ROWS) == {"ba_net": 62, "dcanet": 61, "ba2m": 185, "aw_conv": 23}
    assert Counter(row.paper for row in ROWS if row.reproduced) == {"ba_net": 33, "dcanet": 54, "ba2m": 111, "aw_conv": 13}
    assert len(set(IDS)) == 331


def test_every_row_that_does_not_reproduce_says_why_and_every_other_what_it_is() -> None:
    for row in ROWS:
        if row.reproduced:
            assert row.definition, row.id
            assert row.measured["params"], row.id
        elif "params" in row.printed or row.build is None:
            assert row.reason or row.note, row.id


@pytest.mark.slow
def test_every_network_of_every_table() -> None:
    """Built on the meta device and counted; one test, because that takes most of a minute."""
    results = {result.row.id: result for result in tables.evaluate(ROWS)}
    expect_what_is_printed(results)
    expect_the_parameters_of_the_definitions(results)
    expect_other_forms(results)


def expect_what_is_printed(results: dict[str, tables.Result]) -> None:
    assert {key: r.reason for key, r in results.items() if r.verdict == WRONG} == {}
    counted = [r for r in results.values() if r.row.reproduced and r.verdict != UNCOUNTED]
    assert all(r.verdict == EQUAL for r in counted)
    assert len(counted) >= 211 - 12  # the others are detectors
    assert sum(r.flops_agree is True for r in results.values()) >= 166 - 12
    for r in results.values():
        assert r.verdict == EQUAL or r.reason, r.row.id


def expect_the_parameters_of_the_definitions(results: dict[str, tables.Result]) -> None:
    """`measured` comes from the authors' modules, or from independent builds of the definitions."""
    different = {}
    for key, r in results.items():
        if r.row.reproduced and r.measured.params is not None:
            here = r.measured.params + (r.measured.statistics if r.row.counts == "with_statistics" else 0)
            if here != r.row.measured["params"]:
                different[key] = (here, r.row.measured["params"])
    assert different == {}


def expect_other_forms(results: dict[str, tables.Result]) -> None:
    for row in FORMS:
        result = results[row.id]
        assert result.verdict == tables.OTHER, (row.id, result.reason)
        assert row.note, row.id
        assert row.note in str(result.reason)
    assert results["ba2m/VI/5/equations"].measured.params == 24_482_212
    assert results["ba2m/VI/5"].record()["form"] == "fitted"
    assert "alternatives" not in results["ba2m/VI/5"].record()
    text = tables.as_text([results["ba2m/VI/5"], results["ba2m/VI/5/equations"]])
    assert "variant=fitted" in text
    assert "variant=equations" in text
    assert "1 rows: 1 equal to the printed digit" in text
    assert "1 rows in another form" in text


@pytest.mark.parametrize(
    ("changes", "found", "verdict"),
    [
        ({}, Measured(25_557_032, 4_121_924_096, 0), EQUAL),
        ({}, Measured(25_567_032, 4_121_924_096, 0), WRONG),
        ({}, Measured(25_557_032, 4_136_000_000, 0), WRONG),
        ({"flops_reproduced": None}, Measured(25_557_032, 4_136_000_000, 0), EQUAL),
        ({"reproduced": False, "reason": "a slip"}, Measured(1, 1, 1), EXPLAINED),
        ({"printed": {"top1": 75.0}, "reproduced": None}, Measured(1, 1, 1), EXPLAINED),
        ({"reproduced": False, "reason": "a slip"}, Measured(problem="no such backbone"), WRONG),
        ({}, Measured(problem=UNCOUNTED), UNCOUNTED),
        ({"unit": "Mi"}, Measured(26_801_603, 4_121_924_096, 0), EQUAL),
        ({"digits": 1, "printed": {"params": 25.6, "flops": 4.12}}, Measured(25_640_000, 4_121_924_096, 0), EQUAL),
        # 0.358 more than 23.705: 24.06 by itself, but 24.07 as 23.71 + 0.36
        ({"printed": {"params": 24.07, "flops": 4.12}}, Measured(24_063_319, 4_121_924_096, 0), WRONG),
        (
            {"printed": {"params": 24.07, "flops": 4.12}, "added_to": {"printed": 23.71, "params": 23_705_252}},
            Measured(24_063_319, 4_121_924_096, 0),
            EQUAL,
        ),
        ({"counts": "with_statistics"}, Measured(25_000_000, 4_121_924_096, 0, statistics=557_032), EQUAL),
        ({"printed": {"params": 25.56, "flops": 215.51}}, Measured(25_557_032, 215_512_400_505, 0), EQUAL),
        ({"printed": {"params": 25.56, "flops": 215.51}}, Measured(25_557_032, 215_820_200_000, 0), WRONG),
        ({"flops": "macs_first"}, Measured(25_557_032, 0, 4_121_924_096), EQUAL),
    ],
)
def test_verdicts(changes: dict[str, Any], found: Measured, verdict: str) -> None:
    printed = {"params": 25.56, "flops": 4.12}
    row = Row("p", "1", 1, "ResNet-50", "none", printed, "ptflops", reproduced=True, flops_reproduced=True)
    row = dataclasses.replace(row, build=Build("resnet50", "none", "imagenet", "aw", None), **changes)
    judged = tables.judge(row, found)
    assert judged.verdict == verdict
    assert judged.verdict == EQUAL or judged.reason


@pytest.mark.parametrize(("flops", "reason"), [(3.87, "source: copied from the CBAM paper"), (4.12, None)])
def test_where_flops_come_from_that_are_not_met(flops: float, reason: str | None) -> None:
    row = Row("p", "1", 1, "ResNet-50", "none", {"params": 25.56, "flops": flops}, "ptflops", reproduced=True)
    build = Build("resnet50", "none", "imagenet", "aw", None)
    row = dataclasses.replace(row, build=build, source="* copied from the CBAM paper")
    judged = tables.judge(row, Measured(25_557_032, 4_121_924_096, 0))
    assert (judged.verdict, judged.reason) == (EQUAL, reason)


def test_without_mmdetection_the_rows_say_how_to_install_it() -> None:
    rows = [row for row in ROWS if row.build is not None and row.build.detector is not None]
    found = tables.evaluate(rows)
    assert all(tables.INSTALL in str(r.reason) for r in found)
    assert {r.verdict for r in found if r.row.reproduced} == {UNCOUNTED}
    assert (
        tables.summary(found)
        .partition(";")[0]
        .endswith(f"12 that need the detection extra to be counted ({tables.INSTALL})")
    )


def test_a_detectors_operations_stand_beside_the_printed_ones() -> None:
    row = next(row for row in ROWS if row.id == "ba_net/5/1")
    assert row.build is not None
    assert dict(row.build.counted) == {"size": (800, 1330), "wrappers": False}
    (counted,) = tables.evaluate([row], lambda build: Count(41_527_712, 215_512_400_505, 0))
    assert (counted.verdict, counted.flops) == (EQUAL, 215.512400505)
    (wrong,) = tables.evaluate([row], lambda build: Count(41_527_712, 215_820_200_000, 0))
    assert (wrong.verdict, wrong.reason) == (WRONG, "FLOPs: printed 215.51, here 215.8202")


DETECTORS = [row for row in tables.with_alternatives(ROWS) if row.build is not None and row.build.detector is not None]


def test_detectors_start_from_what_the_imagenet_commands_leave() -> None:
    for row in DETECTORS:
        assert row.build is not None
        text = (ROOT / "detection" / "configs" / f"{row.build.detector}.py").read_text()
        named = re.findall(r'checkpoint="([^"]*)"', text)
        if row.alternative:
            named = [value for key, value in row.build.options if key == "model.backbone.init_cfg.checkpoint"]
            assert f"init_cfg.checkpoint={named[0]}" in row.build.command()
        source = tables.pretraining(row)
        assert named == ([] if source is None else [source.checkpoint()]), row.id
        assert (source is None) == (row.build.attention == "none"), row.id
        if source is not None:
            command = tables.training_command(named[0])
            every = [other.build for other in tables.with_alternatives(ROWS)]
            printed = [other.command() for other in every if other is not None and not other.test]
            assert command in printed, row.id
            assert f"run_dir={source.run_dir()}" in str(command)
            assert source.mapping("attention") == row.build.mapping("attention")


def test_dcanets_detector_starts_from_the_network_of_its_table_1() -> None:
    """Two layers of size matching, as section 3.3 says; the published detection code has one."""
    (row,) = (row for row in ROWS if row.id == "dcanet/3/3")
    assert row.build is not None
    assert row.build.mapping("attention")["block"]["matching"] == "2fc"
    source = tables.pretraining(row)
    assert source is not None
    assert source == next(other.build for other in ROWS if other.measured.get("params") == 28_651_736)
    assert "1fc" not in (ROOT / "detection" / "configs" / f"{row.build.detector}.py").read_text().partition("model = ")[2]


@pytest.mark.parametrize(
    ("checkpoint", "command"),
    [
        ("runs/resnet50-se-imagenet/seed0/best.pt", "python train.py backbone=resnet50 attention=se data=imagenet"),
        ("runs/resnet50-sse-imagenet/seed0/best.pt", None),
        ("elsewhere/best.pt", None),
    ],
)
def test_what_makes_a_checkpoint_is_known_by_its_place(checkpoint: str, command: str | None) -> None:
    assert tables.training_command(checkpoint) == command


def test_rounding_is_to_the_printed_digit() -> None:
    assert tables.agree(28.71, 28.706, 2)
    assert tables.agree(28.70, 28.705, 2)
    assert not tables.agree(28.71, 28.7049, 2)
    assert (tables.decimals(3.5), tables.decimals(0.569), tables.decimals(4.0)) == (2, 3, 2)


def distinct_builds() -> list[Build]:
    """Builds with every set of overrides of every attention, and every recipe: the other commands differ in values alone."""
    found: list[Build] = []
    seen: set[object] = set()
    for row in tables.with_alternatives(ROWS):
        if row.build is not None and row.build.detector is None:
            features = {(row.build.attention, tuple(key for key, _ in row.build.own)), row.build.recipe}
            if not features <= seen:
                seen |= features
                found.append(row.build)
    return found


def test_commands_compose_to_what_is_counted() -> None:
    for build in distinct_builds():
        name = build.command()
        composed = tables.compose(build)
        assert composed.backbone == build.mapping("backbone"), name
        assert composed.attention == build.mapping("attention"), name
        assert composed.data.name == build.data
        assert composed.schedule.name == build.schedule


def test_every_choice_of_every_row_exists() -> None:
    for row in tables.with_alternatives(ROWS):
        if row.build is None:
            continue
        if row.build.detector is not None:
            assert (ROOT / "detection" / "configs" / f"{row.build.detector}.py").is_file(), row.id
        else:
            assert row.build.schedule in groups.names("schedule"), row.id
            assert row.build.data in groups.names("data"), row.id


def test_every_ba2m_row_has_a_command_for_the_printed_size_and_one_for_the_equations() -> None:
    found = [row for row in ROWS if row.build is not None and "ba2m" in row.build.attention]
    assert len(found) == 87
    literal = {"variant": "equations", "scale": "softmax", "zero_init": False, "norm_global": False}

    def parts(row: Row) -> list[dict[str, Any]]:
        assert row.build is not None
        mapping = row.build.mapping("attention")
        nodes = [mapping.get("block"), *(mapping.get("stage") or {}).get("parts", [mapping.get("stage")])]
        return [node for node in nodes if node is not None and node["_target_"].endswith("BA2M")]

    for row in found:
        (other,) = row.alternatives
        assert (row.form, other.form, other.id) == ("fitted", "equations", f"{row.id}/equations")
        (own,), (printed,) = parts(row), parts(other)
        assert own["variant"] == "fitted", row.id
        assert printed == {**own, **literal}, row.id
        assert row.build is not None
        assert other.build is not None
        assert row.build.command() != other.build.command()
        if row.build.detector is not None:
            assert "attention.stage.variant=equations" in other.build.command()


def test_the_rows_of_ba2ms_table_vi_are_comparable() -> None:
    rows = {
        row.number: row.build.mapping("attention") for row in ROWS if row.paper == "ba2m" and row.table == "VI" and row.build
    }
    assert rows[3]["block"] == rows[7]["block"]  # CBAM with an MLP per pool in both
    assert rows[3]["block"]["shared"] is False
    assert rows[5]["stage"] == rows[6]["stage"] == rows[7]["stage"] == rows[8]["stage"]["parts"][1]


def test_dcanet_by_its_text_is_another_form_of_each_of_its_rows() -> None:
    for row in ROWS:
        if row.paper == "dcanet" and row.build is not None and row.build.attention.startswith("dca_"):
            (other,) = row.alternatives
            assert other.build is not None
            assert ("conv" if row.build.attention == "dca_sk" else "block") + ".form=equations" in other.build.command()
            if row.build.detector is None:
                assert str(other.build.schedule).endswith("_paper")


def test_different_networks_or_recipes_never_share_a_run_directory() -> None:
    every = [row.build for row in tables.with_alternatives(ROWS) if row.build is not None and row.build.detector is None]
    builds = {dataclasses.replace(build, test=()) for build in every}
    assert len({build.run_dir() for build in builds}) == len(builds)
    assert all(re.fullmatch(r"runs/[A-Za-z0-9_.-]+/seed\$\{seed\}", build.run_dir()) for build in builds)


def fake_run(directory: Path, build: Build, top1: list[float], seed: int = 0, epochs: int | None = None) -> None:
    config = to_dict(dataclasses.replace(tables.compose(build), seed=seed))
    if epochs is not None:
        config["schedule"]["epochs"] = epochs
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    lines = [{"epoch": i, "step": i, "val_top1": v, "val_top5": v + 15} for i, v in enumerate(top1, start=1)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "DONE").touch()


def test_runs_are_found_by_what_they_trained(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.id == "ba_net/2/1")
    build = row.build
    assert build is not None
    fake_run(tmp_path / "any" / "name", build, [10.0, 78.0, 77.5])
    fake_run(tmp_path / "seed1", build, [79.0], seed=1)
    found = tables.find_runs(tmp_path)
    runs = tables.matching_runs(row, found)
    assert {(r.scores["top-1"], r.scores["top-5"], r.epoch, r.seed, r.finished, tuple(r.differs)) for r in runs} == {
        (78.0, 93.0, 2, 0, True, ()),
        (79.0, 94.0, 1, 1, True, ()),
    }
    other = next(row for row in ROWS if row.id == "dcanet/1/18")  # SE with biases
    assert tables.matching_runs(other, found) == []


def test_runs_from_before_an_option_existed_are_found(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.id == "dcanet/2a/2")
    assert row.build is not None
    for name, form in {"old": None, "now": "released", "other": "equations"}.items():
        fake_run(tmp_path / name, row.build, [77.0])
        config = OmegaConf.load(tmp_path / name / "config.yaml")
        config.attention.block.form = form
        if form is None:
            del config.attention.block["form"]
        OmegaConf.save(config, tmp_path / name / "config.yaml")
    found = tables.find_runs(tmp_path)
    assert {Path(run.path).name: run.differs for run in tables.matching_runs(row, found)} == {"old": [], "now": []}


def the_row(key: str) -> Row:
    return next(row for row in ROWS if row.id == key)


def test_every_printed_score_is_a_metric_of_its_row() -> None:
    assert the_row("ba2m/XIV/1").metrics == {
        "AP": 37.6,
        "AP50": 58.9,
        "AP75": 40.9,
        "AP_S": 21.8,
        "AP_M": 41.5,
        "AP_L": 48.8,
    }
    assert the_row("ba2m/III/2").metrics == {"VOC mAP": 79.6, "Recall": 97.12}
    assert the_row("aw_conv/1/2").metrics == {"top-1": 76.62, "top-5": 93.21}  # printed as errors: 23.38 and 6.79
    both = {"top-1": 78.14, "top-1 (original)": 76.71, "top-5": 94.05, "top-5 (original)": 93.38}
    assert the_row("ba_net/2/1").metrics == both
    other = {key for row in ROWS for key in row.printed if not re.match(r"delta|params$|flops$|std$|train_|test_", key)}
    assert other == {key for keys in tables.METRICS.values() for key in keys}
    printing = [row for row in ROWS if set(row.printed) & other]
    assert len(printing) > 300
    for row in printing:
        own = {name for name, keys in tables.METRICS.items() if set(keys) & set(row.printed)}
        assert own == {name.replace("VOC m", "").partition(" (")[0] for name in row.metrics if "elsewhere" not in name}, (
            row.id
        )


def test_scores_stand_beside_the_printed_ones_with_their_statistics(tmp_path: Path) -> None:
    """By hand: 77, 78 and 80.5 have mean 78.5, median 78, squared deviations 2.25 + 0.25 + 4 = 6.5, std sqrt(3.25)."""
    row = the_row("ba_net/2/1")
    assert row.build is not None
    for seed, top1 in enumerate([77.0, 78.0, 80.5]):
        fake_run(tmp_path / str(seed), row.build, [10.0, top1, top1 - 1], seed=seed)
    fake_run(tmp_path / "short", row.build, [99.0], seed=3, epochs=10)  # another recipe
    fake_run(tmp_path / "running", row.build, [98.0], seed=4)
    (tmp_path / "running" / "DONE").unlink()
    judged = tables.judge(row, Measured(), tables.matching_runs(row, tables.find_runs(tmp_path)))
    assert len(judged.runs) == 5
    top1, original, top5, _ = judged.scores
    assert (top1.metric, top1.printed, top1.values) == ("top-1", 78.14, (77.0, 78.0, 80.5))
    assert (top1.mean, top1.median, top1.best, top1.std) == (78.5, 78.0, 80.5, pytest.approx(3.25**0.5))
    assert top1.differences == pytest.approx({"mean": 0.36, "median": -0.14, "best": 2.36})
    assert (original.metric, original.printed, original.mean) == ("top-1 (original)", 76.71, 78.5)
    assert (top5.metric, top5.printed, top5.values) == ("top-5", 94.05, (92.0, 93.0, 95.5))
    assert judged.reached[:2] == [
        "3 seeds",
        "top-1: printed 78.14, mean 78.50 (+0.36), median 78.00 (-0.14), best 80.50 (+2.36), std 1.80",
    ]
    assert judged.record()["scores"][0]["differences"]["mean"] == pytest.approx(0.36)
    for show in (tables.as_text, tables.as_markdown):
        assert judged.reached[1] in show([judged])
        assert "top-1 78.14, top-1 (original) 76.71, top-5 94.05" in show([judged])


def test_a_printed_deviation_stands_beside_the_median_it_belongs_to(tmp_path: Path) -> None:
    """BA2M prints medians of five and their deviation; one run has none."""
    row = next(row for row in ROWS if "std" in row.printed and row.build is not None)
    assert row.build is not None
    fake_run(tmp_path, row.build, [82.0])
    judged = tables.judge(row, Measured(), tables.matching_runs(row, tables.find_runs(tmp_path)))
    top1, top5 = judged.scores
    assert (top1.printed_std, top1.std) == (row.printed["std"], None)
    assert str(top1).startswith("top-1: printed 82.29 +- 0.40, mean 82.00 (-0.29), median 82.00 (-0.29)")
    assert (top5.printed, top5.differences, judged.reached[0]) == (None, {}, "1 seed")
    assert str(top5) == "top-5: not printed, mean 97.00, median 97.00, best 97.00"


def test_averaged_weights_count_where_there_are_any(tmp_path: Path) -> None:
    row = the_row("ba_net/2/1")
    assert row.build is not None
    fake_run(tmp_path, row.build, [70.0])
    line = {"epoch": 1, "val_top1": 70.0, "val_top5": 90.0, "ema_val_top1": 71.0, "ema_val_top5": 91.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (run,) = tables.matching_runs(row, tables.find_runs(tmp_path))
    assert run.scores == {"top-1": 71.0, "top-5": 91.0}


def test_two_runs_of_one_seed_are_not_two_seeds(tmp_path: Path) -> None:
    row = the_row("ba_net/2/1")
    assert row.build is not None
    for name in ("a", "b"):
        fake_run(tmp_path / name, row.build, [78.0])
    judged = tables.judge(row, Measured(), tables.matching_runs(row, tables.find_runs(tmp_path)))
    assert judged.reached[0] == "2 runs of 1 seed"


def test_a_row_about_testing_has_what_eval_saved(tmp_path: Path) -> None:
    """BA2M, section III-D: nine test batches of one network, each with a number of its own."""
    rows = [row for row in ROWS if row.build is not None and row.build.test]
    assert len(rows) == 9
    build = rows[0].build
    assert build is not None
    fake_run(tmp_path, build, [70.0, 78.0, 77.0])
    for batch, top1 in {1: 77.9, 2: 78.3}.items():
        saved = {"step": 2, "inference": "softmax", "batch_size": batch, "top1": top1, "top5": 94.0}
        (tmp_path / f"eval-best-softmax-{batch}.json").write_text(json.dumps(saved))
    (tmp_path / "eval-best.json").write_text("[")
    found = tables.find_runs(tmp_path)
    scores = {dict(r.build.test)["batch_size"]: tables.matching_runs(r, found) for r in rows if r.build is not None}
    assert {batch: [(run.scores["top-1"], run.epoch) for run in runs] for batch, runs in scores.items() if runs} == {
        1: [(77.9, 2)],
        2: [(78.3, 2)],
    }


def test_a_run_by_another_recipe_is_shown_as_such(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.id == "ba_net/2/1")
    assert row.build is not None
    fake_run(tmp_path / "short", row.build, [60.0], epochs=10)
    runs = tables.matching_runs(row, tables.find_runs(tmp_path))
    assert runs[0].differs == ["schedule.epochs: 100 -> 10"]
    judged = tables.judge(row, Measured(28_071_976, 4_130_000_000, 0), runs)
    assert judged.reached == ["top-1 60.00, top-5 75.00 (other recipe)"]
    assert judged.scores == []


def test_other_directories_and_old_runs_do_no_harm(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.id == "ba_net/2/1")
    assert row.build is not None
    for name, text in {"other": "a: b", "broken": "a: [", "empty": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").touch()
        (tmp_path / name / "config.yaml").write_text(text)
    fake_run(tmp_path / "old", row.build, [60.0])
    (tmp_path / "old" / "config.yaml").write_text((tmp_path / "old" / "config.yaml").read_text() + "\nno_such_key: 1\n")
    (found,) = tables.matching_runs(row, tables.find_runs(tmp_path))
    assert "no_such_key" in found.differs[0]


def run_script(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["tables.py", *arguments])
    return script.main()


def test_the_script_prints_json_of_one_table(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(script, monkeypatch, "--paper", "dcanet", "--table", "2a", "--format", "json") == 0
    every = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in every if row["alternative"]] == [f"dcanet/2a/{i}/equations" for i in (2, 3, 4)]
    rows = [row for row in every if not row["alternative"]]
    assert [row["id"] for row in rows] == [f"dcanet/2a/{i}" for i in (1, 2, 3, 4)]
    assert [row["here"]["params"] for row in rows] == [28_088_024, 28_651_736, 28_651_736, 28_651_736]
    assert {row["verdict"] for row in rows} == {EQUAL}
    assert "attention.block.connection=softmax" in rows[2]["command"]


@pytest.mark.parametrize("form", ["text", "md"])
def test_the_script_says_which_convention_it_prints(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert run_script(script, monkeypatch, "--paper", "dcanet", "--table", "2a", "--format", form) == 0
    printed = capsys.readouterr().out
    convention = "4.130 ptflops" if form == "text" else "FLOPs are counted as `ptflops`."
    for text in ("4 rows: 4 equal", "ptflops", convention, "python train.py backbone=resnet50 attention=dca_se"):
        assert text in printed


def test_a_row_that_disagrees_ends_the_script_with_an_error(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = next(row for row in ROWS if row.id == "dcanet/2a/1")
    misprint = dataclasses.replace(row, printed={**row.printed, "params": 28.08})
    monkeypatch.setattr(tables, "load_rows", lambda *_: [misprint])
    assert run_script(script, monkeypatch, "--paper", "dcanet") == 1
    captured = capsys.readouterr()
    assert "printed 28.08, here 28.088" in captured.out.replace("28.0880", "28.088")
    assert "1 rows do not agree with their papers: dcanet/2a/1" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "2z"], "unknown table '2z'"),
        (["--paper", "resnet"], "invalid choice: 'resnet'"),
        (["--runs", "no/such/place"], "no such directory"),
    ],
)
def test_mistakes_are_answered(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        scripts.run(lambda: run_script(script, monkeypatch, *arguments))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_headline_of_ba_net_v2() -> None:
    """Only its abstract is available: 80.49 (+1.61) and 81.75 (+0.77, +0.52 over SE)."""
    rows = tables.load_rows("ba_net", "v2 abstract")
    values = {(row.model, row.method): row.top1 for row in rows}
    best50, best101 = values["ResNet-50", "BAv2"], values["ResNet-101", "BAv2"]
    assert (best50, best101) == (80.49, 81.75)
    assert round(best50 - values["ResNet-50", "none"], 2) == 1.61
    assert round(best101 - values["ResNet-101", "none"], 2) == 0.77
    assert round(best101 - values["ResNet-101", "SE"], 2) == 0.52
    for row in rows:
        assert row.build is not None
        assert row.build.schedule == "ba_v2"
        assert "data.auto_augment=rand-m9-mstd0.5-inc1" in row.build.command()
        assert "derived from the abstract" in str(row.note)


def test_the_sizes_of_ba_net_v2() -> None:
    """Nothing is printed in its paper; these follow from the released code."""
    sizes = {row.model: tables.measure(row.build).params for row in tables.load_computed() if row.build is not None}
    assert sizes == {
        "ResNet-18": 11_820_336,
        "ResNet-34": 22_033_968,
        "ResNet-50": 28_702_664,
        "ResNet-101": 50_482_316,
        "ResNeXt-50 (32x4d)": 28_803_272,
    }


def test_the_docs_are_current() -> None:
    """Counts and rows; the command that the first page names writes them again."""
    index = (ROOT / "docs" / "tables.md").read_text()
    assert "331 rows: 211 equal to the printed digit, 120 explained; FLOPs to the printed digit in 166 of 224" in index
    assert "120 rows in another form" in index
    assert "scripts/tables.py --write docs" in index
    found = []
    for paper in tables.papers():
        assert f"(tables/{paper}.md)" in index
        page = (ROOT / "docs" / "tables" / f"{paper}.md").read_text()
        assert WRONG not in page
        found += [f"{paper}/{number}" for number in re.findall(r"^\| ([^|/]+/\d+) \|", page, re.MULTILINE)]
    assert found == IDS


def test_a_page_says_equal_once_and_folds_the_command() -> None:
    """FLOPs that differ are part of the verdict; a command with < or & stays what it is."""
    row = the_row("aw_conv/1/2")
    result = tables.judge(row, Measured(25_721_872, 0, 3_859_400_000, 3_859_400_000))
    page = tables.pages([result])["tables/aw_conv.md"]
    (line,) = [line for line in page.splitlines() if line.startswith("| 1/2 |")]
    cells = line.split(" | ")
    assert cells[-2] == ("equal" if result.flops_agree else "params equal, FLOPs not")
    assert row.build is not None
    assert cells[-1].startswith("<details><summary>")
    assert f"<code>{row.build.command()}</code></details>" in cells[-1]
