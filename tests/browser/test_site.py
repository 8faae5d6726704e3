"""The site that `make docs` builds: no warning, no broken link, nothing from a network; in a browser it shows, searches and sets formulae"""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from chromium import chromium, watch

from hw2.core.files import ROOT

NOTEBOOKS = sorted(p.relative_to(ROOT) for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
OUTSIDE = re.compile(r"(https?:)?//")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    "The site's folder, and how the build went, with every warning an error."
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-c", ROOT/"docs", "-E", "-W", "--keep-going", "-q", "-d", folder/"doctrees", ROOT, folder/"html"]
    return folder/"html", subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=580)


@pytest.fixture(scope="module")
def site(built) -> Path:
    "The folder of a site that was built."
    folder, done = built
    assert (folder/"README.html").exists(), done.stderr
    return folder


class Page(HTMLParser):
    "A page's links, what it loads, and the ids that links lead to."

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.output = 0  # how many div are open from one that holds a cell's output; 0: none
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "div" and (self.output or "cell_output" in (found.get("class") or "")): self.output += 1
        if tag == "a" and found.get("href") and not (self.output and found["href"].startswith("#")):  # a cell may put out a piece of another page
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in {"canonical"}: self.loads.append(found["href"])
        self.loads += [found[key] for key in ("src", "poster", "data") if found.get(key)]

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self.output: self.output -= 1


def problems(site: Path) -> list[str]:
    "One line for each link of the site that leads nowhere and each thing that a page or a style sheet loads from outside."
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        here = path.relative_to(site)
        found += [f"{here} loads {url}" for url in page.loads if OUTSIDE.match(url)]
        for url in page.links + page.loads:
            to = urlsplit(url)
            if to.scheme or to.netloc: continue
            target = (path.parent/unquote(to.path)).resolve() if to.path else path
            if not target.is_file(): found.append(f"{here}: no file {url}")
            elif to.fragment and target in pages and unquote(to.fragment) not in pages[target].ids: found.append(f"{here}: no place {url}")
    sheets = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    return found + [f"{path.relative_to(site)} loads {url}" for path, text in sheets.items() for url in re.findall(r"url\(['\"]?((?:https?:)?//[^)]+)", text)]


def test_problems_are_found(tmp_path):
    (tmp_path/"a.html").write_text('<a id="x" href="b.html#y">b</a> <a href="c.html">c</a> <a href="#z">z</a> <a href="https://example.org">out</a>'
                                   '<div class="cell_output"><div></div><a href="#elsewhere">in a report</a></div>'
                                   '<img src="i.png"><script src="https://example.org/s.js"></script><link rel="stylesheet" href="//example.org/s.css">')
    (tmp_path/"b.html").write_text('<p id="y"><a href="a.html?highlight=1#x">a</a> <img src="data:image/png;base64,">')
    (tmp_path/"s.css").write_text("p { background: url(https://example.org/i.png) }")
    assert sorted(problems(tmp_path)) == ["a.html loads //example.org/s.css", "a.html loads https://example.org/s.js", "a.html: no file c.html",
                                          "a.html: no file i.png", "a.html: no place #z", "s.css loads https://example.org/i.png"]


def test_builds_without_a_warning(built):
    assert (built[1].returncode, built[1].stderr) == (0, "")


def test_every_notebook_and_page_is_in_it(site):
    wanted = [*NOTEBOOKS, *(p.relative_to(ROOT) for p in (ROOT/"docs").glob("*.md")), Path("README.md"), Path("CONTRIBUTING.md")]
    assert [p for p in wanted if not (site/p).with_suffix(".html").exists()] == []
    links = {unquote(urlsplit(url).path) for url in Page((site/"README.html").read_text(encoding="utf-8")).links}
    assert [p for p in NOTEBOOKS if str(p.with_suffix(".html")) not in links] == []  # its side bar leads to each


def test_links_lead_somewhere_and_nothing_comes_from_outside(site):
    assert problems(site) == []


def test_directives_are_hidden(site):
    text = (site/"nbs/2_features/21_sift.html").read_text(encoding="utf-8")
    assert "#|" not in re.sub("<[^>]+>", "", text) and "tag_exported" in text and "nbdev_export" not in text


@pytest.fixture(scope="module", params=[1280, 390], ids=["desktop", "telephone"])
def browser(request, site):
    "(a page of one width, what it complained of, what it asked for)"
    complaints, asked = [], []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": request.param, "height": 900})
        watch(page, complaints, asked)
        yield page, complaints, asked


@pytest.fixture
def page(browser, site):
    "A browser's page that afterwards must have complained of nothing, asked for files of the site only, and stayed within its window."
    page, complaints, asked = browser
    yield page
    inside, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert complaints == [] and inside <= window
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:"))] == []


def test_the_first_page_is_the_readme_beside_the_wings(page, site):
    page.goto((site/"index.html").as_uri())
    page.wait_for_url("**/README.html")
    bar = page.locator(".sidebar-tree")
    captions = bar.locator(".caption-text").all_inner_texts()
    assert [c.lower() for c in captions[:3]] == ["start", "docs", "0 core"] and bar.locator("a").count() > len(NOTEBOOKS)
    if page.viewport_size["width"] == 1280: assert bar.locator("a", has_text="sift").is_visible()
    else:
        page.locator("header .nav-overlay-icon").click()
        bar.locator("a", has_text="sift").wait_for(state="visible")
    assert page.eval_on_selector_all("article img", "all => all.every(i => i.complete && i.naturalWidth > 0)") and page.locator("article img").count()


def test_the_search_leads_to_where_a_function_is_defined(page, site):
    page.goto((site/"search.html").as_uri() + "?q=frame_times")
    first = page.locator("#search-results li a").first
    first.wait_for()
    assert urlsplit(first.get_attribute("href")).path == "nbs/1_data/13_video.html"


def test_a_formula_is_set_and_a_figure_shows(page, site):
    with_formula = next(p for p in sorted(site.rglob("nbs/**/*.html")) if 'class="math' in p.read_text(encoding="utf-8"))
    page.goto(with_formula.as_uri())
    page.locator("mjx-container").first.wait_for()
    box = page.locator("mjx-container").first.bounding_box()
    assert box["width"] > 5 and box["height"] > 5 and page.locator("mjx-merror").count() == 0
    page.goto((site/"nbs/6_report/61_plots.html").as_uri())
    assert page.locator(".cell_output img").count() > 2
    assert page.eval_on_selector_all(".cell_output img", "all => all.every(i => i.naturalWidth > 0)")
