"""Exchanged labels are found among a run's vectors, and right ones are left alone"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hw2.classifier.out_of_fold import mlp_probabilities, out_of_fold
from hw2.classifier.train import train_feature
from hw2.core.files import write_csv
from hw2.core.params import check_params, fused
from hw2.data.dataset import write_classes, write_manifest
from hw2.data.split import split_manifest
from hw2.evaluation.label_errors import suspect_labels, suspects_table
from hw2.extraction.store import Units
from hw2.run.costs import costs_in_words, feature_cost, plot_costs, seconds_in_words, shown_costs
from hw2.run.record import add_record, open_run
from hw2.run.results import save_late, save_result
from hw2.run.run import Run
from hw2.run.temperatures import temperature_changes, temperatures_in_words
from hw2.run.wrong_labels import plot_suspects, suspects, suspects_in_words, suspects_text, write_suspects

DRAWS = 8


@pytest.fixture(scope="module")
def videos(tiny_run):
    "Vectors by feature, labels, ids and class names of the tiny demo's labelled videos: seven of each class."
    run = Run(tiny_run.folder)
    X = {f: run.vectors(f)[0] for f in ("sift", "cnn3d")}
    _, y, manifest = run.vectors("cnn3d")
    labelled = y >= 0
    return {f: x[labelled] for f, x in X.items()}, y[labelled], manifest["id"][labelled].tolist(), run.classes


@pytest.fixture(scope="module")
def predict():
    "The report's classifier with its settings, for a fixed number of epochs."
    return mlp_probabilities(check_params({"device": "cpu"}))


def exchanged(y: np.ndarray, k: int, seed: int) -> np.ndarray:
    "The labels, of which one in twenty is another class's."
    rng, planted = np.random.default_rng(seed), y.copy()
    rows = rng.choice(len(y), round(len(y) / 20), replace=False)
    planted[rows] = (y[rows] + rng.integers(1, k, len(rows))) % k
    return planted


def out_of_fold_in_training(X: np.ndarray, y: np.ndarray, ids: list[str], classes: list[str]) -> pd.DataFrame:
    "What a run keeps of training on these videos; the last one is held out."
    manifest = pd.DataFrame({"id": ids, "path": ids, "content": ids, "label": pd.array(y, "Int64"), "split": ["train"] * (len(y) - 1) + ["val"], "group": "",
                             "fold": pd.array([None] * len(y), "Int64")})
    units = [Units(i, np.zeros(1), x[None]) for i, x in zip(ids, X)]
    params = check_params({"device": "cpu", "features": {"cnn3d": {}}, "classifier": {"max_epochs": 12}})
    return train_feature("cnn3d", units, manifest, classes, params).out_of_fold


def test_planted_errors_are_found(videos):
    "As a run trains, over several draws, by cnn3d: precision of at least 0.9, recall of at least 0.8, and the right class is suggested."
    X, y, ids, classes = videos
    true, planted, suspected, found = dict(zip(ids, y)), 0, 0, []
    for seed in range(DRAWS):
        given = exchanged(y, len(classes), seed)
        kept = out_of_fold_in_training(X["cnn3d"], given, ids, classes)
        table = suspect_labels(kept["id"], kept["label"], kept.filter(regex=r"^p_\d+$").to_numpy())
        hits = table.loc[[true[i] != label for i, label in zip(table["id"], table["label"])]] if len(table) else table
        planted, suspected = planted + int((given != y).sum()), suspected + len(table)
        found += [true[i] == s for i, s in zip(hits["id"], hits["suggested"])]
    assert planted == DRAWS * round(len(y) / 20)
    assert len(found) >= .9 * suspected and len(found) >= .8 * planted and np.mean(found) >= .9


def test_at_most_one_right_label_in_a_hundred_is_suspected(videos, predict):
    X, y, ids, classes = videos
    suspects = [len(suspect_labels(ids, y, *out_of_fold(X["cnn3d"], y, len(classes), predict, seed=seed))) for seed in range(4)]
    assert np.mean(suspects) <= .01 * len(y)


def test_the_suspects_are_the_best_features(videos, predict):
    "SIFT's own mistakes look like wrong labels; it stands beside, and does not choose."
    X, y, ids, classes = videos
    given = exchanged(y, len(classes), 0)
    p = {f: out_of_fold(x, given, len(classes), predict)[0] for f, x in X.items()}
    table, sentence = suspects_table(ids, given, p, classes)
    assert table["id"].tolist() == suspect_labels(ids, given, p["cnn3d"])["id"].tolist() and "by cnn3d," in sentence
    assert len(suspect_labels(ids, given, p["sift"])) > 4 * len(table)
    assert list(table)[-2:] == ["by sift", "by cnn3d"] and set(table["by sift"]) <= set(classes)


# Sets that leave little to say

SPLITS = ["train", "train", "train", "train", "val", "test"]


def trained(folder: Path, X: dict[str, np.ndarray], y: list[int], split: list[str], groups: list[str] | None = None, **given) -> Run:
    "A run on vectors of videos that do not exist; a label of -1 is not known."
    params = check_params({"features": {f: {"kind": "vectors", "file": f"{f}.npy"} for f in X}, "device": "cpu", "data": str(folder),
                           "classifier": {"hidden": 16, "max_epochs": 5}} | given)
    run, ids, classes = open_run("run", params, folder), [f"v{i}" for i in range(len(y))], [f"class {k}" for k in range(max(y) + 1)]
    m = pd.DataFrame({"id": ids, "path": [f"{i}.mp4" for i in ids], "content": ids, "label": pd.array(y, "Int64"), "split": split, "group": groups or "",
                      "fold": pd.array([None] * len(y), "Int64")})
    m["label"] = m["label"].where(m["label"] >= 0)
    m = split_manifest(m.assign(split=""), folds=params["folds"]) if params["folds"] else m
    write_manifest(run/"manifest.csv", m)
    write_classes(run/"classes.csv", classes)
    write_csv(run/"skipped.csv", pd.DataFrame(columns=["id", "path", "cause"]))
    add_record(run, stages={"extract": {"seconds": 1.}})
    for f, x in X.items():
        result = train_feature(f, units := [Units(i, np.zeros(1), v[None]) for i, v in zip(ids, x)], m, classes, params)
        result.metrics["cost"] = feature_cost(params["features"][f], [1] * len(y), units)
        save_result(run, f, result)
    if fused(params): save_late(run, classes)
    return Run(run)


def learnable(y: list[int], dim: int = 8, far: float = 9) -> np.ndarray:  # (n, dim) float32
    "Vectors that lie far apart where labels differ."
    rng = np.random.default_rng(0)
    return (far * rng.normal(size=(max(y) + 1, dim))[y] + rng.normal(size=(len(y), dim))).astype(np.float32)


Y = np.repeat([0, 1, 2], 6).tolist()
CASES = {
    "one video a class": ({"a": learnable([0, 1, 2, 0, 1])}, [0, 1, 2, 0, 1], ["train"] * 3 + ["val"] * 2, {}),
    "a class with one training video": ({"a": learnable(Y + [3])}, Y + [3], SPLITS * 3 + ["train"], {}),
    "no labels in test": ({"a": learnable(Y), "b": learnable(Y, far=0)}, [y if s != "test" else -1 for y, s in zip(Y, SPLITS * 3)], SPLITS * 3, {}),
    "folds": ({"a": learnable(Y), "b": learnable(Y, far=1)}, Y, [""] * 18, {"folds": 3}),
    "groups held out": ({"a": learnable(Y), "b": learnable(Y, far=1)}, Y, [""] * 18, {"folds": "group", "groups": list("abcabc") * 3}),
    "groups in one split": ({"a": learnable(Y), "b": learnable(Y, far=1)}, Y, SPLITS * 3, {"groups": list("aabbcd") * 3}),
    "constant vectors": ({"a": np.ones((18, 8), np.float32), "b": learnable(Y)}, Y, SPLITS * 3, {}),
    "two identical features": ({"a": learnable(Y), "b": learnable(Y)}, Y, SPLITS * 3, {}),
    "all wrong": ({"a": learnable([y if s == "train" else (y + 1) % 3 for y, s in zip(Y, SPLITS * 3)])}, Y, SPLITS * 3, {}),
    "noise": ({"a": learnable(Y, far=0)}, Y, SPLITS * 3, {}),
    "two classes": ({"a": learnable(Y[:12])}, Y[:12], SPLITS * 2, {}),
    "no validation": ({"a": learnable(Y)}, Y, [s if s != "val" else "train" for s in SPLITS * 3], {"classifier": {"patience": None, "max_epochs": 5}}),
}


@pytest.mark.parametrize("case", CASES)
def test_little_to_say_is_said_without_a_warning_and_without_nan(case, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        X, y, split, given = CASES[case]
        run = trained(tmp_path, X, y, split, **given)
        table, words = suspects(run), suspects_in_words(run)
        said = [words, suspects_text(run), temperatures_in_words(run), costs_in_words(run), seconds_in_words(run)]
        changes, cost = temperature_changes(run), shown_costs(run)
        write_suspects(run)
        plot_costs(run)
        assert plot_suspects(run) is None  # there are no videos
    assert all(said) and not any("nan" in text.split() for text in said)
    assert table.notna().all(axis=None) and cost.notna().all(axis=None) and changes.drop(columns="temperature").notna().all(axis=None)
    temperatures = [t for f in run.features for t in run.metrics[f]["temperature"].values()]
    assert np.isfinite(temperatures).all() and len(temperatures) == len(X) * (3 if "folds" in given else 1)
    if case == "one video a class": assert words.startswith("No label could be checked") and temperatures == [1]
    if case == "a class with one training video": assert "1 of them could not be checked" in words
    if case == "two identical features": assert temperatures[0] == temperatures[1]


def test_without_inner_folds_late_fusion_is_the_plain_mean(tmp_path):
    run = trained(tmp_path, {"a": learnable(Y), "b": learnable(Y, far=1)}, Y, SPLITS * 3, inner_folds=None)
    p = ["p_0", "p_1", "p_2"]
    late, a, b = (run.predictions(f)[p].to_numpy() for f in ("late", "a", "b"))
    np.testing.assert_allclose(late, (a + b) / 2, atol=1e-6)
    assert not (run.folder/"a/out_of_fold.csv").exists() and "temperature" not in run.metrics["a"] and suspects_in_words(run) == ""
