"""Numbers and frames against independent ones: scikit-learn, brute force, a plain forward pass, the printed tables, and properties that must hold"""

import os
import platform
import subprocess
import sys
import warnings
from fractions import Fraction

import av
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from scipy.stats import multinomial, norm
from sklearn import metrics as reference
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint
from threadpoolctl import threadpool_limits
from torch.utils.flop_counter import FlopCounterMode

from hw2.classifier.attentive import AttentiveProbe, attentive_labels, pad, train_attentive
from hw2.classifier.learning_curve import draw_per_class, learning_curve
from hw2.classifier.mlp import MLP, build_mlp, probabilities, synthetic
from hw2.classifier.out_of_fold import inner_folds
from hw2.classifier.probes import NEIGHBOURS, STRENGTHS, logistic_regression, neighbour_labels
from hw2.classifier.stacked import fit_together
from hw2.classifier.train import train_feature
from hw2.core.cards import CATALOGUE
from hw2.core.files import ROOT
from hw2.core.params import check_params, read_params
from hw2.data.dataset import read_manifest, write_manifest
from hw2.data.probe import probe, write_video
from hw2.data.split import split_manifest
from hw2.data.video import clip_times, frame_times, frames_at, read_frames
from hw2.demo.sprites import REGIONS
from hw2.demo.videos import CODING, FPS, REVERSALS, random_video
from hw2.evaluation.calibration import apply_temperature, calibration_error, fit_temperature, reliability
from hw2.evaluation.cost import Counted, cost_table
from hw2.evaluation.metrics import as_printed, confusion_matrix, counts, hardest_and_easiest, per_class, top_k_accuracy
from hw2.evaluation.order import exchanged_pairs, order_sentence, order_table, turned_classes, turned_sentence
from hw2.evaluation.power import mcnemar_power
from hw2.evaluation.shared_mistakes import kappa
from hw2.evaluation.significance import mcnemar
from hw2.extraction.store import Units
from hw2.features.backbone import Backbone, Embedder
from hw2.features.clips import ClipEmbeddings
from hw2.features.frames import FrameEmbeddings
from hw2.features.sift import SIFT, BagOfWords, Vocabulary, nearest_word

SHARED = ROOT.parent/"shared"
LOSSLESS = {"qp": "0", "g": "1", "preset": "ultrafast"}


def noise(n: int, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    "Frames that all differ."
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), np.uint8)


# Metrics


@pytest.mark.parametrize("seed", range(40))
def test_metrics_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    k, n = int(rng.integers(2, 18)), int(rng.integers(1, 400))
    p = rng.dirichlet(np.full(k, 0.3), n)
    y, pred = rng.integers(0, k, n), p.argmax(1)
    C, labels = confusion_matrix(y, pred, k), range(k)
    assert (C == reference.confusion_matrix(y, pred, labels=labels)).all()
    table = per_class(C, [f"class {i}" for i in labels])
    theirs = reference.precision_recall_fscore_support(y, pred, labels=labels, zero_division=0)
    for column, values in zip(["precision", "recall", "f1", "support"], theirs): np.testing.assert_allclose(table[column][:k].astype(float), values, atol=1e-12)
    for mean in ["macro", "weighted"]:
        values = reference.precision_recall_fscore_support(y, pred, labels=labels, average=mean, zero_division=0)[:3]
        np.testing.assert_allclose(table.loc[mean, ["precision", "recall", "f1"]].astype(float), values, atol=1e-12)
    one_against_all = reference.multilabel_confusion_matrix(y, pred, labels=labels)
    assert (np.stack(counts(C), 1) == one_against_all[:, [1, 0, 1, 0], [1, 1, 0, 0]]).all()  # TP, FP, FN, TN
    np.testing.assert_allclose(table["accuracy"][:k].astype(float), [(y_k == p_k).mean() for y_k, p_k in ((y == i, pred == i) for i in labels)])
    assert top_k_accuracy(p, y, 1) == pytest.approx(reference.accuracy_score(y, pred)) and top_k_accuracy(p, y, k) == 1
    for top in range(2, k): assert top_k_accuracy(p, y, top) == pytest.approx(reference.top_k_accuracy_score(y, p, k=top, labels=labels))


# Probabilities, shared mistakes, power, cost


