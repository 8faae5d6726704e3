"""Whole runs through the command line and through papermill: what they leave behind, and that they leave it again"""

import fcntl
import filecmp
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from scipy.special import softmax
from scipy.stats import binomtest
from stored_outputs import cleaned, shown
from traces import lasting, record
from traitlets.config import Config

import hw2.run.cli
from hw2.classifier.train import train_feature
from hw2.core.cards import CATALOGUE
from hw2.core.files import ROOT
from hw2.core.params import Params, read_params
from hw2.data.dataset import read_manifest
from hw2.data.source import load_dataset
from hw2.demo.videos import CLASSES, REVERSALS
from hw2.evaluation.calibration import fit_temperature
from hw2.evaluation.order import exchanged_pairs
from hw2.extraction.extract import extract, read_feature, stores_of, with_reversed
from hw2.extraction.store import read_units
from hw2.run.cli import app
from hw2.run.kernels import OwnKernels
from hw2.run.publish import BEGIN, END
from hw2.run.run import load

EXPERIMENTS = ROOT/"nbs/experiments"
FEATURES = {"sift": 128, "cnn": 256, "cnn3d": 128}
CONTROLS = ["cnn3d_shuffled", "cnn3d_still"]  # which the demo's `controls: true` adds


def papermill_alone(name: str, folder: Path, params: dict, cwd: Path) -> None:
    "One of the experiments, without `hw2 run`; its executed copy into the folder."
    papermill.execute_notebook(str(EXPERIMENTS/f"{name}.ipynb"), str(folder/f"{name}.ipynb"), params, cwd=str(cwd), progress_bar=False, kernel_name="python3",
                               kernel_manager_class=OwnKernels, config=Config({"KernelManager": {"transport_encryption": "auto"}}))


# What a run leaves behind


def test_manifest_and_classes(tiny_run):
    manifest = pd.read_csv(tiny_run.folder/"manifest.csv", dtype=str, keep_default_na=False)
    assert manifest.columns.tolist() == ["id", "path", "content", "label", "split", "group", "fold"]
    assert manifest["split"].value_counts().to_dict() == {"train": 60, "val": 30, "test": 15}
    assert manifest["content"].str.fullmatch("[0-9a-f]{32}").all() and manifest["id"].is_unique
    assert all((tiny_run.home/"tiny"/p).is_file() for p in manifest["path"])
    labels = pd.read_csv(tiny_run.home/"tiny/labels/train_val.csv").set_index("Id")["Category"]
    assert manifest.set_index("id")["label"].loc[labels.index].astype(int).equals(labels.astype(int))
    classes = pd.read_csv(tiny_run.folder/"classes.csv")
    assert classes.columns.tolist() == ["label", "name"] and classes["name"].tolist() == list(CLASSES)


def test_parameters_are_kept(tiny_run):
    params = yaml.safe_load((tiny_run.folder/"params.yaml").read_text(encoding="utf-8"))
    assert list(params) == list(Params.model_fields) and (params["data"], params["classifier"]["max_epochs"], params["features"]["sift"]["fps"]) == ("tiny", 3,
                                                                                                                                                     4)


@pytest.mark.parametrize("feature, dim", FEATURES.items())
def test_predictions_metrics_and_model(feature, dim, tiny_run):
    rows = pd.read_csv(tiny_run.folder/feature/"predictions.csv")
    p = [f"p_{k}" for k in range(15)]
    assert rows.columns.tolist() == ["id", "split", "fold", "label", "pred", *p]
    assert rows["split"].value_counts().to_dict() == {"val": 30, "test": 15}
    assert np.allclose(rows[p].to_numpy().sum(1), 1, atol=1e-5) and (rows[p].to_numpy().argmax(1) == rows["pred"]).all()
    history = pd.read_csv(tiny_run.folder/feature/"history.csv")
    assert history.columns.tolist() == ["seed", "fold", "epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1"] and len(history) == 2 * 3
    metrics = json.loads((tiny_run.folder/"metrics.json").read_text(encoding="utf-8"))[feature]
    assert {"val_top1", "test_top1", "n_val", "n_test", "hardest", "easiest", "epochs", "dim"} <= set(metrics)
    assert (metrics["n_val"], metrics["n_test"], metrics["epochs"], metrics["dim"]) == (30, 15, 3, dim)
    right = (rows["label"] == rows["pred"]).groupby(rows["split"]).mean()
    assert metrics["val_top1"] == pytest.approx(right["val"]) and metrics["test_top1"] == pytest.approx(right["test"])
    assert metrics["val_top1"] == pytest.approx(history.loc[history["seed"] == 0, "val_top1"].max())
    recall = (rows["label"] == rows["pred"])[rows["split"] == "val"].groupby(rows["label"]).mean()
    assert metrics["hardest"] == [CLASSES[k] for k in recall.index[recall == recall.min()]]
    assert metrics["easiest"] == [CLASSES[k] for k in recall.index[recall == recall.max()]]
    state = load_file(tiny_run.folder/feature/"model.safetensors")
    assert state["all.mlp.0.weight"].shape == (256, dim) and state["all.mlp.4.weight"].shape == (15, 256)
    assert ("all.pool.vocabulary" in state) == (feature == "sift")


