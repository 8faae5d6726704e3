"""The report in a real browser: it shows everything, asks for nothing, and fits a telephone"""

import re

import pytest
from chromium import ABSENT, BROWSER, chromium, watch

pytestmark = pytest.mark.skipif(BROWSER is None, reason=ABSENT)


@pytest.fixture(scope="module", params=[1280, 1000, 390], ids=["desktop", "small window", "telephone"])
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
    assert len(widths) == len(list((tiny_run.folder/"figures").glob("*.png"))) and all(widths)
    assert opened[0].eval_on_selector_all("img", "pictures => pictures.every(i => i.alt)")


def test_nothing_runs_out_of_the_page(opened):
    inside, window = opened[0].evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert inside <= window
    outside = "all => all.filter(e => e.getBoundingClientRect().right > window.innerWidth + 1).length"
    assert opened[0].eval_on_selector_all(".output_png, p, h1, h2, h3, .table", outside) == 0


def test_sections_are_open_and_rooms_closed(opened):
    assert opened[0].locator("details.section:not([open])").count() == 0 < opened[0].locator("details.section").count()
    assert opened[0].locator("details.room[open]").count() == 0 < opened[0].locator("details.room").count()
    headings = opened[0].locator("details.room > summary").all_inner_texts()
    assert any(re.fullmatch(r"cnn3d: top-1 \d\.\d{3} of \d+ validation videos",
                            h.strip()) for h in headings) and "Which differences are real?" in " ".join(headings)


def test_every_link_of_the_contents_opens_what_it_names(opened):
    page = opened[0]
    for link in page.locator("nav a").all():
        link.click()
        target = page.evaluate("document.getElementById(decodeURIComponent(location.hash.slice(1)))?.closest('details').open")
        assert target is True, link.inner_text()
    rooms = page.locator("details.room")
    assert page.locator("details.room[open]").count() == rooms.count() > 5
    rooms.evaluate_all("all => all.forEach(room => room.open = false)")


def test_paper_shows_everything_but_the_sources(opened):
    page, shown = opened[0], "all => all.map(e => e.checkVisibility({contentVisibilityAuto: true}))"
    page.emulate_media(media="print")
    page.wait_for_function("[...document.querySelectorAll('.room .inside img, .room .inside p')].every(e => e.checkVisibility({contentVisibilityAuto: true}))")
    assert not any(page.eval_on_selector_all("details.sources pre", shown))
    page.emulate_media(media="screen")
    page.wait_for_function("[...document.querySelectorAll('.room .inside img')].every(e => !e.checkVisibility({contentVisibilityAuto: true}))")


def test_nothing_of_an_open_room_runs_out_of_the_page(opened):
    page = opened[0]
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    inside = "tables => tables.every(t => t.closest('.table') && getComputedStyle(t.closest('.table')).overflowX == 'auto')"
    assert page.eval_on_selector_all("table", inside)
    page.evaluate("document.querySelectorAll('details.room, details.sources').forEach(d => d.open = false)")


def test_a_picture_is_never_too_small_to_read(opened):
    "Where the window is narrower it is moved sideways."
    opened[0].evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    widths = opened[0].eval_on_selector_all(".output_png img", "pictures => pictures.map(i => i.clientWidth)")
    assert widths and min(widths) >= 400
    holders = opened[0].eval_on_selector_all(".output_png", "all => all.every(e => e.scrollWidth <= e.clientWidth || getComputedStyle(e).overflowX == 'auto')")
    assert holders


def test_a_table_can_be_taken_along(opened):
    "Folded away below it, as Markdown and as LaTeX."
    source = opened[0].locator("details.sources").first
    if source.get_attribute("open") is not None: source.locator("summary").click()
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
