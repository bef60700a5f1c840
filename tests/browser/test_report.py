"""The report in a real browser: drawn, without a network, with tabs, files to save, and on paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from playwright.sync_api import Browser, Page

from prismrec.analysis.report.chapter import Chapter, Numbers, Plot
from prismrec.analysis.report.collapse import collapse_chapter
from prismrec.analysis.report.page import Report, page
from tests.unit.analysis.planted import planted

EVIL = "<script>window.stolen=1</script>"
HOSTILE = Chapter(
    "hostile",
    f"Names {EVIL}",
    [f"`{EVIL}` & co"],
    [
        Plot(
            f"A plot of {EVIL}",
            "shows",
            "definition",
            "source",
            [{"type": "bar", "x": [EVIL, "b"], "y": [1.0, float("nan")], "model": 0}],
            {},
            Numbers(("name", "n"), [(EVIL, 1), ('a "quoted", one', None), ("line\nbreak", 2.5)]),
        )
    ],
    [f"{EVIL} is missing"],
)


@dataclass
class Opened:
    """A page, and everything it said or asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    subjects = [planted("first").subject, planted(EVIL, ("flat", "su<b>nk")).subject]
    chapters = [collapse_chapter(subjects, lambda *_: None), HOSTILE]
    text = page(
        Report("What training did", [each.name for each in subjects], ["10 rows"], chapters)
    )
    path.write_text(text, encoding="utf-8")
    return path


def _open(browser: Browser, report: Path, tab: str, **options: object) -> Iterator[Opened]:
    context = browser.new_context(accept_downloads=True, **options)  # type: ignore[arg-type]
    context.set_offline(True)
    opened = Opened(context.new_page())
    opened.page.on("console", lambda line: opened.said.append(line.text))
    opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.page.on("request", lambda request: opened.asked.append(request.url))
    opened.page.goto(f"{report.as_uri()}#{tab}")
    opened.page.wait_for_function("document.documentElement.dataset.shown")
    yield opened
    assert opened.said == []
    outside = [url for url in opened.asked if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == []
    context.close()


@pytest.fixture(scope="module")
def wide(browser: Browser, report: Path) -> Iterator[Opened]:
    yield from _open(browser, report, "collapse", viewport={"width": 1200, "height": 900})


def _pixels(opened: Opened, path: Path) -> list[np.ndarray]:
    """What is seen of every plot of the page, (height, width, 3)."""
    opened.page.screenshot(path=path, full_page=True)
    seen = (image.imread(path)[..., :3] * 255).astype(np.uint8)
    scale = seen.shape[1] / opened.page.evaluate("innerWidth")
    boxes = opened.page.evaluate(
        """Array.from(document.querySelectorAll(".plot"), (box) => {
            const at = box.getBoundingClientRect();
            return [at.left + scrollX, at.top + scrollY, at.width, at.height];
        }).filter((box) => box[2] > 0)"""
    )
    corners = [[round(each * scale) for each in box] for box in boxes]
    return [seen[y : y + height, x : x + width] for x, y, width, height in corners]


def _colours(pixels: np.ndarray) -> int:
    return len(np.unique(pixels.reshape(-1, 3), axis=0))


def test_plots_are_drawn_in_the_colours_of_their_numbers(wide: Opened, tmp_path: Path) -> None:
    wide.page.click("nav a[href='#collapse']")
    plots = _pixels(wide, tmp_path / "collapse.png")
    assert len(plots) == wide.page.locator("#chapter-collapse .plot").count() >= 3
    for number, pixels in enumerate(plots):
        assert _colours(pixels) > 30, f"plot {number} is empty"
    shades = plots[0].astype(int)
    flat, sunk = np.array([253, 231, 37]), np.array([64, 67, 135])  # Viridis at 1 and near 3 / 16
    assert (np.abs(shades - flat).sum(-1) < 12).mean() > 0.2, "three cells of four are flat"
    assert (np.abs(shades - sunk).sum(-1) < 24).mean() > 0.05


def test_tabs_show_one_chapter_at_a_time(wide: Opened) -> None:
    sections = wide.page.locator("main section")
    keys = [sections.nth(n).get_attribute("id") for n in range(sections.count())]
    assert keys == ["chapter-summary", "chapter-collapse", "chapter-hostile"]
    for key in ("summary", "hostile", "collapse"):
        wide.page.click(f"nav a[href='#{key}']")
        wide.page.wait_for_function(f"document.documentElement.dataset.shown === '{key}'")
        shown = [sections.nth(n).is_visible() for n in range(sections.count())]
        assert shown == [each == f"chapter-{key}" for each in keys]
        assert wide.page.get_attribute(f"#tab-{key}", "aria-selected") == "true"
    wide.page.focus("#tab-collapse")
    wide.page.keyboard.press("ArrowRight")
    wide.page.wait_for_function("document.documentElement.dataset.shown === 'hostile'")


def test_numbers_are_saved_as_they_are(wide: Opened, tmp_path: Path) -> None:
    wide.page.click("nav a[href='#hostile']")
    with wide.page.expect_download() as waiting:
        wide.page.click("#chapter-hostile button[data-save]")
    file = waiting.value
    assert file.suggested_filename == "hostile-1-a-plot-of-script-window-stolen-1-script.csv"
    file.save_as(tmp_path / "numbers.csv")
    text = (tmp_path / "numbers.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows == [["name", "n"], [EVIL, "1"], ['a "quoted", one', ""], ["line\nbreak", "2.5"]]


def test_no_name_becomes_code(wide: Opened) -> None:
    for tab in ("summary", "collapse", "hostile"):
        wide.page.click(f"nav a[href='#{tab}']")
        wide.page.wait_for_timeout(150)
    assert wide.page.evaluate("window.stolen") is None
    assert wide.page.locator("#chapter-hostile code").inner_text() == EVIL
    assert EVIL in wide.page.locator(".names").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_follows_light_and_dark(browser: Browser, report: Path, scheme: str) -> None:
    for opened in _open(browser, report, "collapse", color_scheme=scheme):
        ground = "getComputedStyle(document.body).backgroundColor"
        before = opened.page.evaluate(ground)
        assert before == ("rgb(246, 247, 249)" if scheme == "light" else "rgb(15, 19, 26)")
        opened.page.click("#theme")
        assert opened.page.evaluate(ground) != before
        ink = opened.page.locator("#chapter-collapse .plot .xtick text").first
        other = "rgb(230, 233, 238)" if scheme == "light" else "rgb(28, 36, 48)"
        assert ink.evaluate("e => getComputedStyle(e).fill") == other


def test_a_phone_needs_no_sideways_scrolling(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    size = {"width": 380, "height": 740}
    for opened in _open(browser, report, "collapse", viewport=size):
        for tab in ("summary", "hostile", "collapse"):
            opened.page.click(f"nav a[href='#{tab}']")
            opened.page.wait_for_timeout(150)
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= 380, tab
        assert all(_colours(each) > 30 for each in _pixels(opened, tmp_path / "phone.png"))


def test_print_has_every_chapter(wide: Opened, tmp_path: Path) -> None:
    wide.page.click("nav a[href='#collapse']")
    wide.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    wide.page.emulate_media(media="print")
    for key in ("summary", "collapse", "hostile"):
        assert wide.page.locator(f"#chapter-{key}").is_visible(), key
    drawn = wide.page.locator(".plot .main-svg")
    assert drawn.count() >= wide.page.locator(".plot").count()
    assert len(wide.page.pdf(path=tmp_path / "report.pdf")) > 50_000
    wide.page.emulate_media(media="screen")
    wide.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not wide.page.locator("#chapter-hostile").is_visible()