@pytest.mark.parametrize("feature", FEATURES)
def test_probes_and_learning_curve(feature, tiny_run):
    rows, answers = (pd.read_csv(tiny_run.folder/feature/f"{name}.csv") for name in ("probes", "predictions"))
    probes = json.loads((tiny_run.folder/"metrics.json").read_text(encoding="utf-8"))[feature]["probes"]
    assert list(probes) == ["logistic", "neighbours", "attentive"] and (probes["attentive"] is None) == (feature == "cnn3d")  # which has one clip a video
    assert rows.columns.tolist() == ["id", "split", "fold", "label", "mlp", *(p for p, m in probes.items() if m)]
    assert rows["id"].tolist() == answers["id"].tolist() and rows["mlp"].tolist() == answers["pred"].tolist()
    for split in ("val", "test"):
        d = rows[rows["split"] == split]
        for p, m in probes.items():
            if m: assert m[f"{split}_top1"] == pytest.approx((d[p] == d["label"]).mean()) and list(m["chosen"]) == ["all"]
    curve = pd.read_csv(tiny_run.folder/feature/"learning_curve.csv")
    assert curve.columns.tolist() == ["draw", "per_class", "n_train", "split", "right", "n"] and sorted(set(curve["draw"])) == list(range(10))
    assert sorted(set(curve["per_class"])) == [1, 2, 4] and set(curve["n_train"]) == {15, 30, 60} and (curve["right"] <= curve["n"]).all()


def test_the_report_says_what_other_classifiers_and_fewer_videos_give(tiny_run):
    page = (tiny_run.folder/"report.html").read_text(encoding="utf-8")
    for words in ("Does the ranking depend on the classifier?", "No attentive probe for cnn3d: a video has a single unit", "Direction of time in",
                  "How many training videos are needed?", "No class has more than 4 training videos"): assert words in page


@pytest.mark.parametrize("feature, dim", FEATURES.items())
def test_load_gives_the_vectors_that_were_classified(feature, dim, tiny_run):
    X, y, manifest = load(tiny_run.folder, feature)
    assert X.shape == (105, dim) and X.dtype == np.float32 and y.shape == (105,) and len(manifest) == 105
    assert (y == manifest["label"].astype(int)).all()
    state = {k.removeprefix("all.mlp."): v for k, v in load_file(tiny_run.folder/feature/"model.safetensors").items() if ".mlp." in k}
    model = torch.nn.Sequential(torch.nn.Linear(dim, 256), torch.nn.BatchNorm1d(256), torch.nn.GELU(), torch.nn.Dropout(0.5), torch.nn.Linear(256, 15)).eval()
    model.load_state_dict(state)
    with torch.inference_mode(): p = model(torch.from_numpy(X.copy())).softmax(1).numpy()
    rows = pd.read_csv(tiny_run.folder/feature/"predictions.csv").set_index("id")
    told = (manifest["split"] != "train").to_numpy()
    np.testing.assert_allclose(p[told], rows.loc[manifest["id"][told]].filter(like="p_"), atol=1e-5)


@pytest.mark.parametrize("name, copy", [("extract", "extract"), ("train", "train_sift"), ("fuse", "fuse")])
def test_experiments_are_stored_with_what_a_run_shows(name, copy, tiny_run):
    "The demo's outputs: of each cell the same kinds, with other numbers than the tiny run's: none of those stay in a run's executed copy."
    stored, run = (cleaned(nbformat.read(p, 4)) for p in (EXPERIMENTS/f"{name}.ipynb", tiny_run.folder/f"{copy}.ipynb"))
    now = {c.id: c for c in run.cells}
    kinds = {c.id: [[sorted(o) for o in shown(cell)] for cell in (c, now[c.id])] for c in stored.cells if c.cell_type == "code"}
    assert any(there for there, _ in kinds.values()) and [k for k, (there, here) in kinds.items() if there != here] == []
    texts = [str([shown(c) for c in notebook.cells if c.cell_type == "code"]) for notebook in (stored, run)]
    assert name == "fuse" or ("825" in texts[0] and "105" in texts[1])  # videos of the demo, of the tiny one


