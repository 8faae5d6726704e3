"""`hw2 explore`: one file that plays its videos in Chromium on a desktop and on a telephone, by mouse and by keyboard, and asks nothing of a network"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from chromium import ABSENT, BROWSER, chromium, watch

from hw2.data.probe import write_video
from hw2.explorer.page import Embedded, about, embed_videos, page_data, page_html, page_table, write_page
from hw2.run.example import invented_run
from hw2.run.run import Run
from hw2.run.wrong_labels import suspects

pytestmark = pytest.mark.skipif(BROWSER is None, reason=ABSENT)
HOSTILE = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "a|b \"c\" & 'd' `e` $f$ %%data%%", "{{ 7 * 7 }}\u202e\x00 " + "long" * 40]
PLAYS = "() => { const all = [...document.querySelectorAll('.card video')]; return all.length > 0 && all.every(v => v.currentTime > 0 && !v.paused) }"


@pytest.fixture(scope="module")
def explored(tiny_run, tmp_path_factory, command):
    "The tiny run's page, as the command line writes it for a copy of the run; and what the command printed."
    home = tmp_path_factory.mktemp("explored")
    shutil.copytree(tiny_run.folder, home/"runs/tiny")
    (home/"tiny").symlink_to(tiny_run.home/"tiny")
    done = command("explore", "tiny", cwd=home)
    assert done.returncode == 0, done.stderr
    return home/"runs/tiny/explore.html", done.stdout


@pytest.fixture(scope="module")
def browser():
    with chromium() as started: yield started


@pytest.fixture(params=[1280, 390], ids=["desktop", "telephone"])
def width(request) -> int: return request.param


@pytest.fixture
def opened(browser, width):
    "A function that opens a page; afterwards it had no complaint, no request and nothing outside of the window."
    complaints, asked, files, pages = [], [], set(), []

    def open_page(path: Path, **context):
        page = browser.new_context(viewport={"width": width, "height": 900}, has_touch=width < 500, **context).new_page()
        watch(page, complaints, asked)
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri(), wait_until="load")
        files.add(path.as_uri())
        pages.append(page)
        return page
    yield open_page
    for page in pages:
        for view in ("matrix", "map", "list"):
            page.click(f"#tab-{view}")
            assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
        page.context.close()
    assert complaints == [] and {url for url in asked if not url.startswith("blob:")} == files


@pytest.fixture
def page(opened, explored): return opened(explored[0])


def answers(page, card: int = 0) -> list[list[str]]:
    "The table beside a video: feature, predicted class, p, p of the true class."
    return page.locator(".card").nth(card).locator("tbody tr").evaluate_all("rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))")


def expected(run: Run, id: str) -> list[list[str]]:
    "The same, from predictions.csv."
    rows = []
    for f in run.metrics:
        row = run.predictions(f).set_index("id").loc[id]
        p, sign = row.filter(regex=r"^p_\d+$").astype(float), "✓" if row["label"] == row["pred"] else "✗"
        rows.append([run.display_name(f), f"{sign} {run.classes[row['pred']]}", p.max(), p.iloc[row["label"]]])
    return rows


def same(found: list[list[str]], wanted: list[list]) -> bool:
    "Whether a table shows these predictions."
    return [r[:2] for r in found] == [r[:2] for r in wanted] and np.allclose([[float(x) for x in r[2:]] for r in found], [r[2:] for r in wanted], atol=.0011)


def test_the_command_prints_path_and_size_in_one_line(explored):
    page, printed = explored
    assert re.fullmatch(r"runs/tiny/explore\.html: \d+\.\d MB\n", printed)
    assert float(printed.split()[1]) == pytest.approx(page.stat().st_size / 1e6, abs=.06)


def test_a_click_on_a_cell_plays_its_videos(page, explored, width):
    run = Run(explored[0].parent)
    C = run.confusion("sift")
    assert page.eval_on_selector_all("#matrix td", "all => all.map(c => +c.textContent)") == C.ravel().tolist()
    shown = page.locator("#matrix [aria-selected]")
    t, p = next(cell for cell in map(tuple, np.argwhere(C).tolist()) if shown.get_attribute("data-t") != str(cell[0]))
    page.click(f"#matrix td[data-t='{t}'][data-p='{p}']")
    page.wait_for_function(PLAYS)
    assert page.inner_text("#sentence").startswith(f"{C[t, p]} of the {C[t].sum()} validation videos of {run.classes[t]} ")
    ids = page.locator(".card figcaption b").all_inner_texts()
    rows = run.labelled_predictions("sift").set_index("id").loc[ids]
    assert len(ids) == C[t, p] and set(rows["label"]) == {t} and set(rows["pred"]) == {p}
    for k, id in enumerate(ids): assert same(answers(page, k), expected(run, id))
    box = page.locator("#sentence").bounding_box()
    assert 0 <= box["y"] < 900 and (width > 500 or page.evaluate("scrollY") > 0)  # the videos come into view


def test_a_click_on_a_point_plays_its_video(page, explored):
    page.click("#tab-map")
    point = page.locator("#map path:not(.out)").nth(5)
    point.scroll_into_view_if_needed()
    box, i = point.bounding_box(), point.get_attribute("data-i")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function(PLAYS)
    assert page.locator(".card").get_attribute("data-i") == i
    run = Run(explored[0].parent)
    assert page.locator(".card figcaption b").all_inner_texts() == [run.manifest["id"][int(i)]]
    assert page.locator("#map path").count() == 105 and page.locator("#map path:not(.out)").count() == 30


def test_a_click_on_a_name_plays_its_video(page, explored):
    page.click("#tab-list")
    row = page.locator("#list button").nth(3)
    id = row.locator("span").nth(1).inner_text()
    row.click()
    page.wait_for_function(PLAYS)
    assert page.locator(".card figcaption b").all_inner_texts() == [id] and same(answers(page), expected(Run(explored[0].parent), id))
    page.click("#back") if page.locator("#back").is_visible() else page.keyboard.press("Escape")
    assert row.evaluate("e => e === document.activeElement")


def test_filters_choose_what_predictions_say(page, explored):
    run = Run(explored[0].parent)
    right, listed = run.correct("val"), lambda: sorted(page.locator("#list button > :nth-child(2)").all_inner_texts())
    page.click("#tab-list")
    page.select_option("#wrong", label=run.display_name("sift"))
    page.select_option("#correct", label=run.display_name("cnn3d"))
    wanted = right.index[~right[run.display_name("sift")] & right[run.display_name("cnn3d")]]
    assert listed() == sorted(wanted) and 0 < len(wanted) < 30
    page.select_option("#class", label=run.classes[2])
    label = run.manifest.set_index("id")["label"]
    assert listed() == sorted(i for i in wanted if label[i] == 2)
    page.click("#clear")
    page.select_option("#split", label="training")
    assert len(listed()) == 60
    page.click("#tab-matrix")
    assert "trained on these videos" in page.inner_text("#matrix-title")
    page.click("#tab-list")
    page.select_option("#split", label="all")
    id = run.manifest["id"][40]
    page.fill("#name", id[2:9].upper())
    assert listed() == [id] and page.inner_text("#count") == "1 video passes the filters."
    page.fill("#name", "no such video")
    assert listed() == [] and "No video passes" in page.inner_text("#view-list")


def test_another_feature_has_its_own_matrix_and_map(page, explored):
    run = Run(explored[0].parent)
    places = "all => all.map(e => e.getAttribute('transform'))"
    page.click("#tab-map")
    before = page.eval_on_selector_all("#map path", places)
    page.select_option("#feature", label="cnn3d")
    assert page.eval_on_selector_all("#map path", places) != before
    shown = page.locator("#matrix [aria-selected]")
    cell = tuple(int(shown.get_attribute(name)) for name in ("data-t", "data-p"))  # the one that was open, now by the other feature
    assert page.inner_text("#sentence").rstrip(".").removesuffix(", most confident first").endswith("by cnn3d")
    assert page.locator(".card").count() == min(3, run.confusion("cnn3d")[cell])
    page.select_option("#class", label=run.classes[cell[0]])
    assert "filtered" in page.inner_text("#sentence")
    page.click("#clear")
    page.select_option("#feature", label=run.display_name("late"))
    assert page.inner_text("#map-title").endswith("fusions have none.")
    page.click("#tab-matrix")
    assert page.eval_on_selector_all("#matrix td", "all => all.map(c => +c.textContent)") == run.confusion("late").ravel().tolist()


def test_everything_works_from_the_keyboard(page):
    focused = lambda: page.evaluate("() => [document.activeElement.id, document.activeElement.dataset.t, document.activeElement.dataset.p]")
    page.focus("#clear") if page.is_enabled("#clear") else page.focus("#name")
    page.keyboard.press("Tab")
    assert focused()[0] == "tab-matrix"
    page.keyboard.press("Tab")
    page.keyboard.press("Control+Home")
    assert focused()[1:] == ["0", "0"]
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp"): page.keyboard.press(key)
    assert focused()[1:] == ["1", "1"] and page.inner_text("#matrix-status").endswith("wheel_right → wheel_right")
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2  # the focus can be seen
    page.keyboard.press("End")
    assert focused()[1:] == ["1", "14"]
    page.locator("#matrix td:not(:empty)").nth(2).focus()
    cell = focused()
    page.keyboard.press("Enter")
    page.wait_for_function(PLAYS)
    assert focused()[0] == "sentence"
    page.keyboard.press("Escape")
    assert focused() == cell and page.evaluate("[...document.querySelectorAll('.card video')].every(v => v.paused)")
    page.focus("#tab-matrix")
    page.keyboard.press("ArrowRight")
    page.focus("#map")
    for key in ("ArrowRight", "ArrowLeft", "ArrowDown"): page.keyboard.press(key)
    said = page.inner_text("#map-status")
    page.keyboard.press("Enter")
    page.wait_for_function(PLAYS)
    assert said.startswith(page.inner_text(".card figcaption b") + ": ")
    page.keyboard.press("Escape")
    assert focused()[0] == "map"
    page.focus("#tab-map")
    page.keyboard.press("End")
    page.locator("#list button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function(PLAYS)
    assert page.locator("#list button").nth(1).get_attribute("aria-current") == "true"


def test_what_is_touched_is_large_enough(page, width):
    least = 44 if width < 500 else 40
    small = "(all, least) => all.filter(e => e.offsetParent && e.offsetHeight < least - .5).map(e => e.outerHTML.slice(0, 99))"
    for view in ("matrix", "map", "list"):
        page.click(f"#tab-{view}")
        assert page.eval_on_selector_all("button, select, input", small, least) == []
    page.click("#tab-matrix")
    cell = page.locator("#matrix td").first.bounding_box()
    assert min(cell["width"], cell["height"]) >= (31 if width < 500 else 24)


CONTRAST = """() => {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const luminance = c => .2126 * linear(c[0] / 255) + .7152 * linear(c[1] / 255) + .0722 * linear(c[2] / 255);
  const rgba = s => { const m = s.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m };
  const over = (top, under) => top.slice(0, 3).map((v, k) => v * top[3] + under[k] * (1 - top[3]));
  const behind = e => e === document.documentElement ? [255, 255, 255] : over(rgba(getComputedStyle(e).backgroundColor), behind(e.parentElement));
  const hasText = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  const texts = [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest('script, :disabled, option, svg') && hasText(e));
  return texts.map(e => {
    const [a, b] = [over(rgba(getComputedStyle(e).color), behind(e)), behind(e)].map(luminance);
    return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 80)];
  }).sort((a, b) => a[0] - b[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scheme, opened, explored):
    page = opened(explored[0], color_scheme=scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    for f, view in [("cnn3d", "matrix"), ("sift", "matrix"), ("sift", "list"), ("sift", "map")]:
        page.click(f"#tab-{view}")
        page.select_option("#feature", label=f)
        found = page.evaluate(CONTRAST)
        assert len(found) > 30 and found[0][0] >= 4.5, found[0]


# Other runs


def of_run(folder: Path, names, mb: float = 60, **params) -> tuple[Run, Path]:
    "An invented run and its page."
    run = Run(invented_run(folder, "invented", names, classifier={"seeds": [0]}, **params))
    return run, write_page(run, mb=mb)


def test_names_are_text_everywhere(opened, tmp_path):
    "Names of classes, of videos and of the run that are HTML, ends of scripts, or very long."
    for i in (12, 13): write_video(tmp_path/f"{i}.mp4", np.full((8, 32, 32, 3), 90, np.uint8), 8)
    run = Run(invented_run(tmp_path, "invented", HOSTILE, data=str(tmp_path), features=["cnn"], classifier={"seeds": [0]}))
    table = page_table(run)
    embedded = embed_videos({i: tmp_path/f"{i}.mp4" for i in (12, 13)}, 1e6)
    data = page_data(run, table, embedded, {0: HOSTILE[1]})
    data["videos"]["name"] = [f"{HOSTILE[i % 4]}{i}" for i in range(len(table))]
    path = tmp_path/"hostile.html"
    path.write_text(page_html(HOSTILE[1], about(len(table), embedded, 1, 60), data, embedded.data), encoding="utf-8")
    page = opened(path)
    assert page.title() == HOSTILE[1] and page.locator("h1").inner_text() == HOSTILE[1]
    assert page.locator("#matrix thead span").all_text_contents() == data["classes"] and data["classes"][:3] == HOSTILE[:3]
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2 + 2
    page.click("#tab-list")
    page.fill("#name", HOSTILE[1][:20])
    page.locator("#list button").first.click()
    page.fill("#name", f"{HOSTILE[0]}12")
    page.locator("#list button").first.click()
    page.wait_for_function(PLAYS)
    assert page.locator(".card figcaption b").inner_text() == f"{HOSTILE[0]}12"


def test_a_hundred_classes_and_twelve_features(opened, tmp_path):
    features = {f"f{i}": {"like": "cnn"} for i in range(12)}
    run, path = of_run(tmp_path, [f"class {i}" for i in range(100)], features=features, fuse=None)
    page = opened(path)
    assert page.locator("#matrix td").count() == 10_000 and page.locator("#feature option").count() == len(run.metrics) >= 12
    page.select_option("#feature", label="f11")
    C = run.confusion("f11")
    assert page.evaluate("[...document.querySelectorAll('#matrix td')].map(c => +c.textContent)") == C.ravel().tolist()
    t, p = next(cell for cell in np.argwhere(C).tolist() if cell[0] > 90 and cell[0] != cell[1])
    page.focus(f"#matrix td[data-t='{t}'][data-p='{p}']")
    page.keyboard.press("Enter")
    assert page.locator(".card").first.locator("tbody tr").count() == len(run.metrics)
    assert page.locator("#confusions button").count() == 10


def test_labels_that_are_probably_wrong_are_a_list(opened, tmp_path):
    run, path = of_run(tmp_path, ["a", "b", "c"], features=["sift", "cnn"])
    page, table = opened(path), suspects(run)
    page.click("#tab-list")
    page.select_option("#order", label="labels that are probably wrong")
    assert page.locator("#list button > :nth-child(2)").evaluate_all("all => all.map(e => e.firstChild.data)") == table["id"].tolist()
    assert page.locator("#split").input_value() == ""
    page.locator("#list button").nth(2).click()
    assert f"is probably wrong; suggested is {table['suggested'][2]}." in page.inner_text(".card p")
    assert [r[:2] for r in answers(page)] == [["sift", table["by sift"][2]], ["cnn", table["by cnn"][2]]]
    page.select_option("#class", label="b")
    assert page.locator("#list button").count() == (table["given"] == "b").sum()


def test_every_video_once_with_folds(opened, tmp_path):
    run, path = of_run(tmp_path, ["a", "b", "c"], features=["cnn"], folds=3)
    page = opened(path)
    assert page.locator("#split option").all_inner_texts() == ["held-out", "test", "all"]
    assert page.inner_text("#matrix-title").startswith(f"cnn: {np.trace(run.confusion('cnn'))} of {run.confusion('cnn').sum()} held-out videos")


def test_without_test_labels(opened, tmp_path):
    _, path = of_run(tmp_path, ["a", "b", "c"], test=False, features=["cnn"])
    page = opened(path)
    page.select_option("#split", label="test")
    assert page.inner_text("#matrix-title").startswith("None of these videos has both a label and a prediction")
    page.click("#tab-list")
    page.locator("#list button").first.click()
    assert re.match(r"Test video without a label, predicted as [abc] by cnn\.", page.inner_text("#sentence"))
    assert answers(page)[0][3] == "–"


def test_without_video_files(opened, tmp_path):
    "As with vectors from a file: everything but the players, and it says so."
    (tmp_path/"v.csv").write_text("id,x\n")
    _, path = of_run(tmp_path, ["a", "b", "c"], features={"theirs": {"kind": "vectors", "file": str(tmp_path/"v.csv")}}, data=str(tmp_path))
    page = opened(path)
    assert page.inner_text("#about").startswith("No video plays here: none of the run's 81 video files was there")
    assert page.locator(".card .gone").count() == page.locator(".card").count() > 0 and page.locator("video").count() == 0
    assert page.locator(".gone").first.inner_text() == "This video cannot be shown: no such file."


def test_what_is_left_out_is_said_and_mistakes_come_first(opened, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(81): write_video(tmp_path/f"{i}.mp4", np.kron(rng.integers(0, 255, (8, 8, 8, 3), np.uint8), np.ones((1, 8, 8, 1), np.uint8)), 8)
    run, path = of_run(tmp_path, ["a", "b", "c"], mb=.15, features=["cnn"], data=str(tmp_path))
    page = opened(path)
    here = page.locator("script[type='text/plain']").evaluate_all("all => all.map(e => [+e.id.slice(1), e.textContent.length])")
    n, size = len(here), sum(length for _, length in here)
    table = page_table(run)
    assert 3 < n < 20 and .1e6 < size <= .15e6 and (table["pred_cnn"] == table["label"]).sum() > 10
    assert (table["pred_cnn"] != table["label"]).iloc[[i for i, _ in here]].all()
    said = page.inner_text("#about")
    assert said.startswith(f"{n} of 81 videos play from this file, without a network, mistakes first; {80 - n} are left out") and "1 cannot be shown" in said
    page.select_option("#split", label="training")
    page.click("#tab-list")
    page.locator("#list button").first.click()
    assert page.inner_text(".card .gone").startswith("This video ") and "not in this file" in page.locator("#list button").first.inner_text()


def test_a_page_without_videos_is_still_a_page(opened, explored, monkeypatch, tmp_path):
    monkeypatch.chdir(explored[0].parents[2])
    page = opened(write_page(Run("runs/tiny"), tmp_path/"none.html", mb=0))
    assert page.inner_text("#about").startswith("0 of 105 videos play") and page.locator("video").count() == 0
    assert Embedded().data == {}