def invented(seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Logits that are too large or too small by a factor, and labels."
    rng = np.random.default_rng(seed)
    k, n = int(rng.integers(2, 12)), int(rng.integers(60, 500))
    logits = rng.normal(size=(n, k)) * rng.uniform(.5, 4)
    return logits * rng.uniform(.3, 4), (softmax(logits, axis=1).cumsum(1) < rng.random((n, 1))).sum(1).clip(max=k - 1)


@pytest.mark.parametrize("seed", range(12))
def test_reliability_is_scikit_learns(seed):
    logits, y = invented(seed)
    p = softmax(logits, axis=1)
    table = reliability(p, y)
    theirs = calibration_curve(p.argmax(1) == y, p.max(1), n_bins=10)
    np.testing.assert_allclose(table[["correct", "confidence"]], np.stack(theirs, 1), atol=1e-12)
    assert table["n"].sum() == len(y)
    for _, r in table.iterrows():
        low, high = proportion_confint(round(r["correct"] * r["n"]), r["n"], method="wilson")
        assert np.allclose([r["low"], r["high"]], [low, high], atol=1e-9)
    assert calibration_error(p, y)[0] == pytest.approx(np.average(np.abs(theirs[0] - theirs[1]), weights=table["n"]))


class Logits(ClassifierMixin, BaseEstimator):
    "A classifier whose input are its logits."
    def fit(self, X, y):
        self.classes_ = np.arange(X.shape[1])
        return self

    def decision_function(self, X): return X

    def predict(self, X): return X.argmax(1)


@pytest.mark.parametrize("seed", range(12))
def test_temperature_is_scikit_learns_and_the_grids(seed):
    logits, y = invented(seed)
    y[:5 * logits.shape[1]] = np.tile(range(logits.shape[1]), 5)  # scikit-learn wants every class in every fold
    p = softmax(logits, axis=1)
    found = fit_temperature(p, y)
    if logits.shape[1] > 2:
        theirs = CalibratedClassifierCV(FrozenEstimator(Logits().fit(logits, y)), method="temperature", ensemble=False).fit(logits, y)
        assert found == pytest.approx(1 / theirs.calibrated_classifiers_[0].calibrators[0].beta_, rel=1e-3)
    grid = np.geomspace(1/20, 20, 600)
    losses = [reference.log_loss(y, softmax(logits / t, axis=1), labels=range(logits.shape[1])) for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=.011)
    assert (apply_temperature(p, found).argmax(1) == p.argmax(1)).all()


@pytest.mark.parametrize("seed", range(12))
def test_the_orders_top1_is_statsmodels_and_a_plain_bootstraps(seed):
    rng = np.random.default_rng(seed)
    n, forward = int(rng.integers(2, 300)), rng.random(300) < .8
    correct = {"forward": forward[:n], **{f: (forward & (rng.random(300) < p))[:n] for f, p in (("shuffled", .7), ("still", 1.), ("shown reversed", 0.))}}
    table = order_table(correct).set_index("frames")
    assert list(table.index) == list(correct) and (table["n"] == n).all() and table.loc["forward", ["difference", "from", "to", "p"]].isna().all()
    for frames, r in table.iterrows():
        assert r["top1"] == correct[frames].mean()
        assert [r["low"], r["high"]] == pytest.approx(proportion_confint(correct[frames].sum(), n, method="wilson"), abs=1e-9)
    for frames, r in table.iloc[1:].iterrows():
        a, b = correct["forward"], correct[frames]
        cells = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        assert [r["only_forward"], r["only_this"]] == [cells[0][1], cells[1][0]] and r["difference"] == pytest.approx(a.mean() - b.mean())
        assert r["p"] == pytest.approx(statsmodels_mcnemar(cells, exact=True).pvalue if (a ^ b).any() else 1)
        means = (a.astype(int) - b)[np.random.default_rng(seed + 1).integers(0, n, (4_000, n))].mean(1)
        assert [r["from"], r["to"]] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=.03 + 1 / n)


@pytest.mark.parametrize("seed", range(40))
def test_turned_and_exchanged_classes_are_the_counted_ones(seed):
    "Of each class by scikit-learn's confusion matrix, of each pair by going through the videos."
    rng = np.random.default_rng(seed)
    k, n = int(rng.integers(2, 7)), int(rng.integers(1, 60))
    y, names = rng.integers(k, size=n), [f"c{i}" for i in range(k)]
    other = np.arange(k)
    other[:2] = [1, 0]
    noisy = lambda p, right: np.where(rng.random(n) < right, p, rng.integers(k, size=n))
    forward, backward = noisy(other[y] if seed % 3 == 0 else y, .8), noisy(other[y], .7)  # of every third two classes are exchanged already
    turned, pairs = (f(forward, backward, y, names).set_index(c) for f, c in ((turned_classes, "class"), (exchanged_pairs, ["a", "b"])))
    before, after = (reference.confusion_matrix(y, p, labels=range(k)) for p in (forward, backward))
    assert turned["n"].to_dict() == {names[c]: int(after[c].sum()) for c in range(k) if after[c].any()}
    for c in range(k):
        if not after[c].any(): continue
        r, same = turned.loc[names[c]], sum(f == b for f, b, t in zip(forward, backward, y) if t == c)
        assert (r["unchanged"], r["share"], r["times"]) == (same, same / r["n"], after[c].max()) and after[c][names.index(r["reversed_as"])] == r["times"]
        assert [r["low"], r["high"]] == pytest.approx(proportion_confint(same, r["n"], method="wilson"), abs=1e-9)
    most = lambda C, c: {j for j in range(k) if C[c].any() and C[c][j] == C[c].max()}
    sure = lambda a, b: most(after, a) == {b} and most(before, a) != {b}
    expected = {(names[a], names[b]): int(((y == a) & (backward == b)).sum() + ((y == b) & (backward == a)).sum())
                for a in range(k) for b in range(a + 1, k) if sure(a, b) and sure(b, a)}
    assert pairs["exchanged"].to_dict() == expected
    for (a, b), r in pairs.iterrows():
        assert (r["n"], r["share"]) == (np.isin(y, [int(a[1:]), int(b[1:])]).sum(), r["exchanged"] / r["n"])
        assert [r["low"], r["high"]] == pytest.approx(proportion_confint(int(r["exchanged"]), int(r["n"]), method="wilson"), abs=1e-9)


@pytest.mark.parametrize("correct", [
    {"forward": [True] * 8, "shuffled": [True] * 8, "still": [True] * 8}, {"forward": [False] * 8, "shuffled": [False] * 8, "still": [False] * 8},
    {"forward": [True] * 8, "still": [False] * 8, "shown reversed": [False] * 8}, {"forward": [True] * 2, "shuffled": [False] * 2},
    {"forward": [True], "shuffled": [False]}, {"forward": [], "shuffled": [], "still": []}, {"forward": [False] * 9, "shuffled": [True] * 9}])
def test_the_order_of_few_or_extreme_results_is_said_without_nan(correct):
    "No warning, no NaN in a row that compares, and a sentence or nothing."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = order_table(correct)
        said = order_sentence("f", table)
        y = np.arange(len(correct["forward"])) % 2
        turned, pairs = (f(y, 1 - y, y, ["a", "b"]) for f in (turned_classes, exchanged_pairs))
        both = turned_sentence("f", turned, pairs)
    assert table.iloc[1:].notna().all().all() and "nan" not in said + both
    assert (len(table) > 0) == (len(y) > 1) == said.startswith("**f** reaches") and (len(turned) > 0) == (len(y) > 0) == bool(both)


