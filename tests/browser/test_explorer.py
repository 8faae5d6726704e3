"""The explorer: what it shows of a run's videos, its callbacks in a kernel, and a click in JupyterLab after which videos play"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from chromium import ABSENT, BROWSER, chromium
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from stored_outputs import execute

from hw2.core.files import ROOT
from hw2.data.dataset import read_classes, read_manifest, write_manifest
from hw2.data.probe import probe, write_video
from hw2.data.video import decode
from hw2.explorer.explorer import videos_html
from hw2.explorer.matrix_widget import MatrixWidget
from hw2.run.run import Run, load
from hw2.run.videos import all_predictions, cell_videos, first_cell, neighbours

NOTEBOOK = ROOT/"nbs/experiments/explore.ipynb"
OLD = 3  # the class whose videos are MPEG-4 in .avi


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory) -> Path:
    "The tiny run in a place of its own, its paths absolute; the videos of one class are such as no browser plays."
    home = tmp_path_factory.mktemp("explore")
    shutil.copytree(tiny_run.folder, home/"runs/demo")
    shutil.copytree(tiny_run.home/"tiny", home/"set")
    manifest = read_manifest(home/"runs/demo/manifest.csv")
    for at in manifest.index[manifest["label"] == OLD]:
        path = manifest["path"][at]
        video = probe(home/"set"/path)
        manifest.loc[at, "path"] = path.replace(".mp4", ".avi")
        write_video(home/"set"/manifest["path"][at], (f for _, f in decode(video, range(len(video.times)))), 16, codec="mpeg4", options={"b": "2000000"})
        (home/"set"/path).unlink()
    write_manifest(home/"runs/demo/manifest.csv", manifest)
    params = yaml.safe_load((home/"runs/demo/params.yaml").read_text(encoding="utf-8"))
    (home/"runs/demo/params.yaml").write_text(yaml.safe_dump(params | {"data": str(home/"set"), "cache": str(home/"cache")}, sort_keys=False), encoding="utf-8")
    return home/"runs/demo"


@pytest.fixture
def backend():
    "pyplot's backend is afterwards what it was."
    before = matplotlib.get_backend()
    yield
    matplotlib.use(before)


def notebook_for(run: Path) -> nbformat.NotebookNode:
    "The notebook with this run for its parameters."
    return parameterize_notebook(load_notebook_node(str(NOTEBOOK)), {"name": run.name, "runs": str(run.parent)})


# What it shows of the videos


@pytest.mark.parametrize("feature", ["sift", "cnn", "cnn3d"])
def test_every_cell_holds_the_videos_that_the_matrix_counts(feature, run):
    predictions, given = all_predictions(Run(run)), pd.read_csv(run/feature/"predictions.csv").set_index("id")
    assert len(predictions) == 45
    for split in ("val", "test"):
        cells = {(i, j): cell_videos(predictions, feature, i, j, split) for i in range(15) for j in range(15)}
        assert [len(d) for d in cells.values()] == Run(run).confusion(feature, split).ravel().tolist()
        for (i, j), d in cells.items():
            assert (d["label"] == i).all() and (given.loc[d.index, "pred"] == j).all() and d[f"p_{feature}"].is_monotonic_decreasing
            assert np.allclose(d[f"true_{feature}"].astype(float), given.loc[d.index, f"p_{i}"])


@pytest.mark.parametrize("feature", ["sift", "cnn", "cnn3d"])
def test_neighbours_are_those_that_brute_force_finds(feature, run):
    X, y, rows = load(run, feature)
    unit, train = X / np.linalg.norm(X, axis=1, keepdims=True), np.flatnonzero(rows["split"] == "train")
    asked = rows.index[rows["split"] != "train"][::7]
    near = neighbours(Run(run), feature, rows["id"][asked].tolist(), 5)
    assert near["of"].tolist() == [i for i in rows["id"][asked] for _ in range(5)]
    far = 1 - unit[asked] @ unit[train].T
    np.testing.assert_allclose(near["distance"].to_numpy().reshape(-1, 5), np.sort(far, axis=1)[:, :5], atol=1e-5)
    assert set(near["id"]) <= set(rows["id"][train]) and near["label"].tolist() == [int(y[rows.index[rows["id"] == i][0]]) for i in near["id"]]


def test_a_video_that_vanished_and_one_that_is_damaged_cost_themselves_only(run):
    predictions = all_predictions(Run(run))
    three = predictions[(predictions["split"] == "val") & (predictions["label"] != OLD)].iloc[:3]
    paths, root = three["path"].tolist(), run.parents[1]/"set"
    before = [(root/p).read_bytes() for p in paths]
    try:
        (root/paths[0]).unlink(); (root/paths[1]).write_bytes(before[1][:300])
        page = videos_html(Run(run), three, "sift", k=1)
    finally:
        for p, data in zip(paths, before): (root/p).write_bytes(data)
    assert page.count("This video cannot be shown: ") == 2 and "no such file." in page
    assert page.count("<video") == 1 + 3 and page.count("<table") == 3


# In a kernel

CALLBACKS = """
explorer = Explorer(runs, name)
seen = [(explorer.cell, explorer.sentence.value, explorer.videos.value.count("<video"))]
def click(true, predicted):
    canvas = explorer.matrix.canvas
    canvas.draw()
    x, y = explorer.matrix.axes.transData.transform((predicted + .5, true + .5))
    canvas._handle_message(None, dict(type="button_press", x=x, y=canvas.get_renderer().height - y, button=0, buttons=1, modifiers=[]), [])
    seen.append((explorer.cell, explorer.sentence.value, explorer.videos.value.count("<video")))
