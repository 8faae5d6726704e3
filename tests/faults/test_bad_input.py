"""Bad input: a clear error that names the thing, and nothing lost"""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from hw2.classifier.train import train_feature
from hw2.core.devices import pick_device
from hw2.core.files import ROOT, write_csv
from hw2.core.params import ParameterError, check_params, read_params
from hw2.data.dataset import COLUMNS, write_classes, write_manifest
from hw2.data.source import load_dataset
from hw2.data.split import split_manifest
from hw2.extraction.extract import extract, stores_of
from hw2.extraction.store import Units
from hw2.features.backbone import Backbone, embed
from hw2.features.networks import WeightsError, build
from hw2.features.sift import BagOfWords
from hw2.features.weights import download, load_weights
from hw2.report.tables import to_html
from hw2.run.cli import app
from hw2.run.learning_curves import curve_table, curves_in_words, plot_run_curves
from hw2.run.probes import chosen_settings, directions_in_words, gains_in_words, plot_run_probes, probe_table, probe_top1, rankings_in_words
from hw2.run.record import RunError, open_run
from hw2.run.results import save_result
from hw2.run.run import Run

MINI = {"features": {"sift": {"fps": 2, "words": 8}}, "workers": 1, "device": "cpu", "classifier": {"max_epochs": 2}}


# Words, networks, weights


def test_fewer_descriptors_than_words():
    with pytest.raises(ValueError, match="12 descriptors cannot make 16 words"): BagOfWords(16).fit([np.ones((3, 4, 128), np.uint8)])


def backbone(**parameters):
    "A small random network, with something else about it."
    return Backbone(**{"name": "convnext_mini", "weights": "random"} | parameters)


@pytest.mark.parametrize("make, words", [
    (lambda: backbone(name="convnext_bse"), "backbone 'convnext_bse' is unknown; did you mean convnext_base"),
    (lambda: backbone(name="resnet18", weights="IMAGENET1K_V7"), "resnet18 weights 'IMAGENET1K_V7' is unknown; did you mean IMAGENET1K_V1"),
    (lambda: backbone(name="resnet18", preprocess="KINETICS"), "resnet18 weights 'KINETICS' is unknown"),
    (lambda: backbone(preprocess="ResNet50_Weights.V9"), "preprocess 'ResNet50_Weights.V9'"),
    (lambda: backbone(weights="IMAGENET1K_V1").file, "known for convnext_mini: bundled, a file or random"),
    (lambda: backbone(weights="none.safetensors").file, "none.safetensors: no such weights file"),
    (lambda: backbone(node="features.99").network, "node 'features.99' is unknown; did you mean features."),
])
def test_unknown_backbone_weights_preprocessing_or_node(make, words):
    with pytest.raises(WeightsError) as error: make()
    assert words in str(error.value)


@pytest.fixture
def misfits(tmp_path) -> dict[str, Path]:
    "Weights files that do not fit a convnext_mini."
    state = build("convnext_mini").state_dict()
    names = ["other.safetensors", "wider.safetensors", "fewer.safetensors", "text.safetensors", "list.pth", "whole.pth", "empty.pth"]
    files = {name: tmp_path/name for name in names}
    save_file(build("r2plus1d_mini").state_dict(), files["other.safetensors"])
    save_file(state | {"classifier.2.weight": torch.zeros(7, 256)}, files["wider.safetensors"])
    save_file({k: v for k, v in state.items() if "bias" not in k}, files["fewer.safetensors"])
    files["text.safetensors"].write_text("not weights")
    torch.save([1, 2], files["list.pth"])
    torch.save(build("convnext_mini"), files["whole.pth"])  # a pickled network, which `weights_only` refuses
    files["empty.pth"].touch()
    return files


def test_weights_that_do_not_fit(misfits):
    for name, file in misfits.items():
        with pytest.raises(WeightsError) as error: load_weights(build("convnext_mini"), file)
        assert name in str(error.value)
    embed(backbone(), np.zeros((1, 3, 96, 96), np.float32))  # the network itself is fine


