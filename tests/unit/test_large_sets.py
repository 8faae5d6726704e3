"""Sets that memory has no room for: the same numbers as from memory, each chunk read once in a pass, and bounded memory"""

import tracemalloc
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest

from hw2.benchmark.large_set import Inventor, invent_run, invented_manifest
from hw2.classifier.fold import pool_videos
from hw2.classifier.train import train_feature
from hw2.core.files import write_csv
from hw2.core.lazy import LazySequence
from hw2.core.params import read_params
from hw2.data.dataset import Dataset
from hw2.data.thumbnails import SIDE
from hw2.extraction import store
from hw2.extraction.extract import read_feature
from hw2.extraction.fusion import join_units
from hw2.extraction.store import CHUNK
from hw2.features.sift import BagOfWords
from hw2.run.doctor import Examined, Look, nearly_twice
from hw2.run.results import save_result
from hw2.run.run import Run

VIDEOS, FRAMES = 800, 16  # 52 MB of descriptors


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Run:
    "A run of invented videos, nothing trained yet."
    return Run(invent_run(tmp_path_factory.mktemp("large"), VIDEOS, 4, Inventor(4, FRAMES, dim=64), hidden=8, max_epochs=2, seeds=[0, 1]))


def sift_videos(run: Run) -> LazySequence:
    "The arrays of all videos, read when they are asked for."
    units = read_feature("sift", run.params, run.manifest)
    return LazySequence(lambda i: units[i].units.copy(), range(len(units)))  # a copy, for tracemalloc does not count what Arrow holds


def peak_mb(function) -> float:
    "The most memory that Python and NumPy hold while a function runs, in MB."
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally: tracemalloc.stop()


def test_the_vocabulary_is_the_one_of_all_descriptors_in_memory(large):
    lazy = sift_videos(large)
    ours, theirs = (BagOfWords(words=16, seed=3).fit(videos) for videos in (lazy, list(lazy)))
    assert np.array_equal(ours.state()["vocabulary"], theirs.state()["vocabulary"])
    assert np.array_equal(pool_videos([ours], lazy)[0], theirs.transform(list(lazy)))


def test_a_pass_reads_each_chunk_once(large):
    "One pass to count, one for each vocabulary's sample, one for the vectors of all of them."
    lazy, poolers = sift_videos(large), [BagOfWords(words=16, seed=s) for s in range(3)]
    with patch.object(store.pq, "read_table", side_effect=store.pq.read_table) as reading:
        for p in poolers: p.fit(lazy)
        pool_videos(poolers, lazy)
    assert reading.call_count == (1 + 3 + 1) * VIDEOS // CHUNK


def test_vocabulary_and_vectors_take_a_part_of_the_units_memory(large):
    def fit(videos): pool_videos([BagOfWords(words=8).fit(videos)], videos)
    units = VIDEOS * FRAMES * 32 * 128 / 1e6  # MB
    assert peak_mb(lambda: fit(sift_videos(large))) < units / 3 < units < peak_mb(lambda: fit(list(sift_videos(large))))


@pytest.mark.parametrize("feature", ["sift", "cnn", "early"])
def test_training_from_the_store_gives_what_training_from_memory_gives(large, feature):
    params = read_params(large.params, {"features": {"sift": {"words": 8}}})
    each = {f: read_feature(f, params, large.manifest) for f in ("sift", "cnn")}
    units = join_units(each) if feature == "early" else each[feature]
    lazy, listed = (train_feature(feature, u, large.manifest, large.classes, params) for u in (units, list(units)))
    assert np.array_equal(lazy.X, listed.X) and np.array_equal(lazy.p, listed.p) and lazy.metrics == listed.metrics
    assert lazy.p.shape == (2, (large.manifest["split"] != "train").sum(), 4)


def test_a_seeds_predictions_stand_in_the_files_as_they_were_made(large):
    result = train_feature("cnn", read_feature("cnn", large.params, large.manifest), large.manifest, large.classes, large.params)
    save_result(large.folder, "cnn", result)
    seeds = pd.read_parquet(large.folder/"cnn/seeds.parquet")
    for s, p in zip(result.seeds, result.p): assert np.array_equal(seeds.loc[seeds["seed"] == s, [f"p_{k}" for k in range(4)]], p)
    answers = Run(large.folder).answers("cnn")
    assert answers["pred"].tolist() == result.p[0].argmax(1).tolist() and np.allclose(answers["p"], result.p[0].max(1))


def test_a_table_is_written_in_blocks(tmp_path):
    "Twice the rows take no more memory."
    p = pd.DataFrame(np.random.default_rng(0).random((20_000, 40), np.float32), columns=[f"p_{k}" for k in range(40)])
    half, whole = (peak_mb(lambda table=table: write_csv(tmp_path/"table.csv", table)) for table in (p[:10_000], p))
    assert whole < 1.1 * half
    assert (tmp_path/"table.csv").read_text() == p.to_csv(index=False)


def test_every_class_of_an_invented_set_can_be_learned():
    m = invented_manifest(2_000, 400)
    assert m.loc[m["split"] == "train", "label"].nunique() == 400 and m["id"].is_unique


def test_the_doctor_compares_some_of_very_many_videos(monkeypatch):
    "The copy of the video that is asked for is found, another one is not, and a line says that."
    rng, (t, y, x) = np.random.default_rng(0), np.meshgrid(np.arange(24), np.arange(SIDE), np.arange(SIDE), indexing="ij")
    waves = lambda: sum(np.sin(a * x + b * y + c * t + d) for a, b, c, d in rng.uniform(-.6, .6, (6, 4)) * (1, 1, .2, 5))
    pictures = [(128 + 20 * waves()).astype(np.uint8).reshape(24, -1) for _ in range(4)]
    manifest = pd.DataFrame({"id": list("abcdef"), "split": ["train"] * 4 + ["val"] * 2, "label": pd.array([0] * 6, "Int64"), "content": list("abcdef"),
                             "fold": pd.array([pd.NA] * 6, "Int64"), "path": list("abcdef")})
    looks = [Look(1., 24, 64, p, np.arange(24) / 24, ()) for p in (*pictures, pictures[0], pictures[1])]
    examined = Examined(Dataset(Path(), manifest, ["x"]), looks, [""] * 6, [])
    assert [row[4] for row in nearly_twice(examined)] == ["e", "f"]
    monkeypatch.setattr("hw2.run.doctor.held_out_sample", lambda rows: np.array([5]))
    assert [row[4:] for row in nearly_twice(examined)] == [("", "looked for of 1 held-out videos, drawn at random"), ("f", "as b in train")]
