"""The page in a real browser: with mouse and keyboard, in dark mode and on a phone."""

from __future__ import annotations

import io
import itertools
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from report_workspace import CLASSES, Workspace, data_of

from featcache.runs.run import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium, which is not installed")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An open page, its errors and its requests."""

    page: Page
    errors: list[str]
    requests: list[str]

    def one(self, selector: str) -> Locator:
        return self.page.locator(selector)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests, because starting it takes a second."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(workspace: Workspace, runs: tuple[Run, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about both runs."""
    return workspace.report(*runs, path=tmp_path_factory.mktemp("page") / "report.html").path


def open_page(browser: Browser, report: Path, **options: Any) -> Seen:
    """A page in a new window."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
    seen = Seen(page=context.new_page(), errors=[], requests=[])
    seen.page.on("console", lambda message: seen.errors.append(message.text))
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on("dialog", lambda dialog: seen.errors.append(f"dialog {dialog.message}"))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto(report.as_uri())
    if options.get("java_script_enabled", True):
        seen.page.wait_for_selector("html[data-ready=yes]")
    return seen


@pytest.fixture
def seen(browser: Browser, report: Path) -> Iterator[Seen]:
    """The page in a new window, without errors at the end."""
    seen = open_page(browser, report)
    yield seen
    assert seen.errors == []
    seen.page.context.close()


def colour_of(thumb: Locator) -> tuple[int, ...]:
    """The colour on screen in the middle of an element."""
    pixels = np.asarray(Image.open(io.BytesIO(thumb.screenshot())).convert("RGB"))
    middle: np.ndarray[Any, Any] = pixels[len(pixels) // 2, pixels.shape[1] // 2]
    return tuple(middle.tolist())


# --- it opens ----------------------------------------------------------------------------------------------


def test_it_opens_without_errors_and_network_requests(seen: Seen, report: Path) -> None:
    for heading in ("#map-heading", "#mistakes-title"):
        seen.one(heading).scroll_into_view_if_needed()
    assert [url for url in seen.requests if not url.startswith("data:")] == [report.as_uri()]


def test_class_names_are_shown_as_text(seen: Seen) -> None:
    names = seen.one(".matrix:visible tbody th").all_inner_texts()
    assert names == list(CLASSES)
    assert seen.one("img").count() == 0
    assert seen.one("#map-class option").all_inner_texts() == ["all classes", *CLASSES]


def test_without_script_the_numbers_are_still_there(browser: Browser, report: Path) -> None:
    seen = open_page(browser, report, java_script_enabled=False)
    assert seen.one("#runs-table tbody tr").count() == 2
    assert seen.one(".matrix:visible button").first.is_visible()
    assert seen.one(".chart:visible svg").count() >= 3
    seen.page.context.close()


# --- tables sort -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["click", "keyboard"])
def test_runs_sort_both_ways(seen: Seen, how: str) -> None:
    header = seen.one("#runs-table thead th").nth(2)
    button = header.locator("button")

    def press() -> list[float]:
        if how == "click":
            button.click()
        else:
            button.focus()
            seen.page.keyboard.press("Enter")
        cells = seen.one("#runs-table tbody tr td:nth-child(3)").all_inner_texts()
        return [float(text.removesuffix(" %")) for text in cells]

    rising = press()
    assert (rising, header.get_attribute("aria-sort")) == (sorted(rising), "ascending")
    falling = press()
    assert (falling, header.get_attribute("aria-sort")) == (sorted(rising, reverse=True), "descending")
    assert seen.one("#runs-table th[aria-sort=none]").count() == seen.one("#runs-table th[aria-sort]").count() - 1


# --- one run, its matrix and its mistakes ------------------------------------------------------------------


def ids_in_cell(report: Path, run: int, label: int, answer: int) -> set[str]:
    """The ids of the images of class `label` that a run predicted as `answer`."""
    data = data_of(report)
    images = data["imageSets"][0]
    predicted = data["runs"][run]["predicted"]
    return {
        name
        for name, *classes in zip(images["ids"], images["labels"], predicted, strict=True)
        if classes == [label, answer]
    }


def gallery_items(gallery: Locator) -> dict[str, Locator]:
    """The items of a gallery by id."""
    items = [gallery.locator("li").nth(number) for number in range(gallery.locator("li").count())]
    return {item.locator(".id").inner_text(): item for item in items}


def test_a_cell_of_the_matrix_shows_its_images(seen: Seen, report: Path, workspace: Workspace) -> None:
    cells = seen.one(".matrix:visible button")
    for number in range(cells.count()):
        cell = cells.nth(number)
        label, answer = (int(cell.get_attribute(f"data-{name}") or -1) for name in ("label", "predicted"))
        cell.click()
        images = gallery_items(seen.one("#cell-images"))
        assert set(images) == ids_in_cell(report, data_of(report)["first"], label, answer)
        assert len(images) == int(cell.inner_text())
        assert f"predicted {CLASSES[answer]}" in seen.one("#cell-title").inner_text()
    name, item = next(iter(images.items()))
    assert colour_of(item.locator(".thumb")) == workspace.colours[name]


def test_every_mistake_is_shown_with_its_own_picture(seen: Seen, workspace: Workspace) -> None:
    images = gallery_items(seen.one("#mistakes"))
    assert images
    for name, item in images.items():
        assert colour_of(item.locator(".thumb")) == workspace.colours[name]
        label = item.locator("strong").inner_text()
        assert name.split("/")[1] == label
        assert f"predicted {label}" not in item.inner_text()


def test_another_run_can_be_selected(seen: Seen, report: Path) -> None:
    other = 1 - int(data_of(report)["first"])
    before = seen.one("#mistakes").inner_text()
    seen.one("#run").select_option(str(other))
    assert seen.one(f"[data-run='{other}']").is_visible()
    assert not seen.one(f"[data-run='{1 - other}']").is_visible()
    seen.one("button[data-detail]").nth(1 - other).click()
    assert seen.one("#run").input_value() == str(1 - other)
    assert seen.one("#mistakes").inner_text() == before


# --- the map -----------------------------------------------------------------------------------------------


def test_the_map_is_filtered_by_class_and_by_error(seen: Seen, report: Path) -> None:
    data = data_of(report)
    labels = data["imageSets"][0]["labels"]
    predicted = data["runs"][data["first"]]["predicted"]
    wrong = [label for label, answer in zip(labels, predicted, strict=True) if label != answer]
    status = seen.one("#map-status")
    assert status.inner_text() == f"{len(labels)} of {len(labels)} points"
    seen.one("#map-error").select_option("wrong")
    assert status.inner_text() == f"{len(wrong)} of {len(labels)} points"
    seen.one("#map-class").select_option("1")
    assert status.inner_text() == f"{wrong.count(1)} of {len(labels)} points"
    seen.one("#map-error").select_option("all")
    assert status.inner_text() == f"{labels.count(1)} of {len(labels)} points"


def place_of(seen: Seen, report: Path, image: int) -> tuple[float, float]:
    """Where the script draws an image, in pixels from the map's corner."""
    found = data_of(report)["imageSets"][0]["maps"][0]
    box = seen.one("#map").bounding_box()
    assert box is not None
    across, up = found["highest"]
    each = min((box["width"] - 32) / across, (box["height"] - 32) / up)
    left, below = (box["width"] - each * across) / 2, (box["height"] + each * up) / 2
    return left + found["x"][image] * each, below - found["y"][image] * each