@pytest.mark.parametrize("feature", FEATURES)
def test_submission_follows_the_template(feature, tiny_run):
    submission = pd.read_csv(tiny_run.folder/f"submission_{feature}.csv")
    template = pd.read_csv(tiny_run.home/"tiny/labels/test_for_students.csv")
    assert submission.columns.tolist() == ["Id", "Category"] and submission["Id"].tolist() == template["Id"].tolist()
    rows = pd.read_csv(tiny_run.folder/feature/"predictions.csv").set_index("id")
    assert submission["Category"].tolist() == rows.loc[submission["Id"], "pred"].tolist()


def test_fusions_of_all_features(tiny_run):
    "Late fusion is the mean of the features' probabilities at their temperatures, for every seed; early fusion saw all vectors in a row."
    p, seeds = [f"p_{k}" for k in range(15)], {f: pd.read_parquet(tiny_run.folder/f/"seeds.parquet") for f in [*FEATURES, "early", "late"]}
    metrics = json.loads((tiny_run.folder/"metrics.json").read_text(encoding="utf-8"))
    at = {f: softmax(np.log(seeds[f][p].to_numpy(float)) / metrics[f]["temperature"]["all"], axis=1) for f in FEATURES}
    np.testing.assert_allclose(seeds["late"][p], sum(at.values()) / 3, atol=1e-6)
    plain = (sum(seeds[f][p].to_numpy(float) for f in FEATURES).argmax(1) == seeds["late"]["label"]).groupby([seeds["late"]["seed"], seeds["late"]["split"]])
    assert [s["val_top1"] for s in metrics["late"]["without_temperature"]] == pytest.approx([plain.mean()[s, "val"] for s in (0, 1)])
    assert list(metrics) == [*FEATURES, *CONTROLS, "early", "late"] and metrics["early"]["dim"] == sum(FEATURES.values())
    assert load(tiny_run.folder, "early")[0].shape == (105, sum(FEATURES.values()))
    for f, every in seeds.items():
        rows = pd.read_csv(tiny_run.folder/f/"predictions.csv")
        assert every["seed"].tolist() == [0] * 45 + [1] * 45 and (every["pred"][:45] == rows["pred"]).all()
        right = (every["label"] == every["pred"]).groupby([every["seed"], every["split"]]).mean()
        assert [s["val_top1"] for s in metrics[f]["seeds"]] == pytest.approx([right[0, "val"], right[1, "val"]])
        assert pd.read_csv(tiny_run.folder/f"submission_{f}.csv")["Category"].tolist() == rows["pred"][rows["split"] == "test"].tolist()
    told = pd.read_csv(tiny_run.folder/"figures/fusion.csv")
    assert told["fusion"].tolist() == ["early fusion (untrained)", "late fusion (untrained)"] * 2
    right = {f: (t["label"] == t["pred"]).groupby([t["split"], t["seed"]]) for f, t in seeds.items()}
    best = max(FEATURES, key=lambda f: metrics[f]["val_top1"])
    for i, (split, f) in enumerate((s, f) for s in ("val", "test") for f in ("early", "late")):
        a, b = (right[x].get_group((split, 0)).to_numpy() for x in (f, best))
        assert told["gain"][i] == pytest.approx(a.mean() - b.mean(), abs=1e-6)
        assert told["p"][i] == pytest.approx(binomtest(int((a & ~b).sum()), int((a ^ b).sum())).pvalue if (a ^ b).any() else 1, abs=1e-6)
        means = [right[x].get_group((split, s)).mean() for x in (f, best) for s in (0, 1)]
        assert told["seeds_mean"][i] == pytest.approx(sum(means[:2]) / 2 - sum(means[2:]) / 2, abs=1e-6)


