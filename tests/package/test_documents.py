"""README, docs/ and CONTRIBUTING: short, with links that lead somewhere, and with the numbers of the committed figures"""

import re
from pathlib import Path

import pandas as pd
import pytest

from hw2.core.files import ROOT
from hw2.report.scores import short_summary
from hw2.report.tables import to_markdown
from hw2.run.publish import BEGIN, END, differences_table, extremes, gains_table

PAGES = [ROOT/"README.md", ROOT/"CONTRIBUTING.md", *sorted((ROOT/"docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#([^)\s]*))?\)|<(?:img|a) (?:src|href)=\"([^\":]+)\"|`((?:nbs|tests|hw2)/[\w./]+)`")


def name(page: Path) -> str:
    "The name that pytest shows for a page."
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    "The headings of a page as a code host makes links of them."
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)}


def dead_links(page: Path) -> list[str]:
    "The relative links of a page that lead nowhere; paths in backticks count from the repository's root."
    found = []
    for to, anchor, shown, path in LINK.findall(page.read_text(encoding="utf-8")):
        target = ROOT/path if path else page.parent/(to or shown)
        if not target.exists() or anchor and anchor not in anchors(target): found.append(to or shown or path)
    return found


def test_the_readme_is_short():
    assert (ROOT/"README.md").stat().st_size <= 7 * 1024


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_is_longer_than_120_characters(page):
    assert [n for n, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path):
    "Of every form that the pages use."
    (tmp_path/"there.md").write_text("# A heading: with marks\n")
    text = "[a](there.md) [b](there.md#a-heading-with-marks) [c](gone.md) [d](there.md#gone) [e](https://x.org/gone) `nbs/gone.ipynb`\n"
    page = tmp_path/"page.md"
    page.write_text(text + '<img src="gone.png" alt=""> <img src="there.md" alt="">\n')
    assert dead_links(page) == ["gone.md", "there.md", "nbs/gone.ipynb", "gone.png"]


def test_every_page_is_linked_from_the_readme_and_from_the_index():
    readme, index = ((ROOT/page).read_text(encoding="utf-8") for page in ("README.md", "docs/index.md"))
    pages = [p.name for p in (ROOT/"docs").glob("*.md") if p.stem != "index"]
    assert [p for p in pages if f"(docs/{p})" not in readme or f"({p})" not in index] == []


def figures(table: str) -> pd.DataFrame:
    "A committed table."
    return pd.read_csv(ROOT/f"figures/{table}.csv", keep_default_na=False, na_values=[""])


def published(page: str) -> str:
    "What stands between a page's markers."
    return (ROOT/page).read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


def rows(table: pd.DataFrame) -> list[str]:
    "A table's rows in Markdown."
    return to_markdown(table).splitlines()[2:]


def test_the_pages_have_the_numbers_of_the_committed_figures():
    summary = figures("summary").astype(dict.fromkeys(("dim", "n_val", "n_test"), "Int64"))
    short, long = published("README.md").splitlines(), published("docs/results.md").splitlines()
    single = ~summary["feature"].str.startswith("logistic regression") & ~summary["feature"].isin(["cnn3d_shuffled", "cnn3d_still"])
    assert [r for r in rows(short_summary(summary[single])) if r not in short] == []
    tables = [summary.drop(columns=["hardest", "easiest"]), extremes(summary), differences_table(figures("differences")), gains_table(figures("fusion"))]
    assert [r for table in tables for r in rows(table) if r not in long] == [] and all(len(t) for t in tables)
    pictures = re.findall(r"figures/(confusion_\w+\.png)", "\n".join(short))
    assert pictures == [f"confusion_{f}.png" for f in ("sift", "cnn", "cnn3d")]
