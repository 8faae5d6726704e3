"""Features as entries: several of one kind, controls, vectors from a file; what is shared, what is left out, what is handed in"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from traces import parts_of

import hw2.extraction.decode
from hw2.core.files import EXPERIMENTS
from hw2.core.params import controls_of, read_params
from hw2.data.probe import probe, write_video
from hw2.data.source import load_dataset
from hw2.data.video import frames_at
from hw2.extraction.decode import prepare_video
from hw2.extraction.extract import extract, missing_chunks, read_feature, stores_of, with_reversed
from hw2.features.catalogue import extractors_of
from hw2.run.cli import app, execute
from hw2.run.record import RunError
from hw2.run.run import Run, load

ENTRIES = {"sift": {"fps": 2, "keypoints": 8}, "again": {"like": "sift", "words": 16}, "clips": {"like": "r2plus1d_mini", "clip_fps": 8, "n_clips": 1},
           "back": {"like": "clips", "order": "reversed"}, "still": {"like": "clips", "order": "still"}, "mixed": {"like": "clips", "order": "shuffled"}}


@pytest.fixture(scope="module")
def extracted(tiny_demo, tmp_path_factory):
    "A set, its parameters, and what was to be extracted."
    cache = tmp_path_factory.mktemp("entries")/"cache"
    params = read_params({"data": str(tiny_demo), "features": ENTRIES, "device": "cpu", "workers": 2, "cache": str(cache)})
    dataset = load_dataset(params)
    todo = missing_chunks(dataset.manifest, stores_of(params))
    assert extract(dataset, params).empty
    return dataset, params, todo


def test_entries_with_equal_keys_share_a_store(extracted):
    dataset, params, todo = extracted
    assert {f for _, features in todo for f in features} == {"sift", "clips", "back", "still", "mixed"}
    stores = stores_of(params)
    assert stores["again"][1].folder == stores["sift"][1].folder and len({s.folder for _, s in stores.values()}) == 5
    assert len(parts_of(Path(params["cache"]))) == 6 * len(todo)  # the thumbnails, too
    assert missing_chunks(dataset.manifest, stores) == []


def test_a_video_is_decoded_once_for_all_entries(extracted, tmp_path, monkeypatch):
    dataset, params, _ = extracted
    calls, decode = [], hw2.extraction.decode.decode
    monkeypatch.setattr(hw2.extraction.decode, "decode", lambda *given: calls.append(given) or decode(*given))
    prepared = prepare_video(dataset.root/dataset.manifest["path"][0], extractors_of(params), tmp_path/"spool")
    assert prepared.keys() == ENTRIES.keys() and len(calls) == 1


def test_a_frame_is_prepared_once_for_all_orders(extracted, tmp_path):
    "And what each order is given are the forward frames, in its order."
    dataset, params, _ = extracted
    path, extractors, calls = dataset.root/dataset.manifest["path"][0], extractors_of(params), []
    orders, network = {f: e for f, e in extractors.items() if e.kind == "clips"}, extractors["clips"].backbone
    network.prepare = lambda rgb, prepare=network.prepare: calls.append(rgb) or prepare(rgb)
    given = {f: np.stack(list(s)) for f, s in prepare_video(path, orders, tmp_path/"spool").items()}
    at = {f: frames_at(probe(path), e.times(probe(path))) for f, e in orders.items()}
    assert len(calls) == len(set(at["clips"].ravel())) == 16
    frames = dict(zip(at["clips"][0], given["clips"][0]))
    for f in orders: assert (given[f][0] == [frames[i] for i in at[f][0]]).all()
    assert (at["back"] == at["clips"][:, ::-1]).all() and len(set(at["still"].ravel())) == 1 and sorted(at["mixed"][0]) == sorted(at["clips"][0])


def test_controls_are_those_entries(extracted):
    "`controls: true` adds what is written out here, reversed clips are extracted beside them, and nothing is extracted anew."
    dataset, params, _ = extracted
    alone = {"features": {"clips": ENTRIES["clips"]}, "controls": True}
    asked = read_params({k: v for k, v in params.items() if k != "features"}, alone)
    assert controls_of(asked, "clips") == {"shuffled": "clips_shuffled", "still": "clips_still"}
    stores, known = stores_of(with_reversed(asked)), stores_of(params)
    pairs = {"clips": "clips", "clips reversed": "back", "clips_still": "still", "clips_shuffled": "mixed"}
    assert {f: s.folder for f, (_, s) in stores.items()} == {f: known[g][1].folder for f, g in pairs.items()} and missing_chunks(dataset.manifest, stores) == []
    own = read_params(params, {"controls": True})
    assert list(own["features"]) == list(ENTRIES) and controls_of(own, "clips") == {"shuffled": "mixed", "still": "still", "reversed": "back"}


def test_a_video_of_a_single_frame_has_every_order(extracted, tmp_path):
    _, params, _ = extracted
    path = write_video(tmp_path/"one.mp4", np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8), 8)
    given = prepare_video(path, {f: e for f, e in extractors_of(params).items() if e.kind == "clips"}, tmp_path/"spool")
    frames = [np.stack(list(s)) for s in given.values()]
    assert all((x == frames[0]).all() for x in frames) and (frames[0] == frames[0][:, :1]).all()


def test_the_order_of_frames_changes_clips_and_nothing_else(extracted):
    dataset, params, _ = extracted
    units = {f: [u.units for u in read_feature(f, params, dataset.manifest)] for f in ("clips", "back", "still", "mixed")}
    for f in ("back", "still", "mixed"):
        assert [u.shape for u in units[f]] == [u.shape for u in units["clips"]]
        assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(units[f], units["clips"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory, invoke):
    "A run of two files of vectors for videos that are not there, and a control of nothing: `fuse` names both."
    home, rng, n = tmp_path_factory.mktemp("vectors"), np.random.default_rng(0), 60
    y, split = np.arange(n) % 3, np.where(np.arange(n) < 36, "train", np.where(np.arange(n) < 48, "val", "test"))
    pd.DataFrame({"path": [f"gone/{i}.mp4" for i in range(n)], "label": [f"c{k}" for k in y], "split": split}).to_csv(home/"set.csv", index=False)
    X = rng.normal(size=(n, 8)) + 4 * np.eye(3, 8)[y]
    np.save(home/"x.npy", X)
    pd.DataFrame(X[:-2]).assign(path=[f"gone/{i}.mp4" for i in range(n - 2)]).to_csv(home/"x.csv", index=False)
    (home/"set.yaml").write_text("data: set.csv\nform: csv\nfeatures:\n  a: {kind: vectors, file: x.npy}\n  b: {kind: vectors, file: x.csv}\n"
                                 "classifier: {max_epochs: 20}\ndevice: cpu\n")
    done = invoke("run", "--params", "set.yaml", cwd=home)
    assert done.returncode == 0, done.stderr
    return Run(home/"runs/set"), X


def test_vectors_are_trained_on_as_they_are(run):
    done, X = run
    assert (load(done.folder, "a")[0] == X.astype(np.float32)).all() and done.metrics["a"]["val_top1"] > .8 and list(done.metrics) == ["a", "b", "early",
                                                                                                                                       "late"]


def test_videos_without_a_vector_are_left_out_by_name(run):
    done, _ = run
    assert done.skipped["cause"].tolist() == ["no vector in x.csv"] * 2 and (done.metrics["a"]["n_test"], done.metrics["b"]["n_test"]) == (12, 10)
    assert "no vector for 2 of 60 videos: gone/58.mp4, gone/59.mp4" in (done.folder/"extract.ipynb").read_text(encoding="utf-8")
    stores = json.loads((done.folder/"run.json").read_text())["stores"]
    assert all(name.startswith("vectors-") for name in stores.values()) and len(set(stores.values())) == 2


def test_a_changed_file_of_vectors_is_trained_on_anew(run, tmp_path, monkeypatch):
    "By the two notebooks of a run that this concerns."
    done, X = run
    home = shutil.copytree(done.folder.parent.parent, tmp_path/"home")
    np.save(home/"x.npy", X[:, ::-1])
    monkeypatch.chdir(home)
    for name, own in [("extract", dict(read_params("set.yaml"))), ("train", {"feature": "a"})]:
        execute(EXPERIMENTS/f"{name}.ipynb", home/f"runs/set/{name}.ipynb", own | {"name": "set", "runs": "runs"})
    stores = [json.loads((folder/"run.json").read_text())["stores"] for folder in (done.folder, home/"runs/set")]
    assert stores[0]["a"] != stores[1]["a"] and stores[0]["b"] == stores[1]["b"]
    assert (load(home/"runs/set", "a")[0] == X[:, ::-1].astype(np.float32)).all()
    probabilities = [pd.read_csv(folder/"a/predictions.csv")["p_0"] for folder in (done.folder, home/"runs/set")]
    assert np.abs(probabilities[0] - probabilities[1]).max() > 1e-4


def test_predict_leaves_vectors_out_and_says_so(run, monkeypatch):
    done, _ = run
    monkeypatch.chdir(done.folder.parent.parent)
    said = CliRunner().invoke(app, ["predict", "clip.mp4", "--run", "set"])
    assert said.exit_code == 1 and "every feature of runs/set is read from a file of vectors, which holds nothing of a new clip" in said.output


def test_a_run_of_an_earlier_version_is_refused_with_the_new_spelling(tmp_path):
    (tmp_path/"old").mkdir()
    (tmp_path/"old/params.yaml").write_text(yaml.safe_dump({"data": "demo", "features": ["sift"], "words": 64}))
    with pytest.raises(RunError, match="words: stands now under features.sift.words .*choose another name or delete it"): Run(tmp_path/"old")
