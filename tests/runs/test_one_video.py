"""One video: the first notebook to read runs offline, in a minute, writes nothing beside its temporary folder, and shows what its prose says"""

from pathlib import Path

import nbformat
import psutil
import pytest
from stored_outputs import differences, execute, offline

from hw2.core.files import ROOT
from hw2.run.kernels import kernel_server

NOTEBOOK = ROOT/"nbs/one_video.ipynb"
CPU_SECONDS = 120  # a minute of two cores


def cpu_seconds() -> float:
    "Of all kernels that have ended, and their children."
    used = psutil.Process(kernel_server().process.pid).cpu_times()
    return used.children_user + used.children_system


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "An empty working directory."
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(scope="module")
def executed(home, tmp_path_factory):
    "The notebook, executed there in a fresh kernel with no network, and the CPU seconds that it took."
    notebook, before = nbformat.read(NOTEBOOK, 4), cpu_seconds()
    with offline(tmp_path_factory.mktemp("torch")): execute(notebook, home)
    return notebook, cpu_seconds() - before


def pictures(notebook) -> list[int]:
    "How many pictures each cell shows, cells whose outputs vary included."
    return [sum("image/png" in o.get("data", {}) for o in c.outputs) for c in notebook.cells if c.cell_type == "code"]


def answers(notebook) -> dict[str, str]:
    "What each feature predicts for the video, as the table shows it."
    cell, = [c for c in notebook.cells if '"probability of the true class"' in c.source]
    return dict(line.split()[:2] for line in cell.outputs[0]["data"]["text/plain"].splitlines()[1:])


def test_runs_top_to_bottom_without_a_word_on_stderr(executed):
    assert [o["text"] for c in executed[0].cells if c.cell_type == "code" for o in c.outputs if o.get("name") == "stderr"] == []


def test_takes_less_than_a_minute_of_two_cores(executed):
    assert 1 < executed[1] < CPU_SECONDS


def test_writes_nothing_where_it_runs(executed, home):
    assert list(home.iterdir()) == []


def test_stored_outputs_are_those_of_the_code(executed):
    stored = nbformat.read(NOTEBOOK, 4)
    assert differences(stored, executed[0], "nbs/one_video.ipynb") == []
    assert pictures(stored) == pictures(executed[0]) and sum(pictures(stored)) >= 14


@pytest.mark.parametrize("which", ["stored", "executed"])
def test_the_features_disagree_as_the_prose_says(which, executed):
    predicted = answers(nbformat.read(NOTEBOOK, 4) if which == "stored" else executed[0])
    assert (predicted["cnn"], predicted["cnn3d"]) == ("wheel_right", "wheel_left") and predicted["sift"] not in ("wheel_right", "wheel_left")


def test_it_is_light_and_its_cells_are_short():
    notebook = nbformat.read(NOTEBOOK, 4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert NOTEBOOK.stat().st_size < 1_000_000 and set(notebook.metadata) == {"kernelspec"}
    assert max(len(c.source.splitlines()) for c in code[1:]) <= 5  # the imports are longer
    assert {key for c in notebook.cells for key in c.metadata} <= {"tags"}
    assert not any(o.output_type == "error" or "application/vnd.jupyter.widget-view+json" in o.get("data", {}) for c in code for o in c.outputs)
