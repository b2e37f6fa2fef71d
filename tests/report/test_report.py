"""What is in a report, and what is left out of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, composed
from PIL import Image
from report_runs import record, record_all

from attn.config.parse import to_dict
from attn.report.charts import Line, curves, nice, shown_range, style, thinned
from attn.report.figures import embed, find_figures
from attn.report.page import LIMIT, report
from attn.report.printed import printed_rows
from attn.report.repeat import command
from attn.report.runs import find, table
from attn.tables import load_rows

VOID = {"meta", "link", "input", "img", "wbr"}
NET = ["backbone=resnet18", "data=digits", "schedule=quick", "data.image_size=32", "data.test_resize=32"]


class Outline(HTMLParser):
    """Checks that tags are closed in order, and collects tags, text and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_all(tmp_path_factory.mktemp("report") / "runs")


@pytest.fixture(scope="module")
def page(runs: Path) -> tuple[str, list[str]]:
    return report([runs], None, (), [str(runs)])


def test_the_page_holds_everything(page: tuple[str, list[str]], runs: Path) -> None:
    outline = Outline(page[0])
    for part in (
        "3 methods compared over 9 runs",
        "ba has the highest mean top-1: 95.13 ± 0.50 %. It is better than none and se.",
        "95.13 ± 0.50 +2.00",
        "none and se cannot be told apart −0.43",
        "python train.py -m backbone=resnet18 attention=ba data=digits schedule=quick schedule.epochs=20 seed=0,1,2",
        f"python scripts/report.py {runs}",
        "AMD EPYC",
        "attn.modules.ba.BA",
    ):
        assert part in outline.text, part
    headings = [tag for tag, _ in outline.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def test_no_run_is_left_out_without_its_name(page: tuple[str, list[str]], runs: Path) -> None:
    text = Outline(page[0]).text
    reasons = {"se/seed3": "not finished: epoch 7 of 20", "se/broken": "while parsing", "elsewhere": "it has no config.yaml"}
    assert len(page[1]) == len(reasons)
    for folder, reason in reasons.items():
        assert any(line.startswith(f"{runs / folder} is left out: {reason}") for line in page[1])
        assert f"{runs / folder} : {reason}" in text


def test_the_page_is_self_contained(page: tuple[str, list[str]]) -> None:
    assert len(page[0].encode()) < LIMIT
    for tag, attributes in Outline(page[0]).tags:
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    assert not re.findall(r"https?://|@import|url\((?!#)", page[0])


def test_what_a_screen_reader_needs_is_there(page: tuple[str, list[str]]) -> None:
    tags = Outline(page[0]).tags
    names = [tag for tag, _ in tags]
    assert names.count("caption") == names.count("table") > 5
    assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")
    charts = [attributes for tag, attributes in tags if tag == "svg" and attributes.get("role") == "img"]
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(charts) == 10  # four curves and a strip, each wide and narrow
    assert len(ids) == len(set(ids))
    for attributes in charts:
        assert set((attributes["aria-labelledby"] or "").split()) <= set(ids)
    assert all("aria-hidden" in attributes for tag, attributes in tags if tag == "svg" and attributes.get("role") != "img")
    assert "ba: 95.13 in epoch 20" in page[0]


def test_strings_from_files_are_escaped(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    (tmp_path / name).mkdir()
    run = record(tmp_path / "run", *NET, "attention=se", last=90.0, epochs=2).rename(tmp_path / name / "seed0")
    content = (run / "config.yaml").read_text()
    evil = "attention_name: \"</script><script>alert('1')\""
    (run / "config.yaml").write_text(re.sub(r"attention_name: \w+", lambda _: evil, content))
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "figures" / "a.png")
    (tmp_path / "figures" / "a.csv").write_text("<b>x</b>,</table>\n1,</script><script>alert(2)</script>\n")
    text, _ = report([tmp_path], tmp_path / "figures", (), [f"{tmp_path}/{name}"])
    outline = Outline(text)
    assert [tag for tag, _ in outline.tags].count("script") == 2
    assert all("onerror" not in attributes for _, attributes in outline.tags)
    assert "</script><script>alert(2)</script>" in outline.text
    assert "1 method compared over 1 run" in outline.text
    assert "</script><script>alert('1') has the highest mean" in outline.text


def test_one_run_and_two_seeds(tmp_path: Path) -> None:
    record(tmp_path / "a", *NET, "attention=se", "attention_name=se", last=90.0, epochs=1)
    text = Outline(report([tmp_path], None, (), [])[0]).text
    assert "1 method compared over 1 run" in text
    assert "Verdicts" not in text
    for seed in (0, 1):
        record(tmp_path / f"b{seed}", *NET, "attention=ba", "attention_name=ba", f"seed={seed}", last=91.0, epochs=1)
    text = Outline(report([tmp_path], None, (), [])[0]).text
    assert "too few seeds (1 common seed, 3 are needed)" in text
    assert "There are too few seeds to compare it with se." in text


def test_many_methods(tmp_path: Path) -> None:
    """Nine methods make 36 pairs, which are folded up."""
    for number in range(9):
        record(
            tmp_path / f"{number}",
            *NET,
            "attention=se",
            "attention_name=se",
            f"schedule.lr={(number + 1) / 100}",
            last=90.0,
            epochs=2,
        )
    outline = Outline(report([tmp_path], None, (), [])[0])
    assert "All 36 pairs" in outline.text
    assert "Show all" in outline.text
    assert "se (schedule.lr=0.09)" in outline.text


@pytest.mark.parametrize(
    "overrides",
    [
        ["attention=se", "attention.block.reduction=4", "schedule.lr=0.03", "schedule.no_decay=[norm,bias]"],
        ["attention=none", "backbone.name=resnet10t", "pretrained=true", "channels_last=true", "data.workers=1"],
        ["attention=ba", "+backbone.drop_path_rate=0.1", "schedule.ema_decay=0.99", "early_stop=3"],
    ],
)
def test_the_command_gives_the_same_config(tmp_path: Path, overrides: list[str]) -> None:
    name = overrides[0].partition("=")[2]
    asked = [*NET, *overrides, f"attention_name={name}"]
    cfg = composed(*asked, f"run_dir={tmp_path / 'run'}")
    record(tmp_path / "run", *asked, "seed=5", last=90.0, epochs=int(cfg.schedule.epochs))
    (row,) = table(find([tmp_path])[0])
    line = command(row)
    assert line is not None
    again = composed(*shlex.split(line)[2:], f"attention_name={name}", f"run_dir={tmp_path / 'run'}")
    assert to_dict(again) == to_dict(row.runs[0].cfg)


def test_runs_on_the_splits_of_their_seeds_are_one_row(tmp_path: Path) -> None:
    chosen = ["backbone=resnet18", "attention=se", "attention_name=se", "data=elpv_four", "schedule=quick"]
    for seed in (3, 4):
        record(tmp_path / f"own{seed}", *chosen, f"seed={seed}", last=80.0)
        record(tmp_path / f"fixed{seed}", *chosen, f"seed={seed}", "data.split=9", last=80.0)
    commands = [command(row) for row in table(find([tmp_path])[0])]
    line = "python train.py -m backbone=resnet18 attention=se data=elpv_four schedule=quick"
    assert commands == [f"{line} data.split=9 seed=3,4", f"{line} seed=3,4"]


def test_printed_values_of_a_papers_row(tmp_path: Path) -> None:
    row = next(r for r in load_rows("ba_net") if r.build and r.build.schedule and r.build.attention == "ba" and r.top1)
    build = row.build
    assert build is not None
    chosen = [f"backbone={build.backbone}", f"attention={build.attention}", f"data={build.data}"]
    chosen += [f"schedule={build.schedule}", *build.overrides(), f"attention_name={build.attention}"]
    record(tmp_path / "a", *chosen, last=row.top1 - 1, noise=0.0)
    record(tmp_path / "b", *chosen, "seed=1", last=row.top1, noise=0.0)
    found = [
        p for p in printed_rows(find([tmp_path])[0]) if (p.paper, p.table, p.number) == (row.paper, row.table, row.number)
    ]
    assert found[0].runs == 2
    assert found[0].differs == []
    top1 = next(score for score in found[0].scores if score.metric == "top-1")
    assert top1.printed == row.top1
    assert top1.differences["mean"] == pytest.approx(-0.5)


def test_figures_are_found_beside_runs_and_in_a_folder(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "pictures"
    run.mkdir(), other.mkdir()
    for path in (run / "weights.png", run / "curves.png", run / "gradcam-se.png", other / "anything.png"):
        Image.new("RGB", (60, 30), "red").save(path)
    (other / "cost.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (other / "cost.png").write_bytes(b"x" * 999)
    (other / "maps.png").write_bytes(b"no picture")
    (other / "cost.csv").write_text("a,b\n" + "1,2\n" * 100)
    found = find_figures([run], other)
    assert [path.name for path in found] == ["gradcam-se.png", "weights.png", "anything.png", "cost.svg", "maps.png"]
    figures, left_out = embed(found, 100_000)
    assert [figure.name for figure in figures] == ["gradcam-se", "weights", "anything", "cost"]
    assert figures[3].uri.startswith("data:image/svg+xml;base64,")
    assert (len(figures[3].table), figures[3].rows) == (41, 100)
    assert [path.name for path, _ in left_out] == ["maps.png"]


def test_large_pictures_are_made_smaller_or_left_out(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "maps.png")
    figures, left_out = embed([tmp_path / "maps.png"], 3_000_000)
    assert [figure.uri[:16] for figure in figures] == ["data:image/webp;"]
    assert len(figures[0].uri) < 3_000_000
    figures, left_out = embed([tmp_path / "maps.png"], 20_000)
    assert figures == []
    assert "too large for this page" in left_out[0][1]


def test_scales_and_curves() -> None:
    assert nice(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice(92.3, 96.1) == [93, 94, 95, 96]
    assert nice(5.0, 5.0)
    points = [(n, 0.0) for n in range(1, 1002)]
    assert 2 <= len(list(thinned(points, 100))) <= 101
    assert list(thinned(points, 100))[-1] == (1001, 0.0)
    assert len({style(number) for number in range(56)}) == 56
    falling = [Line(0, "a", [[(epoch, 1 / epoch) for epoch in range(1, 21)]])]
    assert shown_range(falling, rising=False)[1] < 0.2
    assert shown_range(falling, rising=False, whole=True)[1] > 1
    short = Line(0, "a<b", [[(1, 50.0), (2, 60.0)], [(1, 52.0)]])
    assert short.mean == [(1, 51.0)]  # where all seeds have a value
    assert "a&lt;b" in curves([short], "Top-1", True, "x")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no folder is named"),
        (["{tmp}/nowhere"], "{tmp}/nowhere: no such folder"),
        (["{tmp}"], "no finished run in {tmp}"),
        (["{tmp}", "out={tmp}"], "out={tmp} is a folder"),
        (["{tmp}", "out={tmp}/no/x.html"], "out={tmp}/no/x.html: there is no folder"),
        (["{tmp}", "figures={tmp}/no"], "figures={tmp}/no: no such folder"),
        (["{tmp}", "output=x"], "unknown argument 'output=x'"),
        (["{tmp}", "--out"], "unknown argument '--out'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], told: str, in_process) -> None:
    done = in_process(["scripts/report.py", *(a.format(tmp=tmp_path) for a in arguments)])
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {told.format(tmp=tmp_path)}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["scripts/report.py", "out={tmp}/page.html"], ["scripts/compare.py"]])
def test_a_reader_that_closes_the_pipe_is_no_error(runs: Path, tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, *(a.format(tmp=tmp_path) for a in arguments), str(runs / "ba")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr


def test_the_script(runs: Path, tmp_path: Path, in_process) -> None:
    done = in_process(["scripts/report.py", str(runs / "ba"), str(runs / "se"), f"out={tmp_path / 'page.html'}"])
    assert done.returncode == 0, done.stderr
    assert f"saved {tmp_path / 'page.html'}" in done.stdout
    assert done.stderr.count("is left out: ") == 2
    assert "2 methods compared over 6 runs" in (tmp_path / "page.html").read_text()
    assert "figures=FOLDER" in in_process(["scripts/report.py", "--help"]).stdout