def test_weights_that_do_not_fit_stop_the_extraction(misfits, tiny_demo, tmp_path):
    changed = {"data": str(tiny_demo), "features": {"cnn": {"weights": str(misfits["fewer.safetensors"])}}, "cache": str(tmp_path/"cache")}
    params = check_params(MINI | changed)
    dataset = load_dataset(params)
    with pytest.raises(WeightsError, match="fewer.safetensors does not fit ConvNeXt: .*tensors needed are missing.*features.0.1.bias"): extract(dataset, params)
    assert not list((tmp_path/"cache").rglob("part-*"))


def test_no_network_for_a_download(tmp_path, monkeypatch):
    url = "http://127.0.0.1:9/net-0123abcd.pth"  # nobody listens there
    with pytest.raises(WeightsError) as error: download(url, tmp_path)
    for part in ["net-0123abcd.pth is not here", f"Fetch {url}", f"put it at {tmp_path/'net-0123abcd.pth'}"]: assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for proxy in ("http_proxy", "https_proxy"): monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    params = check_params(MINI | {"features": {"cnn": {"backbone": "mobilenet_v2", "weights": "IMAGENET1K_V1"}}})
    with pytest.raises(WeightsError) as error: stores_of(params)
    for part in ["mobilenet_v2-b0353104.pth is not here", "Fetch https://download.pytorch.org/models/mobilenet_v2-b0353104.pth", str(tmp_path/"checkpoints"),
                 "-p features '[sift, convnext_mini, r2plus1d_mini]'"]:
        assert part in str(error.value)


def test_damaged_download(tmp_path):
    (tmp_path/"net-0123abcd.pth").write_text("half of it")
    with pytest.raises(WeightsError, match="net-0123abcd.pth is damaged.*not 0123abcd; delete it"): download("http://127.0.0.1:9/net-0123abcd.pth", tmp_path)


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_a_device_that_is_not_there(device):
    if device == "cuda" and torch.cuda.is_available(): pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match=f"device '{device}' is not available here; available:.*cpu"): pick_device(device)


# Parameters and runs


@pytest.mark.parametrize("given, words", [
    ({"fold": 3}, "unknown parameter 'fold'; did you mean 'folds'?"), ({"Quark": 3}, "unknown parameter 'Quark'; known: data, form"),
    ({"features": {"sift": {"fps": 0}}}, "features.sift.fps: 0 is not a number above 0"),
    ({"features": {"cnn": {"fps": "fast"}}}, "features.cnn.fps: 'fast' is not"),
    ({"features": {"cnn3d": {"n_clips": 2.5}}}, "features.cnn3d.n_clips: 2.5 is not a whole number"),
    ({"features": ["hog"]}, "features: 'hog' is neither an entry"),
    ({"features": []}, "features: names no feature"), ({"features": {}}, "features: names no feature"),
    ({"features": ["sift", "sift"]}, "features: 'sift' stands twice"),
    ({"features": {"cnn": {"backbon": "resnet50"}}}, "unknown parameter 'features.cnn.backbon'; did you mean 'backbone'?"),
    ({"features": {"a": {"like": "b"}, "b": {"like": "a"}}}, "features.a.like: goes in a circle: a, b, a"),
    ({"features": {"a": {"like": "cmn"}}}, "did you mean 'cnn'?"),
    ({"features": {"early": {"like": "cnn"}}}, "features: 'early' is reserved"),
    ({"features": {"a/b": {"like": "cnn"}}}, "features: 'a/b' cannot name a feature"),
    ({"features": {"..": {}}}, "cannot name a feature"), ({"features": {"a b": {"like": "cnn"}}}, "cannot name a feature"),
    ({"features": {1: {}}}, "features: 1 cannot name a feature"),
    ({"cnn_weights": "random"}, "cnn_weights: stands now under features.cnn.weights"), ({"seeds": [0]}, "seeds: stands now under classifier.seeds"),
    ({"folds": 1}, "folds: 1 is not"), ({"form": "zip"}, "form: 'zip' is not one of course, folders, csv"),
    ({"classifier": {"dropout": 1}}, "classifier.dropout: 1 is not"),
    ({"features": {"sift": {"words": True}}}, "features.sift.words: True is not"), ({"on_error": "ignore"}, "on_error: 'ignore' is not one of skip, stop"),
    ({"classifier": {"seeds": 3}}, "classifier.seeds: 3 is not a list"),
    ({"features": {"cnn": {"pool": "median"}}}, "features.cnn.pool: 'median' is not one of mean, max"),
    ({"classifier": {"patience": 0}}, "classifier.patience: 0 is not"), ({"features": {"sift": {"fps": float("nan")}}}, "features.sift.fps: nan is not"),
    ({"classifier": {"lr": float("inf")}}, "classifier.lr: inf is not"), ({1: 2}, "unknown parameter '1'"),
    ({"classifier": {"seeds": [[0]]}}, "classifier.seeds: [[0]] is not"), ({"form": []}, "form: [] is not"),
])
def test_unknown_parameters_and_impossible_values(given, words):
    with pytest.raises(ParameterError) as error: check_params(given)
    assert words in str(error.value)