def test_figures_and_summary(tiny_run):
    expected = {f"{kind}_{f}.{suffix}" for f in FEATURES for kind, suffixes in
                [("confusion", ["png", "svg"]), ("stats", ["csv", "md", "tex"]), ("curves", ["png"])] for suffix in suffixes}
    expected |= {f"{table}.{suffix}" for table in ("summary", "differences", "fusion", "controls") for suffix in ("csv", "md", "tex")}
    expected |= {f"{picture}_{f}.png" for picture in ("map", "confused") for f in FEATURES}
    pictures = ("classes", "keypoints", "words", "overview", "recall", "seeds", "calibration", "cost", "model", "time_reversal", "controls",
                "answer", "probes", "learning_curves")
    expected |= {f"{picture}.png" for picture in pictures}
    expected |= {"suspects.png"} if len(pd.read_csv(tiny_run.folder/"suspects.csv")) else set()
    assert {p.name for p in (tiny_run.folder/"figures").iterdir()} == expected
    summary = pd.read_csv(tiny_run.folder/"figures/summary.csv")
    assert summary.columns.tolist() == ["feature", "dim", "val_top1", "test_top1", "n_val", "n_test", "hardest", "easiest", "report_val_top1", "report_kaggle"]
    assert summary["feature"].str.contains("majority").any() and summary["feature"].str.contains("logistic").sum() == len(FEATURES)
    assert summary["report_val_top1"][:3].tolist() == pytest.approx([504 / 1500, 1411 / 1500, 1473 / 1500], abs=1e-6)
    stats = pd.read_csv(tiny_run.folder/"figures/stats_sift.csv")
    assert stats.columns.tolist() == ["class", "TP", "FP", "FN", "TN", "accuracy", "precision", "recall", "recall_low", "recall_high", "f1", "support"]
    assert stats["class"].tolist() == [*CLASSES, "macro", "weighted"] and (stats["support"][:15] == 2).all()


def test_reversed_clips_are_predicted_by_the_forward_classifier(tiny_run):
    "By its weights, read here, from the reversed units in the store; the demo's pairs of opposite motions are exchanged."
    params = read_params(tiny_run.folder/"params.yaml", {"cache": str(tiny_run.home/"cache"), "data": str(tiny_run.home/"tiny")})
    rows, forward = (pd.read_csv(tiny_run.folder/f"cnn3d/{name}.csv") for name in ("reversed", "predictions"))
    assert list(rows) == list(forward) and rows["id"].tolist() == forward["id"].tolist() and rows["label"].tolist() == forward["label"].tolist()
    every = read_manifest(tiny_run.folder/"manifest.csv")
    units = read_feature("cnn3d reversed", with_reversed(params), every)
    X = torch.from_numpy(np.stack([units[i].units.mean(0) for i in every.index[every["split"] != "train"]]))
    w = {k.removeprefix("all.mlp."): v for k, v in load_file(tiny_run.folder/"cnn3d/model.safetensors").items()}
    h = torch.nn.functional.batch_norm(X @ w["0.weight"].T + w["0.bias"], w["1.running_mean"], w["1.running_var"], w["1.weight"], w["1.bias"])
    p = (torch.nn.functional.gelu(h) @ w["4.weight"].T + w["4.bias"]).softmax(1).numpy()
    np.testing.assert_allclose(rows.filter(like="p_"), p, atol=1e-5)
    pairs = exchanged_pairs(forward["pred"], rows["pred"], rows["label"], CLASSES)
    assert {frozenset(p) for p in zip(pairs["a"], pairs["b"])} == {frozenset(p) for p in REVERSALS}
    assert not [f for f in ("sift", "cnn", *CONTROLS) if (tiny_run.folder/f/"reversed.csv").exists()]
    assert not [f for f in CONTROLS if (tiny_run.folder/f"submission_{f}.csv").exists()]


def test_the_order_of_the_frames_has_its_section(tiny_run):
    page = (tiny_run.folder/"report.html").read_text(encoding="utf-8")
    assert page.count("What is the order of the frames worth?") > 1 and "cnn3d_shuffled and cnn3d_still are controls of cnn3d." in page
    table = pd.read_csv(tiny_run.folder/"figures/controls.csv")
    assert table["frames"].tolist() == ["forward", "shuffled", "still", "shown reversed"] and (table["n"] == 30).all()
    top1 = dict(zip(pd.read_csv(tiny_run.folder/"figures/summary.csv")["feature"], pd.read_csv(tiny_run.folder/"figures/summary.csv")["val_top1"]))
    assert table["top1"][:3].tolist() == pytest.approx([top1[f] for f in ("cnn3d", *CONTROLS)], abs=1e-4)
    differences = pd.read_csv(tiny_run.folder/"figures/differences.csv")
    assert len(differences) == 6 and not {*differences["a"], *differences["b"]} & {*CONTROLS}