@pytest.mark.parametrize("seed", range(12))
def test_kappa_is_statsmodels(seed):
    rng = np.random.default_rng(seed)
    k, n = int(rng.integers(2, 12)), int(rng.integers(20, 300))
    a = rng.integers(k, size=n)
    b = np.where(rng.random(n) < rng.random(), a, rng.integers(k, size=n))
    assert kappa(a, b) == pytest.approx(cohens_kappa(confusion_matrix(a, b, k)).kappa)


@pytest.mark.parametrize("n, difference, discordant", [(12, .5, .6), (30, .2, .4), (40, .1, .1), (25, 0, .5), (40, -.3, .35)])
def test_power_is_the_sum_over_all_outcomes(n, difference, discordant):
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    outcomes = [(a, b) for a in range(n + 1) for b in range(n + 1 - a) if mcnemar(a, b) < .05]
    assert mcnemar_power(n, difference, discordant) == pytest.approx(sum(multinomial.pmf([a, b, n - a - b], n, shares) for a, b in outcomes))


@pytest.mark.parametrize("feature, units", [("convnext_mini", 3), ("r2plus1d_mini", 2)])
def test_gflop_of_a_video_is_torchs_count_over_its_units(feature, units):
    card = CATALOGUE[feature]
    spec = Backbone(card.entry["backbone"], "random")
    embedder = Embedder(spec.library.build().eval(), spec.where, spec.transform)
    with torch.no_grad(), FlopCounterMode(display=False) as counter: vectors = embedder(torch.zeros(units, *spec.shape, dtype=torch.uint8))
    table = cost_table({"f": Counted(card.gflop, [units], 4 * card.dim, card.dim)}, {"f": [True]})
    assert table["gflop"][0] == pytest.approx(counter.get_total_flops() / 1e9, rel=6e-3)
    assert table["bytes"][0] == vectors.numpy().nbytes and table["vector_bytes"][0] == vectors[0].numpy().nbytes


# Probes and learning curves


