"""The wheel: every wing, the experiments and the weights are in it, nothing of an earlier build is, and it works far from the checkout"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hw2.core.files import ROOT
from hw2.data.probe import write_video

BUILT_FROM = ["hw2", "nbs", "pyproject.toml", "setup.py", "README.md", "LICENSE"]
STALE = {"build/lib/hw2/stale.py": "", "hw2.egg-info/SOURCES.txt": "hw2/__init__.py\nhw2/weights/stale.txt\n", "hw2/weights.old/stale.csv": ""}


def pip(*arguments: str | Path) -> None:
    "pip, without the index."
    done = subprocess.run([sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "Built from a copy of the tree in which an earlier build has left its traces."
    tree, folder = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, tree/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else: shutil.copy(ROOT/name, tree)
    for name, text in STALE.items():
        (tree/name).parent.mkdir(parents=True)
        (tree/name).write_text(text)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, tree)
    built, = folder.glob("*.whl")
    return built


def test_it_holds_every_source_and_nothing_else(wheel):
    held = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    modules = [p.relative_to(ROOT) for pattern in ("*.py", "weights/*", "explorer/explore.*") for p in (ROOT/"hw2").rglob(pattern)]
    experiments = [Path("hw2/experiments")/p.relative_to(ROOT/"nbs/experiments") for p in (ROOT/"nbs/experiments").rglob("*")
                   if p.is_file() and not p.name.startswith(".") and ".ipynb_checkpoints" not in p.parts]
    assert sorted(held) == sorted(p.as_posix() for p in [*modules, *experiments])
    assert {"hw2/experiments/extract.ipynb", "hw2/experiments/params/demo.yaml", "hw2/weights/without.csv", "hw2/core/files.py"} <= set(held)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    "A folder that the wheel is installed in, with none of what it needs."
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    "A working directory with a folder of videos: two classes, five of each, blocks that move to the left or down."
    home, rng = tmp_path_factory.mktemp("elsewhere"), np.random.default_rng(0)
    for axis, name in enumerate(["down", "left"]):
        for i in range(5):
            blocks = np.kron(rng.integers(0, 255, (8, 8, 3), np.uint8), np.ones((12, 12, 1), np.uint8))
            write_video(home/f"set/{name}/{i}.mp4", np.stack([np.roll(blocks, 3 * t, axis) for t in range(8)]), fps=8)
    return home


@pytest.fixture(scope="module")
def call(installed, elsewhere):
    "A function: Python with the installed package, far from the checkout."
    def python(*arguments: str | Path) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-P", *map(str, arguments)], cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(installed)},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    return python


@pytest.fixture(scope="module")
def run(call, installed, elsewhere) -> Path:
    "`hw2 run` with the package's own parameters for folders, SIFT only."
    changed = {"data": "set", "features": "[sift]", "features.sift.fps": "2", "features.sift.words": "8", "classifier.max_epochs": "2", "workers": "1",
               "cache": "cache"}
    done = call(installed/"bin/hw2", "run", "--params", "folders", "--name", "far", *(word for pair in changed.items() for word in ("-p", *pair)))
    assert done.returncode == 0, done.stderr
    return elsewhere/"runs/far"


def test_the_command_and_the_package_are_the_installed_ones(call, installed):
    done = call(installed/"bin/hw2", "--help")
    assert done.returncode == 0 and {"run", "init", "predict", "publish"} <= set(done.stdout.split()), done.stderr
    where = "import hw2; from hw2.core.files import EXPERIMENTS, PACKAGE, ROOT; print(hw2.__file__, PACKAGE, ROOT, EXPERIMENTS, sep='\\n')"
    assert call("-c", where).stdout.splitlines() == [str(installed/"hw2/__init__.py"), str(installed/"hw2"), "None", str(installed/"hw2/experiments")]


def test_a_run_on_a_folder_of_videos(run):
    assert len(pd.read_csv(run/"sift/predictions.csv")) == 2 and (run/"report.html").stat().st_size > 10_000
    assert json.loads((run/"run.json").read_text())["surroundings"]["git"] is None  # not that of a repository which may lie around it


def test_the_files_that_travel_with_it_are_found(call, installed):
    "The bundled networks, the results without the nearest motions, and the report's matrices."
    code = ("from hw2.features.backbone import Backbone; from hw2.run.caveats import worth_of_nearness; from hw2.report.scores import published_matrix\n"
            "print(Backbone('convnext_mini', 'bundled').file, worth_of_nearness(), published_matrix('sift').trace(), sep='\\n')")
    done = call("-c", code)
    file, twin, right = done.stdout.splitlines()
    assert Path(file) == installed/"hw2/weights/convnext_mini.safetensors" and twin.startswith("Even where the kinds of motion") and right == "504"


def test_init_and_predict(run, call, installed, elsewhere):
    done = call(installed/"bin/hw2", "init", "set", "--out", "own.yaml")
    assert done.returncode == 0 and "10 videos in 2 classes" in done.stdout and (elsewhere/"own.yaml").is_file()
    done = call(installed/"bin/hw2", "predict", "set/left/0.mp4", "--run", "far")
    assert done.returncode == 0 and "sift" in done.stdout, done.stderr


def test_the_run_as_an_object(run, call):
    done = call("-c", "import hw2; X, y, manifest = hw2.load('runs/far', 'sift'); print(list(hw2.Run('runs/far').features), X.shape, len(y), len(manifest))")
    assert done.stdout.split("\n")[0] == "['sift'] (10, 8) 10 10", done.stderr


def test_explore_has_its_page(run, call, installed):
    done = call(installed/"bin/hw2", "explore", "far")
    assert done.returncode == 0 and done.stdout.startswith("runs/far/explore.html: "), done.stderr
    assert "All 10 videos play from this file" in (run/"explore.html").read_text(encoding="utf-8")


def test_publish_wants_a_checkout(call, installed):
    done = call(installed/"bin/hw2", "publish", "far")
    said = "hw2: publish writes figures/, README.md and docs/ of a checkout; this hw2 was installed without one"
    assert done.returncode == 1 and done.stderr.startswith(said)
