"""A dry run says what the run will say: it stops where the run would stop, and a run goes on with the split it was begun with"""

from pathlib import Path

import numpy as np
import pytest

from hw2.core.files import EXPERIMENTS
from hw2.core.params import check_params
from hw2.data.dataset import from_folders, read_manifest
from hw2.data.split import split_manifest
from hw2.data.probe import write_video
from hw2.run.cli import execute


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "A working directory with a set of two classes; one video of each is named bad and is none."
    home = tmp_path_factory.mktemp("planned")
    for name in ["jump", "wave"]:
        (home/"set"/name).mkdir(parents=True)
        for i in range(7):
            blocks = np.kron(np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
            write_video(home/"set"/name/f"{i}.mp4", blocks[None].repeat(16, 0), 16)
        (home/"set"/name/"bad.mp4").write_text("no video")
    good = [f"set/jump/{i}.mp4,jump,{'val' if i > 4 else 'train'}\n" for i in range(7)]
    (home/"lost.csv").write_text("path,label,split\n" + "".join(good) + "set/wave/bad.mp4,wave,train\nset/wave/1.mp4,wave,val\n")
    (home/"well.csv").write_text("path,label,split\n" + "".join(good) + "set/wave/0.mp4,wave,train\nset/wave/1.mp4,wave,val\n")
    return home


@pytest.mark.parametrize("data, changed, words", [
    ("lost.csv", {}, "no training video for class wave"),
    ("well.csv", {"features": "{sift: {words: 4000}}"}, "cannot make 4000 words: more training videos, more keypoints or fewer words are needed"),
    ("well.csv", {"device": "tpu"}, "device 'tpu' is not available here"),
    ("lost.csv", {"on_error": "stop"}, "set/wave/bad.mp4: Invalid data found when processing input"),
    ("well.csv", {"scheduler": "tcp://127.0.0.1:9", "cache": "empty"}, "no Dask scheduler answers at tcp://127.0.0.1:9"),
    ("well.csv", {"folds": "3"}, "folds: 3, but the smallest class has 2 videos: wave"),
])
def test_it_stops_where_the_run_would_stop(data, changed, words, home, invoke, impatient):
    given = {"data": data, "form": "csv", "features": "{sift: {words: 8}}", "workers": "1", "classifier": "{max_epochs: 2}", "cache": "cache"} | changed
    (home/"some.yaml").write_text("".join(f"{k}: {v}\n" for k, v in given.items()))
    name = f"{data}-{next(iter(changed), 'as-it-is')}"
    for how in (["--dry-run"], []):
        done = invoke("run", "--params", "some.yaml", "--name", name, *how, cwd=home)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert not how or not (home/"runs"/name).exists()


def test_folders_are_split_by_label_unless_the_run_says_otherwise(home, monkeypatch):
    monkeypatch.chdir(home)
    params = check_params({"data": "set", "form": "folders", "features": {"sift": {"words": 8}}, "workers": 1, "cache": "cache", "split_seed": 3})
    manifest = from_folders("set").manifest
    by_hand = {s: split_manifest(manifest, 3, stratify=s)["split"].tolist() for s in (False, True)}
    assert by_hand[False] != by_hand[True]
    for name, given, stratified in [("plain", False, False), ("new", None, True)]:
        (home/"runs"/name).mkdir(parents=True)
        execute(EXPERIMENTS/"extract.ipynb", home/"runs"/name/"extract.ipynb", params | {"stratify": given, "name": name, "runs": "runs"})
        assert read_manifest(home/"runs"/name/"manifest.csv")["split"].tolist() == by_hand[stratified]