for f in ("sift", "cnn3d"):
    explorer.feature.value = f
    for cell in CELLS: click(*cell)
explorer.split.value = "test"
seen.append((explorer.cell, explorer.sentence.value, explorer.videos.value.count("<video")))
explorer.run.value = None
seen.append((explorer.sentence.value, explorer.videos.value))
print(repr(seen))
"""


def test_callbacks_in_a_kernel(run, tmp_path):
    "The notebook runs without a word on stderr; messages such as the browser sends choose cells, and the sentence counts what the matrix counts."
    counts, classes = {f: Run(run).confusion(f) for f in ("sift", "cnn3d")}, read_classes(run/"classes.csv")
    cells = [(0, 0), first_cell(counts["sift"]), (14, 0), (7, 14)]
    notebook = notebook_for(run)
    notebook.cells.append(nbformat.v4.new_code_cell(CALLBACKS.replace("CELLS", repr(cells))))
    execute(notebook, tmp_path)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert [o["text"] for o in outputs if o.get("name") == "stderr"] == []
    assert sum("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs) == 1
    (cell, sentence, videos), *clicked, test, nothing = eval(outputs[-1]["text"])
    assert cell == first_cell(counts["sift"]) and videos > 0
    for (cell, sentence, videos), (f, (i, j)) in zip(clicked, [(f, c) for f in ("sift", "cnn3d") for c in cells], strict=True):
        n = int(counts[f][i, j])
        assert cell == (i, j) and videos == 5 * min(n, 3)
        assert f'>{n or "None"} of the 2 validation videos of <b>{classes[i]}</b> ' in sentence and f"by <b>{f}</b>" in sentence
    assert test[0] == cells[-1] and "test video" in test[1]
    assert "no run with predictions" in nothing[0] and nothing[1] == ""


# In JupyterLab


@pytest.fixture(scope="module")
def lab(run):
    "The address of a JupyterLab that serves the notebook and has no settings of anybody's."
    home = run.parents[1]
    nbformat.write(notebook_for(run), home/"explore.ipynb")
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    names = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"]
    own = os.environ | {name: str(home/"jupyter"/name) for name in names}
    settings = home/"jupyter/JUPYTERLAB_SETTINGS_DIR/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"checkForUpdates": false, "fetchNews": "false"}')
    flags = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
             "--IdentityProvider.token=", f"--ServerApp.root_dir={home}"]
    with open(home/"lab.log", "w") as log: server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *flags], env=own, stdout=log, stderr=log, cwd=home)
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while not answers_at(f"{address}/api/status"):
            assert server.poll() is None and time.monotonic() < until, (home/"lab.log").read_text()[-3000:]
            time.sleep(.3)
        yield address
    finally:
        server.terminate()
        try: server.wait(30)
        except subprocess.TimeoutExpired: server.kill(); server.wait()


def answers_at(url: str) -> bool:
    "Whether a server answers there."
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try: return opener.open(url, timeout=2).status == 200
    except OSError: return False


def place_of(run: Path, feature: str, cell: tuple[int, int]) -> tuple[float, float]:
    "Where in the canvas a cell is, as shares of its width and height from the upper left corner."
    matrix, C = MatrixWidget(print), Run(run).confusion(feature)
    matrix.draw(C, read_classes(run/"classes.csv"), f"{feature}: {C.sum()} validation videos · top-1 {np.trace(C) / C.sum():.3f}")
    matrix.canvas.draw()
    x, y = matrix.axes.transData.transform((cell[1] + .5, cell[0] + .5)) / matrix.figure.bbox.size
    return x, 1 - y


CONNECTED = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.connectionStatus === 'connected'"
LOADED = "() => { const all = [...document.querySelectorAll('.hw2-card video')]; return all.length > 0 && all.every(v => v.readyState >= 2) }"
BESIDE = """() => {
  const [matrix, videos] = ['.jupyter-matplotlib', '.hw2-card'].map(s => document.querySelector(s).getBoundingClientRect());
  return videos.top >= matrix.top && videos.top < matrix.top + 150 && videos.left > matrix.right && videos.right <= innerWidth;
}"""
PLAYS = "kind => { const v = document.querySelector(kind + ' video'); return v.currentTime > 0 && !v.paused }"


@pytest.mark.skipif(BROWSER is None, reason=ABSENT)
def test_a_click_in_jupyterlab_plays_the_videos(run, lab, backend):
    "Run all cells, click a cell of the matrix, choose another feature: the cell's videos play, re-encoded ones too."
    C, classes = Run(run).confusion("sift"), read_classes(run/"classes.csv")
    cells = [cell for cell in map(tuple, np.argwhere(C).tolist()) if cell != first_cell(C)]
    old, other = next(c for c in cells if c[0] == OLD), next(c for c in cells if c[0] != OLD)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.goto(f"{lab}/lab/tree/explore.ipynb", wait_until="load")
        page.wait_for_selector(".jp-NotebookPanel .jp-Notebook", timeout=60_000)
        page.wait_for_function(CONNECTED, timeout=60_000)
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        canvas = page.locator(".jupyter-matplotlib canvas").last
        canvas.wait_for(timeout=60_000)
        page.wait_for_function(LOADED, timeout=60_000)  # it opens with a cell that has videos
        chosen = lambda menu: page.get_by_label(menu, exact=True).evaluate("s => s.selectedOptions[0].textContent").replace("\xa0", " ")
        for cell in (old, other):
            before, (x, y) = page.inner_text(".hw2-sentence"), place_of(run, "sift", cell)
            canvas.scroll_into_view_if_needed()
            box = canvas.bounding_box()
            page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
            page.wait_for_function("before => document.querySelector('.hw2-sentence')?.innerText !== before", arg=before, timeout=30_000)
            assert chosen("true class").startswith(classes[cell[0]] + " (") and chosen("predicted class") == f"{classes[cell[1]]} ({C[cell]})"
            assert page.inner_text(".hw2-sentence").startswith(f"{C[cell]} of the 2 validation videos of {classes[cell[0]]}")
            page.wait_for_function(LOADED, timeout=30_000)
            assert page.locator(".hw2-large video").count() == min(C[cell], 3) and page.locator(".hw2-strip video").count() == 4 * min(C[cell], 3)
            for kind in (".hw2-large", ".hw2-strip"):
                page.locator(f"{kind} video").first.scroll_into_view_if_needed()  # browsers let what nobody sees wait
                page.wait_for_function(PLAYS, arg=kind, timeout=30_000)
            noted = page.locator(".hw2-large .hw2-note").all_inner_texts()
            assert noted == ["re-encoded to be shown here"] * (C[cell] if cell[0] == OLD else 0)
        for width in (1600, 1280):  # the matrix stands left and the videos right of it; with less room they stand below
            page.set_viewport_size({"width": width, "height": 1000})
            page.wait_for_function(BESIDE, timeout=30_000)
        page.set_viewport_size({"width": 900, "height": 1000})
        page.wait_for_function(f"() => !({BESIDE})()", timeout=30_000)