@pytest.mark.parametrize("text, words", [("fps: [1,\n", "p.yaml: not YAML"), ("- fps\n", "p.yaml: not a mapping"), ("fps 3\n", "p.yaml: not a mapping")])
def test_a_bad_parameters_file(text, words, tmp_path):
    (tmp_path/"p.yaml").write_text(text)
    with pytest.raises(ParameterError, match=words): read_params(tmp_path/"p.yaml")


def test_a_missing_parameters_file(tmp_path):
    with pytest.raises(ParameterError, match="none.yaml: no such parameters file"): read_params(tmp_path/"none.yaml")


def test_a_run_with_other_parameters(tmp_path):
    open_run("r", check_params({}), tmp_path)
    open_run("r", check_params({}), tmp_path)
    with pytest.raises(RunError, match="r was made with other parameters.*\n  features.sift.words: 128 there, 64 now$"):
        open_run("r", read_params(check_params({}), {"features": {"sift": {"words": 64}}}), tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", ".hidden", "cache"])
def test_a_name_that_no_run_can_have(name, tmp_path):
    with pytest.raises(RunError, match="cannot name a run"): open_run(name, check_params({}), tmp_path)


def test_predict_without_a_run(tmp_path):
    with pytest.raises(RunError, match="none: no run here"): Run(tmp_path/"none")


# On the command line


@pytest.mark.parametrize("arguments, words", [
    (["run", "--params", "none.yaml"], "none.yaml: no such parameters file"),
    (["run", "--params", "DEMO", "-p", "features.cnn.fps", "[1,"], "features.cnn.fps: '[1,' is not YAML"),
    (["run", "--params", "DEMO", "-p", "features.cnn.fsp", "3"], "did you mean 'fps'"),
    (["run", "--params", "DEMO", "-p", "data", "nowhere", "--dry-run"], "nowhere/videos: no such folder"),
    (["predict", "clip.mp4", "--run", "none"], "runs/none: no run here"),
    (["init", "nowhere"], "nowhere: no such folder or file"),
])
def test_errors_are_one_line_and_status_1(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [str(ROOT/"nbs/experiments/params/demo.yaml") if a == "DEMO" else a for a in arguments])
    assert done.exit_code == 1 and done.stderr.startswith("hw2: ") and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path/"runs").exists()


def test_a_run_stops_with_the_notebook_the_cell_and_the_cause(tiny_home, monkeypatch):
    monkeypatch.chdir(tiny_home)
    done = CliRunner().invoke(app, ["run", "--params", str(ROOT/"nbs/experiments/params/demo.yaml"), "-p", "data", "nowhere", "--name", "stops"])
    assert done.exit_code == 1
    said = done.stderr[done.stderr.index("hw2: "):]
    assert "extract.ipynb stopped in cell" in said and "runs/stops/extract.ipynb" in said and "Traceback" not in said
    assert "DataError: nowhere/videos: no such folder" in said and "cell: dataset = load_dataset(params)" in said


# Probes and learning curves