def test_training_videos_are_predicted_out_of_fold(tiny_run):
    "By each feature, with a temperature that fits; suspects.csv holds the best feature's, and the cost is counted."
    metrics = json.loads((tiny_run.folder/"metrics.json").read_text(encoding="utf-8"))
    p, kept = [f"p_{k}" for k in range(15)], {f: pd.read_csv(tiny_run.folder/f/"out_of_fold.csv") for f in FEATURES}
    manifest = pd.read_csv(tiny_run.folder/"manifest.csv", dtype={"id": str}, keep_default_na=False)
    for f, rows in kept.items():
        assert rows["id"].tolist() == manifest.loc[manifest["split"] == "train", "id"].tolist() and (rows["split"] == "train").all()
        assert (rows[p].to_numpy().argmax(1) == rows["pred"]).all() and np.allclose(rows[p].to_numpy().sum(1), 1, atol=1e-5)
        assert metrics[f]["temperature"]["all"] == pytest.approx(fit_temperature(rows[p].to_numpy(), rows["label"].to_numpy()), rel=1e-3)
    best = max(FEATURES, key=lambda f: (kept[f]["label"] == kept[f]["pred"]).mean())
    suspects, of_best = pd.read_csv(tiny_run.folder/"suspects.csv"), kept[best].set_index("id")
    assert (of_best.loc[suspects["id"], "label"] != of_best.loc[suspects["id"], "pred"]).all() and suspects["quality"].is_monotonic_increasing
    names = [c for c in suspects if c.startswith("by ")]
    assert names == ["by sift", "by cnn (untrained)", "by cnn3d"]
    for f, name in zip(FEATURES, names): assert suspects[name].tolist() == [CLASSES[k] for k in kept[f].set_index("id").loc[suspects["id"], "pred"]]
    assert [metrics[f]["cost"]["units"] for f in FEATURES] == [8, 8, 1] and [metrics[f]["cost"]["unit_bytes"] for f in FEATURES] == [4096, 1024, 512]
    of_card = [CATALOGUE[f].gflop for f in ("convnext_mini", "r2plus1d_mini")]
    assert [metrics[f]["cost"]["gflop"] for f in FEATURES] == [None, pytest.approx(of_card[0], rel=6e-3), of_card[1]]


def test_a_finished_runs_suspects_are_listed(tiny_run, tmp_path, command):
    shutil.copytree(tiny_run.folder, tmp_path/"runs/tiny")
    (tmp_path/"runs/tiny/suspects.csv").unlink()
    done = command("doctor", "--run", "tiny", cwd=tmp_path)
    n = len(pd.read_csv(tiny_run.folder/"suspects.csv"))
    assert done.returncode == 0 and done.stderr == "" and "Checked were the training videos." in done.stdout
    assert done.stdout.count("\n") == (min(n, 20) + (n > 20) + 5 if n else 3), done.stdout
    assert (tmp_path/"runs/tiny/suspects.csv").read_bytes() == (tiny_run.folder/"suspects.csv").read_bytes()
    for arguments, said in [(("--run", "nowhere"), "runs/nowhere: no run here; done are: tiny"), ((), "give either DATA or --run NAME")]:
        done = command("doctor", *arguments, cwd=tmp_path)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and said in done.stderr


