"""Chromium for the tests in `browser`: where it is, how it is started, and what a page complains of and asks for"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
ABSENT = "no Chromium on this machine (apt-get install chromium)"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic", "--no-first-run", "--disable-component-update", "--disable-sync"]


@contextmanager
def chromium() -> Iterator:
    "A browser without a window; the test is skipped where there is none."
    if BROWSER is None: pytest.skip(ABSENT)
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield browser
        browser.close()


def watch(page, complaints: list[str], asked: list[str]) -> None:
    "Collect the page's warnings and errors, and the addresses that it asks for."
    page.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: asked.append(r.url))
