"""The tutorial: a reader with neither data nor network goes from top to bottom, and every command and number in it does what the prose says"""

from pathlib import Path

import nbformat
import pandas as pd
import pytest
from stored_outputs import differences, execute, offline

from hw2.core.files import ROOT

TUTORIAL = ROOT/"nbs/tutorial.ipynb"
SUCCEEDED = "assert _exit_code == 0, _exit_code"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "An empty working directory."
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def executed(home, tmp_path_factory):
    "The tutorial executed there with no network; a command that fails stops it."
    notebook = nbformat.read(TUTORIAL, 4)
    for i, cell in reversed(list(enumerate(notebook.cells))):
        if cell.cell_type == "code" and "!hw2" in cell.source: notebook.cells.insert(i + 1, nbformat.v4.new_code_cell(SUCCEEDED))
    with offline(tmp_path_factory.mktemp("torch")): execute(notebook, home)
    notebook.cells = [c for c in notebook.cells if c.source != SUCCEEDED]
    return notebook


def output(notebook, source: str) -> str:
    "What the first cell with this in it printed or showed as text."
    cell = next(c for c in notebook.cells if c.cell_type == "code" and source in c.source)
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


def test_runs_top_to_bottom_without_a_word_on_stderr(executed):
    assert [o["text"] for c in executed.cells if c.cell_type == "code" for o in c.outputs if o.get("name") == "stderr"] == []


def test_shows_the_stored_outputs(executed):
    found = differences(nbformat.read(TUTORIAL, 4), executed, "nbs/tutorial.ipynb")
    if found: pytest.fail("\n\n".join(["other outputs than the stored ones (`make outputs NOTEBOOKS=nbs/tutorial.ipynb` stores them)", *found]), pytrace=False)


def test_everything_it_makes_lies_below_runs(executed, home):
    assert [p.name for p in home.iterdir()] == ["runs"]
    assert {p.name for p in (home/"runs").iterdir()} == {"videos", "videos.yaml", "videos-first", "videos-folds", "cache", "new.mp4"}
    assert all((home/"runs"/name/"report.html").is_file() for name in ("videos-first", "videos-folds"))


def test_its_numbers_are_those_of_the_prose(executed, home):
    assert len(list((home/"runs/videos").glob("*/*.mp4"))) == 64
    n = [pd.read_csv(home/"runs"/name/"figures/summary.csv")["n_val"][:3].tolist() for name in ("videos-first", "videos-folds")]
    assert n == [[13] * 3, [64] * 3]
    told = {name: pd.read_csv(home/"runs"/name/"figures/summary.csv").set_index("feature")["val_top1"] for name in ("videos-first", "videos-folds")}
    assert told["videos-folds"]["cnn3d"] > told["videos-folds"]["cnn"] and told["videos-folds"]["cnn3d"] > .8


def test_the_new_clip_is_labelled_by_all(executed):
    told = output(executed, "hw2 predict")
    assert told.splitlines()[:2] == ["runs/new.mp4", "  new to this run"]
    assert [told.count(f" {f} ") for f in ("sift", "cnn", "cnn3d", "early fusion", "late fusion")] == [1] * 5 and "val_top1" in told, told


def test_it_shows_two_pictures_with_their_words(executed):
    pictures = [o for c in executed.cells if c.cell_type == "code" for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2


def test_it_is_short_and_clean():
    notebook = nbformat.read(TUTORIAL, 4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert max(len(c.source.splitlines()) for c in code[1:]) <= 3  # the imports are longer
    assert len(notebook.cells) - len(code) >= len(code) - 2
    assert TUTORIAL.stat().st_size < 500_000 and set(notebook.metadata) == {"kernelspec"}
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for c in code for o in c.outputs)