def test_record(tiny_run):
    facts = record(tiny_run.folder)
    assert facts["stages"]["extract"]["videos"] == 105 and facts["stages"]["extract"]["skipped"] == 0
    stages = {"extract", *(f"train_{f}" for f in (*FEATURES, *CONTROLS)), "fuse", "report", "run"}
    assert set(facts["stages"]) == stages
    assert all(s["seconds"] > 0 and 0.1 < s["peak_memory_gb"] < 3 for s in facts["stages"].values())
    assert facts["surroundings"]["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert facts["surroundings"]["instructions"]["torch"] == torch.backends.cpu.get_cpu_capability() and facts["surroundings"]["instructions"]["opencv"]
    assert set(facts["stores"]) == {*FEATURES, *CONTROLS, "cnn3d reversed"} and facts["paths"]["data"] == "tiny"


def test_report_loads_nothing(tiny_run):
    page = (tiny_run.folder/"report.html").read_text(encoding="utf-8")
    for loads in ['src="http', "src='http", "url(http", "@import", "<script", "<link"]: assert loads not in page
    for section in ["Introduction", "Dataset", "Model", "Experiment", "Conclusion"]: assert section in page


def test_an_untrained_network_is_called_so_everywhere_and_no_other(tiny_run):
    figures, text = tiny_run.folder/"figures", lambda path: path.read_text(encoding="utf-8")
    metrics = json.loads(text(tiny_run.folder/"metrics.json"))
    for feature in FEATURES:
        untrained = feature == "cnn"
        for name in [f"stats_{feature}.md", f"stats_{feature}.csv", f"confusion_{feature}.svg"]: assert ("untrained" in text(figures/name)) == untrained, name
        for file in [figures/"summary.csv", figures/"summary.md", tiny_run.folder/"report.html"]:
            assert (f"{feature} (untrained)" in text(file)) == untrained, file.name
        assert metrics[feature]["untrained"] == untrained
        assert (f"{feature} (untrained)" in tiny_run.output) == untrained


def test_every_seed_is_told(tiny_run):
    page, metrics = (tiny_run.folder/"report.html").read_text(encoding="utf-8"), json.loads((tiny_run.folder/"metrics.json").read_text(encoding="utf-8"))
    for feature in FEATURES:
        assert [s["seed"] for s in metrics[feature]["seeds"]] == [0, 1] and metrics[feature]["seeds"][0]["val_top1"] == metrics[feature]["val_top1"]
        mean = sum(s["val_top1"] for s in metrics[feature]["seeds"]) / 2
        assert f"The mean of 2 seeds is {mean:.3f} (val" in page


def test_nothing_else_is_said(tiny_run):
    "Without a terminal standard error is empty: no bar, no warning."
    assert tiny_run.errors == ""
    for path in tiny_run.folder.glob("*.ipynb"):
        outputs = [o for c in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
        assert [o["text"] for o in outputs if o.get("name") == "stderr" and "it/s" not in str(o["text"]) and "video" not in str(o["text"])] == [], path.name


def test_a_terminal_shows_a_bar_for_every_notebook(tmp_path):
    "Starting the first one imports ipykernel, which once hid the bars of all that came after it."
    cells = [nbformat.v4.new_code_cell("from hw2.core.progress import progress"), nbformat.v4.new_code_cell("for _ in progress(range(3), 'counting'): pass")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path/"n.ipynb")
    code = "from pathlib import Path; from hw2.run.cli import execute; [execute(Path('n.ipynb'), Path(f'{o}.ipynb'), {}) for o in ('first', 'second')]"
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    shown = b"".join(iter(lambda: _read(ours), b"")).decode()
    assert process.wait() == 0, shown
    assert "first " in shown and "second " in shown and shown.count("counting:   0%") == 2


def _read(terminal: int) -> bytes:
    "What comes next; nothing when its processes have ended, which Linux tells by an error."
    try: return os.read(terminal, 4096)
    except OSError: return b""


# Refusals and previews


def test_other_parameters_under_the_same_name_stop(tiny_run, invoke):
    before = lasting(tiny_run.folder)
    done = invoke(*tiny_run.arguments, "-p", "cache", "cache", "-p", "features.sift.fps", "5", "--name", "tiny", cwd=tiny_run.home)
    assert done.returncode == 1
    assert "runs/tiny" in done.stderr and "features.sift.fps: 4 there, 5 now" in done.stderr and "words" not in done.stderr
    assert lasting(tiny_run.folder) == before


def test_plain_papermill_refuses_an_unknown_parameter(tmp_path):
    "Which papermill itself only logs."
    with pytest.raises(papermill.PapermillExecutionError, match="features.cnn.fsp.*did you mean 'fps'"):
        papermill_alone("extract", tmp_path, {"features": {"cnn": {"fsp": 3}}, "name": "unknown"}, tmp_path)
    assert not (tmp_path/"runs").exists()


def test_dry_run_counts_and_leaves_nothing(tiny_run, invoke):
    dry = [*tiny_run.arguments, "-p", "cache", "cache", "--name", "dry", "--dry-run"]
    done = invoke(*dry, cwd=tiny_run.home)
    assert done.returncode == 0 and "105 videos in 15 classes: 60 train, 30 val, 15 test" in done.stdout and "nothing to extract" in done.stdout
    done = invoke(*dry, "-p", "features", "[sift]", "-p", "features.sift.fps", "9", cwd=tiny_run.home)
    assert done.returncode == 0 and "sift: 105 videos to extract" in done.stdout and "extraction: about" in done.stdout
    assert [p.name for p in (tiny_run.home/"runs").iterdir() if "dry" in p.name] == []


def test_init_writes_parameters_that_run(tiny_run, invoke):
    done = invoke("init", "tiny", "--out", "tiny.yaml", cwd=tiny_run.home)
    assert done.returncode == 0 and "105 videos in 15 classes (course)" in done.stdout
    done = invoke("init", "tiny", "--out", "tiny.yaml", cwd=tiny_run.home)
    assert done.returncode == 1 and "tiny.yaml exists" in done.stderr


# Two more runs, in a working directory of their own


@pytest.fixture(scope="module")
def folders(copied, tiny_demo) -> Path:
    "Three classes in folders, four videos each, of two actors; and the same as a table."
    root, manifest = copied/"folders", pd.read_csv(tiny_demo/"labels/train_val.csv")
    split = pd.read_csv(tiny_demo/"labels/split.csv").set_index("Id")["Split"]
    rows = []
    for k in [0, 3, 10]:
        (root/CLASSES[k]).mkdir(parents=True)
        for i, name in enumerate(manifest["Id"][(manifest["Category"] == k) & (manifest["Id"].map(split) == "train")]):
            rows.append((f"{CLASSES[k]}/{'ann' if i % 2 else 'bob'}_{i}.mp4", CLASSES[k], "ann" if i % 2 else "bob"))
            shutil.copy(tiny_demo/f"videos/{name}.mp4", root/rows[-1][0])
    pd.DataFrame(sorted(rows), columns=["path", "label", "group"]).to_csv(root/"table.csv", index=False)
    return root


def test_plain_papermill_does_the_same(copied, tiny_run):
    "With SIFT alone, into another folder of runs: equal predictions, and equal figures. The command extracts, its function does the rest."
    params = yaml.safe_load((tiny_run.folder/"params.yaml").read_text(encoding="utf-8"))
    given = params | {"features": {"sift": params["features"]["sift"]}, "name": "plain", "runs": "elsewhere"}
    (copied/"plain.yaml").write_text(yaml.safe_dump(given))
    run = copied/"elsewhere/plain"
    run.mkdir(parents=True)
    arguments = ["--no-progress-bar", EXPERIMENTS/"extract.ipynb", run/"extract.ipynb", "-f", "plain.yaml"]
    done = subprocess.run([sys.executable, "-m", "papermill", *arguments], cwd=copied, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, own in [("train", {"feature": "sift"}), ("report", {})]: papermill_alone(name, run, given | own, copied)
    files, before = ({n: digest for n, digest in lasting(folder).items() if "sift" in n} for folder in (run, tiny_run.folder))
    assert len(files) == 17 and files == {n: before[n] for n in files}
    assert record(run)["stages"]["extract"]["extracted"] == 0


@pytest.fixture(scope="module")
def folds(copied, folders, tiny_run, invoke) -> Path:
    "The run of the folders with one actor held out at a time."
    changed = {"data": "folders", "form": "folders", "group": "^([a-z]+)_", "folds": "group", "classifier.patience": "null", "features": "[sift]",
               "features.sift.words": "16", "cache": "cache"}
    done = invoke(*tiny_run.arguments, *(word for pair in changed.items() for word in ("-p", *pair)), "--name", "folds", cwd=copied)
    assert done.returncode == 0, done.stderr
    return copied/"runs/folds"


def test_folders_with_one_group_held_out_at_a_time(folds):
    rows = pd.read_csv(folds/"sift/predictions.csv")
    assert len(rows) == 12 and (rows["split"] == "val").all() and rows["fold"].value_counts().to_dict() == {0: 6, 1: 6}
    assert rows.groupby("fold")["id"].agg(lambda ids: {i.split("/")[1][:3] for i in ids}.pop()).tolist() == ["ann", "bob"]
    history = pd.read_csv(folds/"sift/history.csv")
    assert len(history) == 2 * 2 * 3 and history["val_top1"].isna().all()  # seeds, folds, epochs; with no patience the held-out part is not looked at
    assert pd.read_csv(folds/"classes.csv")["name"].tolist() == [CLASSES[k] for k in sorted([0, 3, 10], key=lambda k: CLASSES[k])]
    assert not (folds/"submission_sift.csv").exists() and not (folds/"sift/out_of_fold.csv").exists()
    metrics = json.loads((folds/"metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["sift"]["temperature"]) == ["0", "1"] and set(pd.read_csv(folds/"suspects.csv")["id"]) <= set(rows["id"])
    assert "Cross-validation" in (folds/"report.html").read_text(encoding="utf-8")


def test_a_table_gives_what_the_folders_give(folders, folds, tiny_run, tmp_path):
    "The same videos, labels and groups, in this process: the same predictions."
    own = {"features": {"sift": {"words": 16}}, "folds": "group", "data": str(folders/"table.csv"), "form": "csv", "cache": str(tmp_path),
           "classifier": {"patience": None}}
    params = read_params(tiny_run.folder/"params.yaml", own)
    dataset = load_dataset(params)
    assert extract(dataset, params).empty
    units = read_units(stores_of(params)["sift"][1], dataset.manifest)
    result = train_feature("sift", units, dataset.manifest, dataset.classes, params)
    rows = pd.read_csv(folds/"sift/predictions.csv")
    assert result.predictions["id"].tolist() == rows["id"].tolist()
    np.testing.assert_allclose(result.predictions.filter(like="p_"), rows.filter(like="p_"), atol=1e-6)


def test_the_audit_comes_out_as_committed(tmp_path):
    "published.ipynb, executed anew, writes the committed tables and pictures, and shows what it showed."
    papermill_alone("published", tmp_path, {"out": str(tmp_path/"out")}, ROOT)
    committed = sorted(p.name for p in (ROOT/"figures/published").iterdir())
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == committed and len(committed) == 9
    assert [n for n in committed if not filecmp.cmp(tmp_path/"out"/n, ROOT/"figures/published"/n, shallow=False)] == []
    shown = [[o.get("data", o.get("text")) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
             for path in (tmp_path/"published.ipynb", EXPERIMENTS/"published.ipynb")]
    assert shown[0] == shown[1]


def test_publish_brings_figures_and_pages_up_to_date(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(hw2.run.cli, "ROOT", tmp_path)
    monkeypatch.setattr(hw2.run.cli, "execute", lambda *audit: None)  # which other tests run
    monkeypatch.chdir(tiny_run.home)
    (tmp_path/"docs").mkdir()
    for name in ("README.md", "docs/results.md"): (tmp_path/name).write_text(f"# A\n\n{BEGIN}\n{END}\n\nThe rest.\n")
    done = CliRunner().invoke(app, ["publish", "tiny"], catch_exceptions=False)
    assert (done.exit_code, done.output) == (0, "figures/, README.md and docs/results.md show the run tiny\n")
    short, long = ((tmp_path/name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md"))
    assert "| cnn (untrained) | 256 |" in short and "figures/confusion_cnn3d.png" in short and "logistic" not in short
    assert "| logistic regression (cnn, untrained) |" in long and "## Which differences are real" in long and "| cnn3d | test | 2 |" in long
    assert max(map(len, (short + long).splitlines())) <= 120
    assert {p.name for p in (tmp_path/"figures").iterdir()} == {p.name for p in (tiny_run.folder/"figures").iterdir()}
    for name in ("README.md", "docs/results.md"): (tmp_path/name).write_text(f"# A\n\n{BEGIN}\n{END}\n\nThe rest.\n")
    monkeypatch.chdir(shutil.copytree(tiny_run.home, tmp_path/"home"))
    command = [*tiny_run.arguments, "-p", "cache", "cache", "--name", "tiny", "--publish"]

    def stop(notebook, *rest):
        if notebook.name == "published.ipynb": raise hw2.run.cli.NotebookError("published.ipynb stopped")

    with monkeypatch.context() as audit:
        audit.setattr(hw2.run.cli, "execute", stop)
        stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 1 and "hw2: published.ipynb stopped" in stopped.output and short not in (tmp_path/"README.md").read_text(encoding="utf-8")
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0 and done.output.endswith("figures/, README.md and docs/results.md show the run tiny\n"), done.output
    assert [short, long] == [(tmp_path/name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md")]
    monkeypatch.chdir(tiny_run.home)
    failed = CliRunner().invoke(app, ["publish", "tine"])
    said, _, there = failed.output.partition("no run here; there are: ")
    assert failed.exit_code and said == "hw2: runs/tine: " and "tiny" in there.strip().split(", ")  # beside other tests' runs