def overlapping(n: int, k: int = 4, dim: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "Clouds that overlap: (n, dim) float32, and labels with equally many videos a class."
    rng = np.random.default_rng(seed)
    y = np.tile(np.arange(k), n // k)
    return (rng.normal(0, 1.5, (k, dim))[y] + rng.normal(0, 3, (n, dim))).astype(np.float32), y


@pytest.mark.parametrize("seed, groups", [(0, 0), (4, 10)])
@pytest.mark.parametrize("probe, theirs, name, values", [
    (logistic_regression, make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), "C", STRENGTHS),
    (neighbour_labels, KNeighborsClassifier(metric="cosine"), "k", NEIGHBOURS)], ids=["logistic", "neighbours"])
def test_what_a_probe_chooses_and_predicts_is_scikit_learns(probe, theirs, name, values, seed, groups):
    X, y = overlapping(300, seed=seed)
    train, rows, of = np.arange(200), np.arange(200, 300), np.array([f"g{i % groups}" if groups else "" for i in range(200)])
    labels, chosen = probe(X, train, y[train], rows, of)
    setting = {"C": "logisticregression__C", "k": "n_neighbors"}[name]
    folds = inner_folds(y[train], of)
    found = GridSearchCV(theirs, {setting: values}, cv=folds, refit=False).fit(X[train], y[train]).cv_results_
    correct = sum(np.rint(len(held) * found[f"split{i}_test_score"]) for i, (_, held) in enumerate(folds))
    assert chosen[name] == values[correct.argmax()] and chosen["inner_top1"] == pytest.approx(correct.max() / 200)
    assert (labels == theirs.set_params(**{setting: chosen[name]}).fit(X[train], y[train]).predict(X[rows])).all()


def attended(model: AttentiveProbe, video: np.ndarray) -> np.ndarray:
    "The logits of one video by loops over heads and units, in float64."
    W = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    n, size, h = len(video), len(W["query"]) // model.heads, []
    for t, x in enumerate(video):
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * W["norm.weight"] + W["norm.bias"]
        phi = [np.cos(np.pi * k * (t + .5) / n) for k in range(1, model.waves + 1)]
        a = W["inner.weight"] @ x + W["inner.bias"] + W["position.weight"] @ phi
        h.append(a * norm.cdf(a))
    pooled = []
    for i in range(0, len(W["query"]), size):
        e = np.exp([W["query"][i:i + size] @ u[i:i + size] / np.sqrt(size) for u in h])
        pooled.append(sum(w * u[i:i + size] for w, u in zip(e / e.sum(), h)))
    return W["out.weight"] @ np.concatenate(pooled) + W["out.bias"]


@pytest.mark.parametrize("heads, lengths", [(4, [3, 8, 1, 5]), (1, [2, 2]), (8, [40])])
def test_attention_is_the_one_by_loops_and_a_batch_equals_its_items(heads, lengths):
    rng = np.random.default_rng(0)
    videos = [rng.normal(2, 3, (n, 20)) for n in lengths]
    torch.manual_seed(0)
    model = AttentiveProbe(20, 6, hidden=32, heads=heads).eval()
    torch.nn.init.normal_(model.norm.weight), torch.nn.init.normal_(model.norm.bias)
    x, mask = pad(videos)
    expected = np.stack([attended(model, v) for v in videos])
    with torch.no_grad():
        np.testing.assert_allclose(model(x, mask), expected, atol=1e-4)
        np.testing.assert_allclose(np.concatenate([model(*pad([v])) for v in videos]), expected, atol=1e-4)
        longer, more = torch.nn.functional.pad(x, (0, 0, 0, 7), value=1e4), torch.nn.functional.pad(mask, (0, 7))
        np.testing.assert_allclose(model(longer, more), expected, atol=1e-4)


def test_the_attentive_probe_is_the_same_bytes_in_processes_with_one_thread_and_two():
    code = ("import hashlib, numpy as np, torch; from hw2.classifier.attentive import attentive_probe\n"
            "rng = np.random.default_rng(0); y = rng.integers(0, 3, 200)\n"
            "units = [rng.normal(size=(n, 64)).astype(np.float32) + k for n, k in zip(rng.integers(2, 9, 200), y)]\n"
            "labels, chosen = attentive_probe(units, np.arange(150), y[:150], np.arange(150, 200), None, 3)\n"
            "from hw2.classifier.attentive import train_attentive; model = train_attentive(units[:150], y[:150], 3)\n"
            "print(chosen, hashlib.sha256(labels.tobytes() + b''.join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest())")
    said = [subprocess.run([sys.executable, "-c", code], env=os.environ | {f"{of}_NUM_THREADS": n for of in ("OMP", "OPENBLAS", "MKL")},
                           cwd=ROOT, check=True, capture_output=True, text=True).stdout for n in ("1", "2")]
    assert said[0] == said[1] and "weight_decay" in said[0]


def test_the_order_of_units_is_found_where_it_decides_and_not_where_it_does_not():
    "Two kinds of units, one first or the other; their mean says nothing."
    rng = np.random.default_rng(0)
    y, kinds = rng.integers(0, 2, 400), 2 * np.array([[1, -1] * 4, [-1, 1] * 4])
    videos = [kinds[[label, 1 - label]] + rng.normal(size=(2, 8)) for label in y]
    train = lambda some: train_attentive(some[:200], y[:200], 2, epochs=35)
    assert (attentive_labels(train(videos), videos[200:]) == y[200:]).mean() > .95
    shuffled = [v[rng.permutation(2)] for v in videos]
    assert .35 < (attentive_labels(train(shuffled), shuffled[200:]) == y[200:]).mean() < .65


def test_a_draw_of_a_learning_curve_is_the_plain_loops():
    X, y = overlapping(500, dim=16)
    train, rows, split = np.arange(300), np.arange(300, 500), np.array(["train"] * 300 + ["val"] * 150 + ["test"] * 50)
    params = check_params({"device": "cpu", "learning_curves": True, "classifier": {"hidden": 32, "dropout": 0.0}})
    curve = learning_curve(X, y, train, rows, split, 75, 4, params)
    for draw, size in [(0, 4), (3, 16), (7, 75)]:
        drawn = draw_per_class(y, train, size, draw)
        assert np.bincount(y[drawn]).tolist() == [size] * 4 and set(drawn) <= set(train)
        alone = MLP(hidden=32, dropout=0.0, max_epochs=20, patience=None, random_state=draw).fit(X[drawn], y[drawn], classes=range(4))
        found = curve[(curve["draw"] == draw) & (curve["per_class"] == size)].set_index("split")
        for name in ("val", "test"):
            at = rows[split[rows] == name]
            assert abs(found.loc[name, "right"] - (alone.predict(X[at]) == y[at]).sum()) <= 1 and found.loc[name, "n"] == len(at)


# Features


@pytest.fixture(scope="module")
def frames(tiny_demo) -> np.ndarray:
    "Eight decoded frames of a demo video, (8, 128, 128, 3)."
    path = sorted((tiny_demo/"videos").iterdir())[0]
    return read_frames(path, frame_times(probe(path).duration, 4)[:, 0])


def test_descriptors_of_real_frames(frames):
    described = np.stack([SIFT(32).prepare(f) for f in frames])
    assert described.shape == (8, 32, 128) and described.any()


def test_bag_of_words_is_the_brute_force_one(frames):
    video = np.stack([SIFT(32).prepare(f) for f in frames])
    video[3, 20:] = 0  # a frame with fewer keypoints
    video[5] = 0  # a flat frame
    bag = BagOfWords(16).fit([video])
    words = bag.vocabulary_.words_
    expected = np.zeros((len(video), 16))
    for histogram, frame in zip(expected, video):
        for descriptor in frame:
            if descriptor.any(): histogram[np.argmin([np.sum((descriptor.astype(float) - word) ** 2) for word in words])] += 1
    assert (bag.vocabulary_.transform(video) == expected).all()
    assert expected.sum(1).tolist() == video.any(-1).sum(-1).tolist()
    assert (bag.transform([video])[0] == expected.max(0)).all()
    assert np.allclose(BagOfWords(16, "mean").load(bag.state()).transform([video])[0], expected.mean(0))


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_normalised_bags_are_scikit_learns_and_their_products_hellingers_kernel(pool, frames):
    from sklearn.preprocessing import normalize
    described = np.stack([SIFT(32).prepare(f) for f in frames])
    videos = [described, described[:2], described[5:6], np.zeros_like(described)]  # the last one is flat throughout
    bag = BagOfWords(16, pool).fit(videos)
    plain, l1, hellinger = (BagOfWords(16, pool, norm).load(bag.state()).transform(videos) for norm in ("none", "l1", "hellinger"))
    assert (plain == bag.transform(videos)).all() and {x.dtype.name for x in (plain, l1, hellinger)} == {"float32"}
    assert np.allclose(l1, normalize(plain, "l1")) and np.allclose(hellinger @ hellinger.T, np.sqrt(l1[:, None] * l1).sum(-1), atol=1e-6)
    assert not l1[3].any() and not hellinger[3].any()


def test_vocabulary_of_few_descriptors_is_scikit_learns_k_means(frames):
    from sklearn.cluster import KMeans
    descriptors = np.concatenate([SIFT(32).prepare(f) for f in frames])
    drawn = descriptors[np.random.default_rng(3).permutation(len(descriptors))].astype(np.float32)  # all of them, in the order in which they are drawn
    with threadpool_limits(1): theirs = KMeans(16, n_init=1, random_state=3).fit(drawn)
    assert np.allclose(Vocabulary(16, seed=3).fit(descriptors).words_, theirs.cluster_centers_)
    assert (nearest_word(drawn, theirs.cluster_centers_) == theirs.labels_).all()


def blobs(n: int) -> np.ndarray:
    "Made-up descriptors around 40 middles, (n, 128) uint8."
    rng = np.random.default_rng(0)
    return np.clip(rng.integers(0, 200, (40, 128))[rng.integers(0, 40, n)] + rng.normal(0, 40, (n, 128)), 0, 255).astype(np.uint8)


def test_a_sampled_vocabulary_costs_little_inertia():
    from sklearn.cluster import KMeans
    descriptors = blobs(20_000)
    inertia = lambda words: np.square(descriptors - words[nearest_word(descriptors, words)]).sum(dtype=float)
    with threadpool_limits(1): theirs = [inertia(KMeans(20, n_init=1, random_state=s).fit(descriptors.astype(np.float32)).cluster_centers_) for s in range(4)]
    ours = [inertia(Vocabulary(20, seed=s).fit(descriptors).words_) for s in range(4)]
    assert np.mean(ours) < 1.02 * np.mean(theirs)


def test_words_and_histograms_are_the_same_bytes_in_processes_with_one_thread_and_two(tmp_path):
    np.save(tmp_path/"videos.npy", blobs(7680).reshape(-1, 8, 32, 128))
    code = ("import hashlib, sys; import numpy as np; from hw2.features.sift import BagOfWords\n"
            "videos = list(np.load(sys.argv[1])); bag = BagOfWords(24).fit(videos); "
            "print(hashlib.sha256(bag.vocabulary_.words_.tobytes() + bag.transform(videos).tobytes()).hexdigest())")
    said = [subprocess.run([sys.executable, "-c", code, tmp_path/"videos.npy"], env=os.environ | {f"{of}_NUM_THREADS": n for of in ("OMP", "OPENBLAS", "MKL")},
                           cwd=ROOT, check=True, capture_output=True, text=True).stdout for n in ("1", "2")]
    assert said[0] == said[1]


def plain_forward(name: str, network, x: torch.Tensor) -> torch.Tensor:
    "The embedding without hooks, padding or memory formats."
    return (network.avgpool(network.features(x)) if name == "cnn" else network.avgpool(network.stages(network.stem(x)))).flatten(1)


@pytest.mark.parametrize("name, extractor, size", [
    ("cnn", FrameEmbeddings(Backbone("convnext_mini", "random", batch=16), fps=4), 11),
    ("cnn3d", ClipEmbeddings(Backbone("r2plus1d_mini", "random", batch=8), clip_fps=8, n_clips=1), 5)])
def test_a_batch_equals_its_items_and_a_plain_forward_pass(name, extractor, size, frames):
    rng = np.random.default_rng(0)
    length = extractor.unit_shape[0]
    prepared = np.stack([extractor.prepare(f) for f in frames])
    units = np.stack([prepared[rng.integers(0, len(prepared), length)] for _ in range(size)])  # (size, length, 3, H, W)
    batch = extractor.units(units)
    single = np.concatenate([extractor.units(u[None]) for u in units])
    np.testing.assert_allclose(batch, single, atol=1e-5)
    x, preset = torch.from_numpy(units[:, 0] if name == "cnn" else units.swapaxes(1, 2)).float() / 255, extractor.backbone.transform
    mean, std = (torch.tensor(v).view(1, 3, *[1] * (x.ndim - 2)) for v in (preset.mean, preset.std))
    x = (x - mean) / std
    with torch.inference_mode(): np.testing.assert_allclose(batch, plain_forward(name, extractor.backbone.network, x), atol=1e-5)
    assert np.abs(batch[0] - batch[1]).max() > 1e-4


@pytest.mark.parametrize("extractor, dim", [(FrameEmbeddings(Backbone("convnext_base", "random", preprocess="IMAGENET1K_V1", batch=1)), 1024),
                                            (ClipEmbeddings(Backbone("r2plus1d_18", "random", preprocess="KINETICS400_V1", batch=1)), 512)])
def test_the_reports_networks_give_the_reports_dimensions(extractor, dim, frames):
    unit = np.stack([extractor.prepare(frames[0])] * extractor.unit_shape[0])
    assert extractor.units(unit[None]).shape == (1, dim)


# Time


@pytest.mark.parametrize("n, rate", [(32, 16), (45, 30), (50, 25), (37, 12.5), (61, 29.97), (90, 15)])
@pytest.mark.parametrize("fps", [0.7, 1.5, 3, 4, 7.3])
def test_a_reversed_video_gives_reversed_frames(n, rate, fps, tmp_path):
    frames = noise(n)
    forward, backward = (write_video(tmp_path/f"{name}.mp4", order, rate, options=LOSSLESS) for name, order in [("f", frames), ("b", frames[::-1])])
    video = probe(forward)
    assert len(video.times) == n
    for t in [frame_times(video.duration, fps), clip_times(video.duration, 3, 11), clip_times(video.duration, 2, 16)]:
        t = t.ravel()
        if n % 2 == 0: t = t[np.abs(t - video.duration / 2) > 2e-3]  # the exact middle between two frames has no mirror image
        if not len(t): continue  # one frame, and that one the middle
        assert (frames_at(video, t) == n - 1 - frames_at(probe(backward), t)[::-1]).all()
        assert (read_frames(forward, t) == read_frames(backward, t)[::-1]).all()


def test_the_frame_shown_is_the_one_whose_time_it_is(tmp_path):
    frames = noise(40)
    video = probe(write_video(tmp_path/"v.mp4", frames, 20, options=LOSSLESS))
    t = np.array([0.0, 0.026, 0.51, 1.333, 1.999])
    assert frames_at(video, t).tolist() == [0, 0, 10, 26, 39]


def test_decoded_pixels_are_the_written_ones(tmp_path):
    "With every frame grey, so that the colour's subsampling takes nothing away."
    frames = np.repeat(np.arange(20, 220, 10, dtype=np.uint8), 32 * 48 * 3).reshape(20, 32, 48, 3)
    path = write_video(tmp_path/"v.mkv", frames, 10, options=LOSSLESS)
    assert np.abs(read_frames(path, (np.arange(20) + 0.5) / 10).astype(int) - frames).max() <= 2


def test_clips_of_a_short_video_loop(tmp_path):
    forward, backward = (probe(write_video(tmp_path/f"{i}.mp4", noise(6)[::i], 10, options=LOSSLESS)) for i in (1, -1))  # 0.6 s; a clip lasts 1.6 s
    t = clip_times(forward.duration, 3, 10)
    at = frames_at(forward, t)
    assert at.shape == (3, 16) and set(at.ravel()) == set(range(6))
    assert (np.diff(at) % 6 == 1).all()
    assert (at.ravel() == 5 - frames_at(backward, t).ravel()[::-1]).all()


def test_clips_stay_inside_and_spread():
    t = clip_times(10, 5, 15)
    assert t.min() >= 0 and t.max() < 10
    np.testing.assert_allclose(t.mean(1), [1, 3, 5, 7, 9])
    np.testing.assert_allclose(np.diff(t), 1 / 15)


def write_variable(path, frames: np.ndarray, times_ms: list[int]):
    "A video whose frames appear at the given times."
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=LOSSLESS)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for frame, t in zip(frames, times_ms):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = t, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_variable_frame_rate_goes_by_time(suffix, tmp_path):
    times = [0, 40, 80, 500, 1000, 1040, 1080, 1900]
    frames = np.repeat(np.arange(20, 180, 20, dtype=np.uint8), 32 * 48 * 3).reshape(8, 32, 48, 3)
    path = write_variable(tmp_path/f"v.{suffix}", frames, times)
    video = probe(path)
    np.testing.assert_allclose(video.times, np.array(times) / 1000, atol=1e-3)
    found = read_frames(path, np.array([0.01, 0.3, 0.7, 1.02, 1.5]))
    assert np.abs(found[:, 0, 0, 0].astype(int) - frames[[0, 2, 3, 4, 6], 0, 0, 0]).max() <= 2


