"""Planted copies are found, other videos of the same place are not, and what the background gives away is a nearest neighbour's figure"""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import KNeighborsClassifier

from hw2.core.files import ROOT
from hw2.data.dataset import Dataset
from hw2.data.near_duplicates import near_duplicates
from hw2.data.probe import probe, write_video
from hw2.data.split import split_manifest
from hw2.data.video import decode
from hw2.evaluation.background import background
from hw2.run.doctor import Examined, Look, look, nearly_twice, twice

WEIZMANN = ROOT.parent/"shared/data/weizmann"


def resized(frames: np.ndarray, scale: float) -> np.ndarray:
    "Every frame at another size, even for H.264."
    size = [round(n * scale / 2) * 2 for n in frames.shape[2:0:-1]]
    return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC) for f in frames])


def cropped(frames: np.ndarray, share: float) -> np.ndarray:
    "Without a share of height and width, half of it at either side."
    h, w = frames.shape[1:3]
    y, x = round(h * share / 2), round(w * share / 2)
    return frames[:, y:h - y, x:w - x]


def brighter(frames: np.ndarray, levels: int) -> np.ndarray: return np.clip(frames.astype(int) + levels, 0, 255).astype(np.uint8)


KINDS = {
    "encoded again": lambda x, fps: x, "half the size": lambda x, fps: resized(x, .5), "larger": lambda x, fps: resized(x, 1.5),
    "0.2 s later": lambda x, fps: x[round(.2 * fps):], "1 s later": lambda x, fps: x[round(fps):], "brighter": lambda x, fps: brighter(x, 20),
    "darker": lambda x, fps: brighter(x, -20), "mirrored": lambda x, fps: x[:, :, ::-1], "cropped": lambda x, fps: cropped(x, .05),
}


def copy(source: Path, target: Path, change) -> Path:
    "The source's frames, changed and encoded again."
    video = probe(source)
    fps = len(video.times) / video.duration
    frames = change(np.stack([f for _, f in decode(video, np.arange(len(video.times)))]), fps)
    h, w = (n // 2 * 2 for n in frames.shape[1:3])
    return write_video(target, np.ascontiguousarray(frames[:, :h, :w]), round(fps, 2), options={"crf": "26", "preset": "veryfast"})


def planted(videos: list[Path], sources: list[int], folder: Path, change) -> tuple[set, pd.DataFrame]:
    "The pairs that were planted, and those that were found."
    looks = [look(p) for p in (*videos, *(copy(videos[i], folder/f"{i}.mp4", change) for i in sources))]
    found = near_duplicates([s.pictures for s in looks], [s.times for s in looks])
    return {(i, len(videos) + k) for k, i in enumerate(sources)}, found


@pytest.mark.parametrize("kind", KINDS)
def test_nine_of_ten_planted_copies_of_the_demo_are_found_and_nothing_else(kind, tiny_demo, tmp_path):
    videos = sorted((tiny_demo/"videos").iterdir())[::4]
    wanted, found = planted(videos, list(range(0, len(videos), 3)), tmp_path, KINDS[kind])
    pairs = set(map(tuple, found[["a", "b"]].to_numpy()))
    assert len(pairs & wanted) >= .9 * len(wanted) and not pairs - wanted, (wanted - pairs, pairs - wanted)
    assert (found["mirrored"] == (kind == "mirrored")).all()
    later = {"0.2 s later": .2, "1 s later": 1}.get(kind, 0)
    assert np.median(found["later"]) == pytest.approx(later, abs=.05)


@pytest.mark.skipif(not WEIZMANN.is_dir(), reason="the real clips are not there")
def test_real_clips_of_one_place_are_no_copies_but_their_copies_are(tmp_path):
    videos = sorted(WEIZMANN.glob("*/*.avi"))[::2]
    for kind in ("mirrored", "cropped"):
        wanted, found = planted(videos, list(range(0, len(videos), 9)), tmp_path, KINDS[kind])
        assert set(map(tuple, found[["a", "b"]].to_numpy())) == wanted, kind


def examined(labels: list[int], contents: list[str], looks: list[Look | None]) -> Examined:
    "A set all of whose videos are in one split."
    m = pd.DataFrame({"id": [f"v{i}" for i in range(len(labels))], "content": contents, "label": pd.array(labels, "Int64"), "split": "train",
                      "group": "", "fold": pd.array([None] * len(labels), "Int64")})
    return Examined(Dataset(Path(), m, ["a", "b"]), looks, ["" if s else "no such file" for s in looks], [])


def test_missing_files_do_not_shift_who_is_named():
    contents = ["", "x", "", "y", "x", "y", "z"]
    found = twice(examined([0] * 7, contents, [None] * 7))
    assert [(row[4], row[5]) for row in found] == [("v4", "as v1"), ("v5", "as v3")]


def test_copies_within_a_split_are_named_too(tiny_demo, tmp_path):
    source, other = sorted((tiny_demo/"videos").iterdir())[:2]
    looks = [None, look(source), look(other), look(copy(source, tmp_path/"copy.mp4", lambda x, fps: x[5:, :, ::-1]))]
    (row,) = nearly_twice(examined([0, 0, 0, 1], ["", "x", "y", "z"], looks))
    assert row[4:] == ("v3", "as v1 in train, mirrored, starts 0.3 s later, with another label")


@pytest.mark.parametrize("folds", [None, 3, "group"])
def test_the_background_figure_is_scikit_learns_nearest_neighbour(folds):
    rng, n = np.random.default_rng(0), 60
    X, y = rng.uniform(0, 255, (n, 64)), rng.integers(0, 3, n)
    m = pd.DataFrame({"id": range(n), "label": pd.array(y, "Int64"), "split": "", "group": [f"g{i % 4}" for i in range(n)] if folds == "group" else "",
                      "fold": pd.array([None] * n, "Int64")})
    m = split_manifest(m, folds=folds)
    masks = [(m["split"] == "train", m["split"] == "val")] if folds is None else [(m["fold"] != k, m["fold"] == k) for k in m["fold"].unique()]
    correct = sum((KNeighborsClassifier(1).fit(X[train], y[train]).predict(X[held]) == y[held]).sum() for train, held in masks)
    told = background(X, m, 3)
    assert (told.correct, told.n) == (correct, sum(held.sum() for _, held in masks))