def test_pointing_at_the_map_shows_the_image(seen: Seen, report: Path, workspace: Workspace) -> None:
    ids = data_of(report)["imageSets"][0]["ids"]
    seen.one("#map").scroll_into_view_if_needed()
    for image in (0, 7, len(ids) - 1):
        left, top = place_of(seen, report, image)
        seen.one("#map").hover(position={"x": left, "y": top})
        tip = seen.one("#map-tip")
        name = tip.locator(".id").get_attribute("title")
        assert name is not None
        assert name == ids[image]
        assert colour_of(tip.locator(".thumb")) == workspace.colours[name]


def test_points_are_a_table_too(seen: Seen, report: Path) -> None:
    seen.page.get_by_text("The points as a table").click()
    assert seen.one("#map-rows tr").count() == len(data_of(report)["imageSets"][0]["ids"])


# --- keyboard only -----------------------------------------------------------------------------------------


def focus_of(seen: Seen) -> str:
    """The element that has the focus: its id, or its text."""
    text: str = seen.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
    return text


def test_everything_can_be_reached_with_the_tab_key(seen: Seen) -> None:
    reached = []
    for _ in range(80):
        seen.page.keyboard.press("Tab")
        reached.append(focus_of(seen))
        if reached[-1] == "map":
            break
    assert reached[0] == "Skip to the results"
    assert {"Test accuracy", "run", "map-class", "map-error", "map"} <= set(reached)
    outline = seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_the_matrix_is_walked_with_arrows_and_closed_with_escape(seen: Seen) -> None:
    first = seen.one(".matrix:visible button").first
    first.focus()
    seen.page.keyboard.press("ArrowDown")
    label = seen.page.evaluate("document.activeElement.dataset.label")
    assert label != "0"
    seen.page.keyboard.press("Enter")
    assert focus_of(seen) == "cell-title"
    assert seen.one("#cell-images li").count() > 0
    seen.page.keyboard.press("Escape")
    assert not seen.one("#cell").is_visible()
    assert seen.page.evaluate("document.activeElement.dataset.label") == label