def real_clips() -> list:
    "Real videos of the data folder beside the checkout, where there is one."
    return sorted((SHARED/"data/clips").glob("*.mp4")) + sorted((SHARED/"data/weizmann/bend").glob("*.avi"))[:2]


@pytest.mark.skipif(not real_clips(), reason="no data folder with real clips beside the checkout")
def test_probing_counts_what_a_full_decode_finds():
    for path in real_clips():
        with av.open(str(path)) as container: found = [f.pts for f in container.decode(video=0)]
        video = probe(path)
        assert len(video.times) == len(found), path.name
        unit = np.diff(video.times).min() / np.diff(sorted(found)).min()
        np.testing.assert_allclose(video.times, (np.array(found) - found[0]) * unit, atol=1e-6)
        assert video.times[-1] < video.duration < video.times[-1] + 1


def printed_numbers(code: str) -> list[int]:
    "What the code prints in a process of its own."
    return [int(n) for n in subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()]


MEMORY = """
import resource, sys, tempfile
import numpy as np
from hw2.features.backbone import Backbone
from hw2.features.frames import FrameEmbeddings
from hw2.extraction.decode import prepare_video
from hw2.data.probe import write_video
pictures = np.random.default_rng(0).integers(0, 256, (7, 240, 320, 3), np.uint8)
extractor = FrameEmbeddings(Backbone("convnext_mini", "random"), fps=10)
with tempfile.TemporaryDirectory() as folder:
    for n in [100, 3000]:
        path = write_video(f"{folder}/{n}.mp4", (pictures[i % 7] for i in range(n)), 25, options={"preset": "ultrafast", "crf": "40"})
        spooled = prepare_video(path, {"cnn": extractor}, folder)["cnn"]
        assert len(list(spooled.times)) == n * 10 // 25
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_a_videos_length():
    "1,200 frames of 3,000 are wanted: 276 MB as decoded, 133 MB as prepared."
    short, long = printed_numbers(MEMORY)
    assert long - short < 40


EMBEDDED = """
import tempfile
from pathlib import Path
import numpy as np
import psutil
from hw2.benchmark.workloads import extract_with
from hw2.core.params import check_params
from hw2.data.probe import write_video
from hw2.extraction.decode import become_worker, worker_pool
pictures = np.random.default_rng(0).integers(0, 256, (7, 48, 64, 3), np.uint8)
params = check_params({"device": "cpu", "workers": 1, "features": {"cnn": {"like": "convnext_mini", "fps": 25}}})
become_worker(params)  # as the worker of a cluster, which embeds in the same process
with tempfile.TemporaryDirectory() as folder:
    for n in [100, 8000]:
        path = write_video(Path(folder)/f"{n}.mp4", (pictures[i % 7] for i in range(n)), 25, options={"preset": "ultrafast"})
        assert len(extract_with(worker_pool, [path], params)["cnn"][0].units) == n
        print(psutil.Process().memory_full_info().uss // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not told how to allocate")
def test_memory_does_not_grow_with_what_was_embedded():
    "Batches of 276 MB in all go through the network, 8 MB of embeddings are kept between them."
    short, long = printed_numbers(EMBEDDED)
    assert long - short < 24


# The demo's pairs


@pytest.mark.parametrize("one, other", REVERSALS)
def test_a_pair_decodes_to_exact_reversals(one, other, tmp_path):
    "So features of a set of frames cannot distinguish the two, and features of clips can."
    t = frame_times(2, 4)[:, 0]
    seen = []
    for name in (one, other):
        path = write_video(tmp_path/f"{name}.mp4", random_video(name, "train", np.random.default_rng(5)), FPS, options=CODING)
        video = probe(path)
        seen.append((read_frames(path, video.times + 0.01), read_frames(path, t)))
    assert (seen[0][0] == seen[1][0][::-1]).all() and (seen[0][0] != seen[1][0]).any()
    words = [np.stack([SIFT(32).prepare(f) for f in chosen]) for _, chosen in seen]
    bag = BagOfWords(8).fit(words)
    assert (bag.transform(words)[0] == bag.transform(words)[1]).all() and bag.transform(words).any()


def test_the_demos_splits_share_no_pixels():
    boxes = list(REGIONS.values())
    for i, (top, left, bottom, right) in enumerate(boxes):
        for other in boxes[i + 1:]: assert bottom <= other[0] or other[2] <= top or right <= other[1] or other[3] <= left


# Split and folds


def test_the_reports_split():
    manifest = pd.DataFrame({"id": [f"v{i}" for i in range(7500)], "path": "", "content": "", "label": np.repeat(np.arange(15), 500), "split": "", "group": "",
                             "fold": None}).astype({"label": "Int64", "fold": "Int64"})
    split = split_manifest(manifest)
    assert split["split"].value_counts().to_dict() == {"train": 6000, "val": 1500}
    assert split[split["split"] == "val"]["label"].value_counts(sort=False).sort_index().tolist() == [
        108, 107, 91, 97, 108, 98, 87, 91, 91, 106, 109, 108, 94, 96, 109]


def test_manifest_comes_back_as_it_was(tmp_path):
    manifest = pd.DataFrame({"id": ["NA", "007", "a=b=", "ü, \"x\""], "path": "p", "content": "", "label": [0, None, 2, 1],
                             "split": ["train", "test", "val", "val"], "group": "", "fold": None}).astype({"label": "Int64", "fold": "Int64"})
    write_manifest(tmp_path/"m.csv", manifest)
    pd.testing.assert_frame_equal(read_manifest(tmp_path/"m.csv"), manifest, check_dtype=False)


def fingerprints(n: int = 120, groups: int = 6, seed: int = 0) -> tuple[list[Units], pd.DataFrame]:
    "Videos that are easy to know again, with random labels: what has seen a video knows its label, and nothing else can."
    rng = np.random.default_rng(seed)
    units = [Units(str(i), np.arange(3.0), rng.integers(0, 256, (3, 16, 128), np.uint8)) for i in range(n)]
    manifest = pd.DataFrame({"id": [f"v{i}" for i in range(n)], "path": "", "content": "", "label": rng.integers(0, 2, n), "split": "",
                             "group": [f"g{i % groups}" for i in range(n)], "fold": None}).astype({"label": "Int64", "fold": "Int64"})
    return units, manifest


@pytest.mark.parametrize("patience", [None, 5])
def test_held_out_videos_are_not_learned_from(patience):
    "Random labels are guessed; and what a fold's held-out videos hold, and how they are labelled, does not move its words or its weights by a bit."
    units, manifest = fingerprints()
    params = check_params({"folds": "group", "features": {"sift": {"words": 32}}, "device": "cpu",
                           "classifier": {"max_epochs": 20, "patience": patience, "hidden": 64}})
    manifest = split_manifest(manifest, params["split_seed"], "group")
    result = train_feature("sift", units, manifest, ["a", "b"], params)
    assert len(result.predictions) == 120 and result.predictions["id"].is_unique
    assert abs(result.metrics["val_top1"] - 0.5) < 4 * (0.25 / 120) ** 0.5
    held = (manifest["fold"] == 2).to_numpy()
    others, flipped = fingerprints(seed=1)[0], manifest.assign(label=manifest["label"].where(~held, 1 - manifest["label"]))
    again = train_feature("sift", [o if h else u for o, u, h in zip(others, units, held)], flipped, ["a", "b"], params)
    of_fold = [k for k in result.state if k.startswith("2.")]
    assert "2.pool.vocabulary" in of_fold and "2.mlp.0.weight" in of_fold
    assert all(torch.equal(result.state[k], again.state[k]) for k in of_fold)
    assert not torch.equal(result.state["1.pool.vocabulary"], again.state["1.pool.vocabulary"])


def test_test_videos_are_not_learned_from():
    "With one split neither the words nor the weights move with the test videos."
    units, manifest = fingerprints()
    manifest["group"], manifest["split"] = "", np.repeat(["train", "val", "test"], 40)
    params = check_params({"features": {"sift": {"words": 32}}, "device": "cpu", "classifier": {"max_epochs": 20, "hidden": 64}})
    result = train_feature("sift", units, manifest, ["a", "b"], params)
    test = (manifest["split"] == "test").to_numpy()
    others, unknown = fingerprints(seed=1)[0], manifest.assign(label=manifest["label"].where(~test))
    again = train_feature("sift", [o if h else u for o, u, h in zip(others, units, test)], unknown, ["a", "b"], params)
    assert all(torch.equal(result.state[k], again.state[k]) for k in result.state)


def test_each_seed_has_its_own_words_and_no_other_ones():
    "Of two seeds that train together, each gives what it gives alone."
    units, manifest = fingerprints()
    manifest["group"], manifest["split"] = "", np.repeat(["train", "val", "test"], 40)
    params = check_params({"features": {"sift": {"words": 32}}, "device": "cpu", "classifier": {"max_epochs": 20, "hidden": 64, "seeds": [4, 1]}})
    both = train_feature("sift", units, manifest, ["a", "b"], params)
    one, other = (train_feature("sift", units, manifest, ["a", "b"], read_params(params, {"classifier": {"seeds": [seed]}})) for seed in (4, 1))
    assert not torch.equal(one.state["all.pool.vocabulary"], other.state["all.pool.vocabulary"])
    assert both.predictions.equals(one.predictions) and all(torch.equal(both.state[k], v) for k, v in one.state.items())
    assert both.history.equals(pd.concat([one.history, other.history], ignore_index=True))
    assert both.metrics["seeds"] == one.metrics["seeds"] + other.metrics["seeds"]


# The classifier


def test_equal_seeds_give_equal_bytes():
    X, y = synthetic(400, 32, 3)
    for together in (False, True):
        mlps = [MLP(hidden=16, max_epochs=12, random_state=seed) for seed in (4, 4, 5)]
        data = X[:300], y[:300], X[300:], y[300:]
        one, same, other = fit_together(mlps, *data) if together else [mlp.fit(*data) for mlp in mlps]
        assert all(torch.equal(a, b) for a, b in zip(one.model_.state_dict().values(), same.model_.state_dict().values()))
        assert one.history_.equals(same.history_)
        assert not torch.equal(one.model_[0].weight, other.model_[0].weight)


def plain_training(X: np.ndarray, y: np.ndarray, classes: int, seed: int, epochs: int, **sizes) -> tuple[torch.nn.Module, list[float]]:
    "All videos in one batch, without dropout: a loop over a module, its optimizer and its loss; the model and its losses."
    torch.manual_seed(seed)
    model, x, labels = build_mlp(X.shape[1], classes, dropout=0.0, **sizes), torch.from_numpy(X), torch.from_numpy(y)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False), []
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10)
    for _ in range(epochs):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad(); loss.backward(); optimizer.step(); scheduler.step()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("together", [False, True])
