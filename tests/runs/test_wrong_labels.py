"""Exchanged labels are found among a run's vectors, and right ones are left alone"""

import numpy as np
import pytest

from hw2.classifier.out_of_fold import mlp_probabilities, out_of_fold
from hw2.core.params import check_params
from hw2.evaluation.label_errors import suspect_labels, suspects_table
from hw2.run.run import Run

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


def test_planted_errors_are_found(videos, predict):
    "Over several draws, by cnn3d: precision of at least 0.9, recall of at least 0.8, and the right class is suggested."
    X, y, ids, classes = videos
    true, planted, suspected, found = dict(zip(ids, y)), 0, 0, []
    for seed in range(DRAWS):
        given = exchanged(y, len(classes), seed)
        table = suspect_labels(ids, given, *out_of_fold(X["cnn3d"], given, len(classes), predict))
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
