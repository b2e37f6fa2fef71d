"""The page in a real browser: on a desktop, a phone, in the dark and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import MISSING, Page, browser, find_browser
from PIL import Image
from report_runs import record, record_all

from attn.report.page import report

pytestmark = pytest.mark.skipif(find_browser() is None, reason=MISSING)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, one with a long name, and a figure."""
    top = tmp_path_factory.mktemp("page")
    record_all(top / "runs")
    long = ["backbone=resnet18", "attention=ba", "attention_name=ba", "data=digits", "schedule=quick", "schedule.epochs=20"]
    for seed in range(2):
        record(
            top / f"runs/long{seed}",
            *long,
            "schedule.lr=0.0123456789",
            "attention.block.reduction=4",
            f"seed={seed}",
            last=94.0,
        )
    (top / "figures").mkdir()
    Image.new("RGB", (1500, 400), "white").save(top / "figures" / "weights.png")
    (top / "figures" / "weights.csv").write_text("stage,channel,class,weight\n" + "1,2,a class with a long name,0.5\n" * 30)
    page, _ = report([top / "runs"], top / "figures", (), ["runs"])
    (top / "report.html").write_text(page)
    return top / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    profile = tmp_path_factory.mktemp("chromium") / "profile"
    profile.mkdir()
    with browser(profile) as opened:
        yield opened


SHOWN = "[...document.querySelectorAll('svg.chart')].filter(c => c.getBoundingClientRect().height > 100).length"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_it_loads_without_a_complaint_and_fits(page: Page, html: Path, width: int, dark: bool) -> None:
    page.open(html, width, 812, dark)
    assert page.complaints == []
    assert page.requests == [html.resolve().as_uri()]
    assert page.run("document.documentElement.scrollWidth") == width
    assert page.run(SHOWN) == 2  # the chosen curves, and the scores by seed
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run("document.documentElement.scrollWidth") == width
    small = "[...document.querySelectorAll('svg.chart text')].filter(t => t.getBoundingClientRect().height > 0)"
    assert page.run(f"Math.min(...{small}.map(t => t.getBoundingClientRect().height))") > 11  # pixels: readable
    assert page.run("[...document.images].every(i => i.naturalWidth > 0)")


def test_the_legend_toggles_a_methods_lines(page: Page, html: Path) -> None:
    page.open(html)
    lines = "[...document.querySelectorAll('.curve:not([hidden]) svg.wide g[data-method=\"1\"]')]"
    height = f"{lines}.map(g => g.getBoundingClientRect().height)[0]"
    assert page.run(height) > 50
    page.run("document.querySelector('[data-toggles=\"1\"]').focus()")
    for kind in ("keyDown", "keyUp"):  # as with a keyboard
        page.send("Input.dispatchKeyEvent", type=kind, key=" ", code="Space", text=" ", windowsVirtualKeyCode=32)
    assert page.run(height) == 0
    assert page.run(height.replace('"1"', '"0"')) > 50
    page.run("document.querySelector('[data-toggles=\"1\"]').click()")
    assert page.run(height) > 50


def test_another_curve_can_be_chosen_and_values_are_shown_under_the_pointer(page: Page, html: Path) -> None:
    page.open(html)
    assert page.run("document.querySelectorAll('.curve:not([hidden])').length") == 1
    page.run("document.querySelector('input[value=train_loss]').click()")
    assert page.run("document.querySelector('.curve:not([hidden])').dataset.curve") == "train_loss"
    page.run("document.querySelector('.curve:not([hidden])').scrollIntoView({behavior: 'instant'})")
    box = page.run(
        "(b => [b.x, b.y, b.width, b.height])(document.querySelector('.curve:not([hidden]) svg.wide').getBoundingClientRect())"
    )
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] - 14, y=box[1] + box[3] / 2)
    text = page.run("document.querySelector('.readout').textContent")
    assert text.startswith("epoch 20 · none 0.0")
    assert "· se 0.0" in text
    assert page.complaints == []


def test_dark_mode_is_dark_and_text_has_contrast(page: Page, html: Path) -> None:
    """The contrast ratio of WCAG 2.1, 1.4.3: at least 4.5 for text."""
    contrast = """(() => {
      const light = (text) => {
        const [r, g, b] = text.match(/[\\d.]+/g).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const page = light(getComputedStyle(document.documentElement).backgroundColor);
      const ratios = ["h1", "p.quiet", "nav a", "thead th", "td", "summary", "figcaption"].map((s) => {
        const text = light(getComputedStyle(document.querySelector(s)).color);
        return (Math.max(text, page) + 0.05) / (Math.min(text, page) + 0.05);
      });
      return [page, Math.min(...ratios)];
    })()"""
    page.open(html)
    background, least = page.run(contrast)
    assert background > 0.9
    assert least >= 4.5
    page.open(html, dark=True)
    background, least = page.run(contrast)
    assert background < 0.05
    assert least >= 4.5


def test_on_paper_all_curves_are_there_and_no_buttons(page: Page, html: Path) -> None:
    page.open(html, 800, 1100, media="print")
    assert page.run(SHOWN) == 5
    assert page.run("getComputedStyle(document.querySelector('.copy')).display") == "none"
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"


def test_everything_that_can_be_used_has_a_name(page: Page, html: Path) -> None:
    """As the browser tells it to a screen reader."""
    page.open(html)
    page.send("Accessibility.enable")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "link", "checkbox", "radio", "img", "image", "table", "heading", "group", "region", "navigation"}
    named = [n for n in nodes if not n["ignored"] and n["role"]["value"] in roles]
    assert len(named) > 30
    nameless = [n["role"]["value"] for n in named if not n.get("name", {}).get("value")]
    assert [role for role in nameless if role != "group"] == []  # a closed <details> is a group named by its summary


def test_without_scripts_everything_is_there(page: Page, html: Path) -> None:
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(html)
        document = page.send("DOM.getDocument")["root"]["nodeId"]
        found = page.send("DOM.querySelectorAll", nodeId=document, selector=".curve svg.wide")["nodeIds"]
        boxes = [page.send("DOM.getBoxModel", nodeId=node)["model"]["height"] for node in found]
        assert len(boxes) == 4
        assert min(boxes) > 100
    finally:
        page.send("Emulation.setScriptExecutionDisabled", value=False)