def test_an_mlp_learns_what_a_plain_loop_learns(together):
    "Order decides nothing where all videos are one batch."
    X, y = synthetic(160, 24, 4)
    mlps = [MLP(hidden=20, dropout=0.0, batch_size=120, max_epochs=25, patience=None, random_state=seed) for seed in (3, 0, 8)]
    for mlp in fit_together(mlps, X[:120], y[:120]) if together else [mlp.fit(X[:120], y[:120]) for mlp in mlps]:
        model, losses = plain_training(X[:120], y[:120], 4, mlp.random_state, 25, hidden=20)
        np.testing.assert_allclose(mlp.history_["train_loss"], losses, rtol=1e-3)
        np.testing.assert_allclose(mlp.predict_proba(X[120:]), probabilities(model, X[120:]), atol=1e-2)
        assert mlp.model_[1].num_batches_tracked == 25


@pytest.mark.parametrize("n, dim, sizes", [(300, 32, {"hidden": 16}), (90, 7, {"hidden": 10, "batch_size": 9}), (65, 5, {"hidden": 3, "dropout": 0.1})])
def test_a_seed_is_the_same_in_any_company(n, dim, sizes):
    "To the last bit: alone and among others that stop earlier or later, with one thread and with several."
    X, y = synthetic(n + 60, dim, 3)
    train = lambda *seeds: fit_together([MLP(max_epochs=30, patience=4, random_state=s, **sizes) for s in seeds], X[:n], y[:n], X[n:], y[n:])
    seeds, before, groups = [5, 0, 9, 2, 7], torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            groups.append(train(*seeds))
    finally: torch.set_num_threads(before)
    assert len({len(mlp.history_) for mlp in groups[0]}) > 1
    for i, seed in enumerate(seeds):
        alone, = train(seed)
        for mlp in (group[i] for group in groups):
            assert mlp.history_.equals(alone.history_) and mlp.best_epoch_ == alone.best_epoch_
            assert all(map(torch.equal, mlp.model_.state_dict().values(), alone.model_.state_dict().values()))


