"""Stored outputs against executed ones: which differences are found, and which are none"""

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from stored_outputs import WIDGET, differences


def text(said: str, name: str = "stdout"):
    "What a cell prints."
    return new_output("stream", name=name, text=said)


def result(**data: str):
    "What a cell's last expression shows; `text_plain` is text/plain."
    return new_output("execute_result", data={kind.replace("_", "/"): value for kind, value in data.items()}, execution_count=1)


def compare(stored: list, executed: list, *tags: str) -> list[str]:
    "Differences of a notebook of two cells whose code cell is `x = 1`, `x`."
    cells = [new_notebook(cells=[new_markdown_cell("# x"), new_code_cell("x = 1\nx", outputs=outputs, metadata={"tags": list(tags)})])
             for outputs in (stored, executed)]
    return differences(*cells, "nbs/0_core/00_files.ipynb")


@pytest.mark.parametrize("stored, executed", [
    ([], []), ([text("a\nb\n")], [text("a\n"), text("b\n")]),  # pieces of a stream
    ([text("a", "stderr"), text("b")], [text("b"), text("a", "stderr")]),  # streams have no order
    ([result(text_plain="<A>")], [result(text_plain="<A at 0x7f2b3c4d5e6f>")]),  # as nbdev_clean leaves it
    ([result(text_plain="<Figure>", image_png="aaaa")], [result(text_plain="<Figure>", image_png="bbbb")]),  # that there is a picture
    ([text("a\nb")], [text("a\nread:  41%|████   | 7/17 [00:25<00:25,  2.53s/cell]\r\nx: 0video [00:00, ?video/s]\x1b[A\nb")]),  # a bar in a terminal
    ([], [new_output("display_data", data={WIDGET: "{}", "text/plain": "0 %"})]),  # a progress bar
])
def test_equal(stored, executed):
    assert compare(stored, executed) == []


@pytest.mark.parametrize("stored, executed, lines", [
    ([text("a\nb\n")], [text("a\nc\n")], ["--- stored stdout", "+++ executed stdout", "@@ -1,2 +1,2 @@", " a", "-b", "+c"]),
    ([result(text_plain="1")], [result(text_plain="2")], ["--- stored text/plain", "+++ executed text/plain", "@@ -1 +1 @@", "-1", "+2"]),
    ([result(text_plain="1", text_html="<i>1</i>")], [result(text_plain="2", text_html="<i>2</i>")],
     ["--- stored text/plain", "+++ executed text/plain", "@@ -1 +1 @@", "-1", "+2"]),  # a difference is shown once
    ([result(text_plain="<HTML>", text_html="1")], [result(text_plain="<HTML>", text_html="2")],
     ["--- stored text/html", "+++ executed text/html", "@@ -1 +1 @@", "-1", "+2"]),
    ([result(text_plain="<Figure>", image_png="aaaa")], [result(text_plain="<Figure>")],
     ["--- stored image/png", "+++ executed image/png", "@@ -1 +0,0 @@", "-a picture"]),
    ([result(text_plain="1")], [], ["--- stored text/plain", "+++ executed text/plain", "@@ -1 +0,0 @@", "-1"]),
    ([], [result(text_plain="1")], ["--- stored text/plain", "+++ executed text/plain", "@@ -0,0 +1 @@", "+1"]),  # nothing is left out
    ([result(text_plain="1"), result(text_plain="2")], [result(text_plain="2"), result(text_plain="2")],
     ["--- stored text/plain", "+++ executed text/plain", "@@ -1 +1 @@", "-1", "+2"]),
    ([], [new_output("error", ename="KeyError", evalue="'a'", traceback=[])],
     ["--- stored error", "+++ executed error", "@@ -0,0 +1 @@", "+KeyError: 'a'"]),
])
def test_different(stored, executed, lines):
    "Which are named by notebook, cell and its first line."
    assert compare(stored, executed) == ["\n".join(["nbs/0_core/00_files.ipynb, cell 1: x = 1", *lines])]


def test_what_varies_is_not_compared():
    assert compare([text("1 s")], [text("2 s")], "varies") == [] != compare([text("1 s")], [text("2 s")], "slow")


def test_other_cells_are_an_error():
    "Not a difference in outputs: the notebook that was executed is another one."
    with pytest.raises(ValueError): differences(new_notebook(cells=[new_markdown_cell("a")]), new_notebook(), "a")