def videos(train: list[int], val: int = 3, test: int = 2, labelled: bool = True, groups: int = 0) -> pd.DataFrame:
    "A manifest: of each class so many training, validation and test videos."
    rows = [(split, y) for y, n in enumerate(train) for split, count in (("train", n), ("val", val), ("test", test)) for _ in range(count)]
    cells = [[f"v{i}", f"v{i}", str(i), y, split, f"g{i % groups}" if groups else "", None] for i, (split, y) in enumerate(rows)]
    m = pd.DataFrame(cells, columns=COLUMNS).astype({"label": "Int64", "fold": "Int64"})
    return m if labelled else m.assign(label=m["label"].mask(m["split"] == "test"))


def units_of(m: pd.DataFrame, kind: str) -> list[np.ndarray]:
    "Three units a video that say the class, or its opposite on held-out videos, or nothing."
    rng, y = np.random.default_rng(0), m["label"].fillna(0).to_numpy(int)
    if kind == "constant": return [np.ones((3, 5), np.float32)] * len(m)
    if kind == "wrong": y = np.where(m["split"] == "train", y, (y + 1) % (y.max() + 1))
    return [(rng.normal(0, .01 if kind in ("right", "wrong") else 3, (3, 8)) + 9 * np.eye(8)[k]).astype(np.float32) for k in y]


@pytest.mark.parametrize("given", [
    dict(m=videos([1, 1, 1])), dict(m=videos([8, 8, 1])), dict(m=videos([6, 6]), kind="constant"), dict(m=videos([9, 9, 9], labelled=False)),
    dict(m=videos([9, 9, 9], groups=4), folds=3), dict(m=videos([9, 9], val=0)), dict(m=videos([9, 9, 9]), kind="right"),
    dict(m=videos([9, 9, 9]), kind="wrong"),
    dict(m=videos([9, 9], val=0, labelled=False))], ids=["one a class", "one of a class", "constant", "no test labels", "folds and groups", "no validation",
                                                       "all correct", "all wrong", "no labels"])
def test_probes_and_learning_curves_of_sets_with_little_to_learn_from(given, tmp_path):
    "Two identical features; no warning, no NaN, a sentence instead."
    m, k = given["m"], int(given["m"]["label"].max()) + 1
    if folds := given.get("folds"): m = split_manifest(m.assign(split=m["split"].where(m["split"] == "test", "")), folds=folds)
    classes = [f"class {i}" for i in range(k)]
    params = check_params({"features": {f: {"kind": "frames", "backbone": "convnext_mini", "weights": "bundled"} for f in "ab"}, "fuse": [], "folds": folds,
                           "probes": ["mlp", "logistic", "neighbours", "attentive"], "learning_curves": True, "inner_folds": None,
                           "classifier": {"hidden": 8, "max_epochs": 3}, "device": "cpu"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train_feature("a", [Units(c, np.arange(3.), u) for c, u in zip(m["content"], units_of(m, given.get("kind", "")))], m, classes, params)
        folder = open_run("bad", params, tmp_path)
        write_manifest(folder/"manifest.csv", m)
        write_classes(folder/"classes.csv", classes)
        write_csv(folder/"skipped.csv", m.loc[:-1, ["id", "path"]].assign(cause=""))
        for f in "ab": save_result(folder, f, result)
        run = Run(folder)
        words = [says(run) for says in (rankings_in_words, gains_in_words, directions_in_words, curves_in_words)]
        pages = [to_html(table(run)) for table in (probe_table, probe_top1, chosen_settings, curve_table)]
        drawn = [plot(run) for plot in (plot_run_probes, plot_run_curves)]
    plt.close("all")
    assert "nan" not in "".join([*words, *pages]).lower()
    known = m.loc[m["split"] == ("val" if (m["split"] == "val").any() else "test"), "label"].notna().any()
    assert [bool(words[0]), bool(words[1]), bool(words[3]), *(d is not None for d in drawn)] == [known] * 5
    if known: assert "The ranking of the features is the same" in words[0] and ("No probe differs" in words[1] or "classified" in words[1])