@pytest.mark.parametrize("together", [False, True])
def test_early_stopping_keeps_the_best_epoch(together):
    X, y = synthetic(600, 64, 3)
    mlp, data = MLP(hidden=16, max_epochs=60, patience=4), (X[:300], y[:300], X[300:], y[300:])
    history = (fit_together([mlp], *data)[0] if together else mlp.fit(*data)).history_
    assert mlp.best_epoch_ == history["val_top1"].idxmax() and len(history) == mlp.best_epoch_ + 4 + 1
    assert mlp.score(X[300:], y[300:]) == pytest.approx(history["val_top1"].max())


@pytest.mark.parametrize("together", [False, True])
def test_learning_rate_restarts(together):
    X, y = synthetic(128, 8, 2)
    mlp = MLP(hidden=4, lr=0.01, t_0=5, max_epochs=11, patience=None)
    rate = (fit_together([mlp], X, y)[0] if together else mlp.fit(X, y)).history_["lr"]
    np.testing.assert_allclose(rate, [0.005 * (1 + np.cos(np.pi * (e % 5) / 5)) for e in range(11)], rtol=1e-9)


# The printed tables


@pytest.mark.parametrize("feature, right, hardest, easiest", [
    ("sift", 504, [12], [11]), ("cnn", 1411, [12], [11]), ("cnn3d", 1473, [8], [0, 1, 3, 11])])
