"""The report in a real browser: it shows everything, asks for nothing, and fits a telephone"""

import pytest
from chromium import ABSENT, BROWSER, chromium, watch

pytestmark = pytest.mark.skipif(BROWSER is None, reason=ABSENT)


@pytest.fixture(scope="module", params=[1280, 390], ids=["desktop", "telephone"])
def opened(request, tiny_run):
    "The report at one width: (page, what it complained of, what it asked for)."
    complaints, asked = [], []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": request.param, "height": 900})
        watch(page, complaints, asked)
        page.goto((tiny_run.folder/"report.html").as_uri(), wait_until="load")
        yield page, complaints, asked


def test_no_complaints_and_no_requests(opened, tiny_run):
    _, complaints, asked = opened
    assert complaints == []
    assert {url for url in asked if not url.startswith("data:")} == {(tiny_run.folder/"report.html").as_uri()}


def test_every_picture_is_there(opened, tiny_run):
    widths = opened[0].eval_on_selector_all("img", "pictures => pictures.map(i => i.naturalWidth)")
    pictures = 10 + 4 * 3  # the overview; of the set and all features together; matrix, curves, map and mistakes of each feature
    assert len(widths) == pictures + (tiny_run.folder/"figures/suspects.png").exists() and all(widths)
    assert opened[0].eval_on_selector_all("img", "pictures => pictures.every(i => i.alt)")


def test_nothing_runs_out_of_the_page(opened):
    inside, window = opened[0].evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert inside <= window
    outside = "all => all.filter(e => e.getBoundingClientRect().right > window.innerWidth + 1).length"
    assert opened[0].eval_on_selector_all(".output_png, p, h1, h2, h3, .table", outside) == 0


def test_a_picture_is_never_too_small_to_read(opened):
    "Where the window is narrower it is moved sideways."
    widths = opened[0].eval_on_selector_all(".output_png img", "pictures => pictures.map(i => i.clientWidth)")
    assert widths and min(widths) >= 400
    holders = opened[0].eval_on_selector_all(".output_png", "all => all.every(e => e.scrollWidth <= e.clientWidth || getComputedStyle(e).overflowX == 'auto')")
    assert holders


def test_a_table_can_be_taken_along(opened):
    "Folded away below it, as Markdown and as LaTeX."
    source = opened[0].locator("details").first
    assert not source.locator("pre").first.is_visible()
    source.locator("summary").click()
    assert source.locator("pre").first.inner_text().startswith("| split | videos |") and "\\toprule" in source.locator("pre").last.inner_text()


def test_the_file_is_small_enough_to_hand_in(tiny_run):
    assert (tiny_run.folder/"report.html").stat().st_size < 8e6


def test_the_report_reads_as_one(opened):
    page = opened[0]
    assert page.title() == "tiny: how much of the label does each feature carry?"
    assert page.locator("h1").count() == 1 and page.locator("h2").count() >= 5
    assert page.locator("table").count() >= 7
    assert "Traceback" not in page.inner_text("body") and "untrained" in page.inner_text("body")
