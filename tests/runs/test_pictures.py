"""The pictures of a run: the same bytes in any process, small files, and readable sizes for few and for many classes"""

import hashlib
import os
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from hw2.report.answer_plot import plot_answer
from hw2.report.maps import embed_in_plane, plot_map, plot_recalls, plot_seeds, recalls_by_feature
from hw2.report.photos import plot_strips, save_photos, sheet_plan
from hw2.report.plots import save_figure

ALL = """
import sys
from hw2.run.answer import draw_answer
from hw2.run.controls import plot_controls
from hw2.run.figures import write_photos, write_plot
from hw2.run.run import Run
run = Run(sys.argv[1])
for name, figure in [("classes", run.plot_classes()), ("keypoints", run.plot_keypoints()), ("words", run.plot_words()),
                     ("overview", run.plot_overview())]: assert write_photos(run, name, figure)
for name, axes in [("recall", run.plot_recalls()), ("seeds", run.plot_seeds()), ("controls", plot_controls(run)),
                   ("answer", draw_answer(run))]: assert write_plot(run, name, axes)
for f in run.main_features: assert write_plot(run, f"map_{f}", run.plot_map(f)) and write_photos(run, f"confused_{f}", run.plot_confused(f))
"""
NAMES = {"classes", "keypoints", "words", "overview", "recall", "seeds", "controls", "answer",
         *(f"{kind}_{f}" for kind in ("map", "confused") for f in ("sift", "cnn", "cnn3d"))}


@pytest.fixture(scope="module")
def drawn(tiny_run, tmp_path_factory) -> list[dict[str, bytes]]:
    "All pictures of the tiny run, drawn by two processes that differ in their threads and in the order of their sets."
    found = []
    for threads, seed in (("1", "1"), ("2", "2")):
        run = tmp_path_factory.mktemp("drawn")/"tiny"
        shutil.copytree(tiny_run.folder, run, ignore=shutil.ignore_patterns("figures", "*.ipynb"))
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        done = subprocess.run([sys.executable, "-c", ALL, str(run)], cwd=tiny_run.home, capture_output=True, text=True, timeout=600,
                              env=os.environ | dict.fromkeys(names, threads) | {"PYTHONHASHSEED": seed})
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        found.append({p.stem: p.read_bytes() for p in (run/"figures").iterdir()})
    return found


def test_equal_runs_have_equal_pictures(drawn):
    assert set(drawn[0]) == NAMES
    assert [name for name in NAMES if hashlib.md5(drawn[0][name]).digest() != hashlib.md5(drawn[1][name]).digest()] == []


def test_pictures_are_light(drawn):
    sizes = {name: len(b) for name, b in drawn[0].items()}
    assert max(sizes.values()) < 500_000 and sum(sizes.values()) < 2_500_000, sizes


@pytest.mark.parametrize("k", [2, 15, 101])
def test_every_picture_fits_a_page_and_is_light(k, tmp_path):
    "Widest 1,400 pixels, which a page of 820 shows at more than half size; highest 1.5 pages."
    rng, names = np.random.default_rng(0), [f"class {i} with a rather long name" for i in range(k)]
    frame = lambda: np.kron(rng.integers(0, 256, (9, 16, 3)), np.ones((9, 9, 1))).astype(np.uint8)
    classes, n = sheet_plan(k)
    save_photos(plot_strips([(names[c], [frame() for _ in range(n)]) for c in classes]).figure, tmp_path/"classes")
    y = np.sort(rng.integers(k, size=900))
    X = rng.normal(size=(k, 16))[y] + .4 * rng.normal(size=(900, 16))
    save_figure(plot_map(embed_in_plane(X[::3])[1], y[::3], names, "a map").figure, tmp_path/"map", formats=["png"])
    confused = lambda p: np.histogram2d(y, np.where(rng.random(900) < p, y, rng.integers(k, size=900)), bins=np.arange(k + 1))[0].astype(int)
    table = recalls_by_feature({f: confused(p) for f, p in (("sift", .3), ("cnn", .6), ("cnn3d", .9), ("early", .9), ("late", .92))}, names)
    save_figure(plot_recalls(table).figure, tmp_path/"recall", formats=["png"])
    seeds = pd.DataFrame([(f, v, s, rng.random()) for f in table["feature"].unique() for v in ("val", "test") for s in range(10)],
                         columns=["feature", "videos", "seed", "top1"])
    save_figure(plot_seeds(seeds).figure, tmp_path/"seeds", formats=["png"])
    rows = [(f"{'a_network_with_a_long_name' * (i % 3 == 0)}_{i}", "control" if i % 3 else "feature", split, 90, .5, .4, .6, .45, .55)
            for i in range(36) for split in ("validation", "test")]  # twelve features, two controls each
    answer = pd.DataFrame(rows, columns=["feature", "kind", "videos", "n", "top1", "low", "high", "lowest", "highest"])
    save_figure(plot_answer(answer, {"guessing": 1 / k, "majority class": .2}, 10).figure, tmp_path/"answer", formats=["png"])
    for p in tmp_path.iterdir():
        h, w = plt.imread(p).shape[:2]
        assert w <= 1400 and h <= 2100 and p.stat().st_size < 500_000, (p.name, w, h, p.stat().st_size)