def test_the_map_is_walked_with_arrows(seen: Seen) -> None:
    seen.one("#map").focus()
    visited = set()
    for key in ("Home", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
        seen.page.keyboard.press(key)
        visited.add(seen.one("#map-tip .id").inner_text())
        assert seen.one("#map-tip .id").inner_text() in seen.one("#map-status").inner_text()
    assert len(visited) >= 3
    seen.page.keyboard.press("Escape")
    assert not seen.one("#map-tip").is_visible()


def test_regions_tables_and_charts_have_names(seen: Seen) -> None:
    assert seen.one("main").count() == seen.one("h1").count() == 1
    assert seen.one("[role=region]:not([aria-label]):not([aria-labelledby])").count() == 0
    assert seen.one("[role=img]:not([aria-label])").count() == 0
    assert seen.one("canvas[aria-label][aria-describedby]").count() == 1
    assert seen.one("select").count() == seen.one("label select").count()
    levels = seen.page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((each) => Number(each.tagName[1]))")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


# --- small and dark ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_of_the_matrix_can_be_read_on_their_colours(browser: Browser, report: Path, scheme: str) -> None:
    seen = open_page(browser, report, color_scheme=scheme)
    colours = seen.page.evaluate("""[...document.querySelectorAll('.matrix button')].filter((each) => each.offsetWidth)
        .map((each) => [getComputedStyle(each).color, getComputedStyle(each).backgroundColor,
                        getComputedStyle(document.body).backgroundColor])""")
    for ink, cell, page in colours:
        assert contrast(channels(ink), over(channels(cell), channels(page))) >= 4.5
    seen.page.context.close()


def channels(colour: str) -> list[float]:
    """`rgb(1 2 3 / 0.5)` in any spelling -> [1, 2, 3, 0.5]."""
    return [float(number) for number in re.findall(r"[\d.]+", colour)]


def over(colour: list[float], below: list[float]) -> list[float]:
    """A colour over an opaque one."""
    share = colour[3] if len(colour) > 3 else 1.0
    return [share * top + (1 - share) * under for top, under in zip(colour[:3], below[:3], strict=True)]


def contrast(first: list[float], second: list[float]) -> float:
    """The contrast of two colours as WCAG 2 defines it, 1 to 21."""

    def luminance(colour: list[float]) -> float:
        parts = [one / 255 for one in colour[:3]]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
        return sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [375, 390, 768, 1280])
def test_no_label_of_a_chart_is_outside_its_card(browser: Browser, report: Path, width: int) -> None:
    seen = open_page(browser, report, viewport={"width": width, "height": 700})
    outside = seen.page.evaluate("""[...document.querySelectorAll('.chart svg text')].filter((each) => {
        const [label, card] = [each.getBoundingClientRect(), each.closest('.chart').getBoundingClientRect()];
        return label.width && (label.left < card.left || label.right > card.right);
    }).map((each) => each.textContent)""")
    assert outside == []
    seen.page.context.close()


@pytest.mark.parametrize("width", [375, 768])
def test_nothing_is_wider_than_a_phone(browser: Browser, report: Path, width: int) -> None:
    seen = open_page(browser, report, viewport={"width": width, "height": 700}, has_touch=True)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    seen.one(".matrix:visible button").first.click()
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    seen.page.context.close()


def test_it_is_dark_where_that_is_preferred(browser: Browser, report: Path) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        seen = open_page(browser, report, color_scheme=scheme)
        page = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        words = seen.page.evaluate(
            "getComputedStyle(document.querySelector('.chart svg text[fill=currentColor]')).fill"
        )
        brightness[scheme] = [sum(map(int, colour[4:-1].split(","))) for colour in (page, words)]
        seen.page.context.close()
    assert brightness["light"][0] > 600 > brightness["light"][1]
    assert brightness["dark"][0] < 150 < brightness["dark"][1]


def test_the_links_of_a_page_in_a_notebook_stay_inside_its_frame(
    browser: Browser, runs: tuple[Run, Run], tmp_path: Path
) -> None:
    notebook = tmp_path / "notebook.html"
    written = runs[0].report(tmp_path / "report.html", map="none")
    notebook.write_text(f"<!doctype html><body><h1>notebook</h1>{written._repr_html_()}")
    page = browser.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.goto(notebook.as_uri())
    _, frame = page.frames
    frame.locator("nav a").nth(1).click()
    page.wait_for_timeout(500)
    assert frame.url.startswith("about:srcdoc#")
    assert frame.evaluate("scrollY") > 100
    assert errors == []
    page.close()