def test_published_matrices(feature, right, hardest, easiest):
    C = pd.read_csv(ROOT/f"nbs/experiments/published/{feature}_confusion.csv", index_col="class").to_numpy()
    assert (np.trace(C), C.sum()) == (right, 1500)
    assert C.sum(1).tolist() == [108, 107, 91, 97, 108, 98, 87, 91, 91, 106, 109, 108, 94, 96, 109]
    assert hardest_and_easiest(C, range(15)) == (hardest, easiest)
    committed = ROOT/f"figures/published/{feature}_stats_as_printed.csv"
    assert as_printed(C).reset_index().to_csv(index=False, float_format="%.6f").encode() == committed.read_bytes()
    y, pred = (np.repeat(axis.ravel(), C.ravel()) for axis in np.indices(C.shape))
    table = pd.read_csv(ROOT/f"figures/published/{feature}_stats.csv")
    theirs = reference.precision_recall_fscore_support(y, pred)
    for column, values in zip(["precision", "recall", "f1"], theirs): np.testing.assert_allclose(table[column][:15], values, atol=5e-7)


@pytest.mark.skipif(not (SHARED/"published").is_dir(), reason="no folder with the report's typed-off tables beside the checkout")
@pytest.mark.parametrize("feature", ["sift", "cnn", "cnn3d"])
def test_published_tables_are_the_reports_to_the_digit(feature):
    assert (ROOT/f"figures/published/{feature}_stats_as_printed.csv").read_bytes() == (SHARED/f"published/{feature}_stats.csv").read_bytes()
    assert (ROOT/f"nbs/experiments/published/{feature}_confusion.csv").read_bytes() == (SHARED/f"published/{feature}_confusion.csv").read_bytes()
