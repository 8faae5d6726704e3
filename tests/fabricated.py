"""Runs made of numbers alone, without videos and training; and what the report says of one, executed in this process"""

import html
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Image, Markdown
from threadpoolctl import threadpool_limits

from hw2.classifier.train import Result
from hw2.core.files import EXPERIMENTS
from hw2.core.params import check_params, fused
from hw2.data.dataset import write_classes, write_manifest
from hw2.evaluation.predictions import feature_metrics, top1_by_split
from hw2.report.html import shown_sections
from hw2.run.record import add_record, record_params, record_skipped
from hw2.run.results import save_late, save_result

VECTORS = {"kind": "vectors", "file": "vectors.parquet"}
COUNTS = (12, 6, 4)  # training, validation and test videos of a class


def manifest_of(
    counts: Sequence[Sequence[int]],  # by class: training, validation and test videos; with folds all are held-out videos
    labelled_test: bool = True,
    folds: int | None = None,
    groups: bool = False,  # whether each fold is one group
) -> pd.DataFrame:
    "A manifest of videos that are not there."
    rows = [(f"{c}_{split}_{i}", c, split, i) for c, each in enumerate(counts) for split, n in zip(("train", "val", "test"), each) for i in range(n)]
    m = pd.DataFrame(rows, columns=["id", "label", "split", "i"]).astype({"label": "Int64"})
    m = m.assign(path=m["id"] + ".mp4", content="c" + m["id"], group="", fold=pd.array([pd.NA] * len(m), "Int64"))
    if folds: m = m.assign(split="val", fold=(m.groupby("label").cumcount() % folds).astype("Int64"))
    if groups: m["group"] = "group" + m["fold"].astype(str)
    if not labelled_test: m.loc[m["split"] == "test", "label"] = pd.NA
    return m.drop(columns="i")


def probabilities(
    m: pd.DataFrame,  # n rows with a label
    k: int,  # classes
    correct: float,  # share of the videos, about
    seeds: int,
    state: int,  # of the draw
) -> np.ndarray:  # (seeds, n, k) float32
    "Probabilities that classify so many videos correctly, others by chance wrongly."
    rng, y, p = np.random.default_rng(state), m["label"].fillna(0).to_numpy(int), np.empty((seeds, len(m), k), np.float32)
    for each in p:
        answer = np.where(rng.random(len(m)) < correct, y, (y + rng.integers(1, k, len(m))) % k)
        sure = rng.uniform(.6, .97, len(m))
        each[:] = ((1 - sure) / (k - 1))[:, None]
        each[np.arange(len(m)), answer] = sure
    return p


def result_of(
    params: Mapping,
    m: pd.DataFrame,
    k: int,
    entry: Mapping,  # its kind decides what is saved
    correct: float,
    state: int,
    names: Sequence[str],
    constant: bool = False,  # whether all vectors are the same
) -> Result:
    "What training would leave."
    rng, seeds, dim, epochs = np.random.default_rng(state), params["classifier"]["seeds"], 16, 6
    rows = np.flatnonzero(m["split"] != "train")
    predicted, folds = m.iloc[rows].reset_index(drop=True), sorted(m["fold"].dropna().unique()) or [None]
    p = probabilities(predicted, k, correct, len(seeds), state)
    X = np.ones((len(m), dim)) if constant else rng.normal(size=(len(m), dim)) + 2 * np.eye(k, dim)[m["label"].fillna(0).to_numpy(int)]
    curve = np.linspace(.5, 1, epochs)
    stops = params["classifier"]["patience"] is not None and (folds[0] is not None or (m["split"] == "val").any())
    val = {"val_loss": 2.2 - curve, "val_top1": correct * curve} if stops else {"val_loss": np.nan, "val_top1": np.nan}
    history = pd.concat([pd.DataFrame({"seed": s, "fold": f, "epoch": range(epochs), "lr": .01, "train_loss": 2 - curve, "train_top1": curve} | val)
                         for s in seeds for f in folds]).astype({"fold": "Int64"})
    linear = top1_by_split(predicted, probabilities(predicted, k, .9 * correct, 1, state + 1)[0].argmax(1))
    metrics = feature_metrics(predicted, p[0], list(names)) | {
        "epochs": epochs, "dim": dim, "untrained": entry.get("weights") == "random", "skipped": dict(train=0, val=0, test=0),
        "probes": {"logistic": linear | {"chosen": {"all": {"C": 1.0, "inner_top1": None}}}},
        "seeds": [{"seed": s} | top1_by_split(predicted, each.argmax(1)) for s, each in zip(seeds, p)]}
    words = {f"{'all' if f is None else f}.pool.vocabulary": torch.zeros(8, 128) for f in folds} if entry["kind"] == "sift" else {}
    return Result(m, X.astype(np.float32), rows, p, seeds, history, words | {"all.mlp.0": torch.zeros(1)}, metrics, .5)


def fabricate(
    folder: Path,  # of the run
    correct: Mapping[str, float],  # by feature: its share of correctly classified videos
    names: Sequence[str],  # of the classes
    counts: Sequence[Sequence[int]] | None = None,  # as in `manifest_of`; None: `COUNTS` each
    labelled_test: bool = True,
    folds: int | str | None = None,
    seeds: int = 2,
    patience: int | None = 15,
    entries: Mapping[str, Mapping] | None = None,  # of features that are no vectors
    alike: Mapping[str, str] | None = None,  # features that are copies of another one
    constant: Sequence[str] = (),  # features whose vectors are all the same
    skipped: Sequence[str] = (),  # ids of videos that could not be read
    **params,
) -> Path:  # the same
    "Write a run's folder, as training leaves it."
    entries = {f: (entries or {}).get(f, VECTORS) for f in correct}
    params = check_params({"data": "set/set.csv", "form": "csv", "features": entries, "folds": folds, "cache": str(folder/"cache"), "engine": "eager",
                           "precision": "float32", "classifier": {"seeds": list(range(seeds)), "max_epochs": 6, "patience": patience}} | params)
    m, k = manifest_of(counts or [COUNTS] * len(names), labelled_test, 3 if folds == "group" else folds, folds == "group"), len(names)
    folder.mkdir(parents=True)
    record_params(folder, params)
    write_manifest(folder/"manifest.csv", m)
    write_classes(folder/"classes.csv", list(names))
    record_skipped(folder, pd.DataFrame([(i, f"{i}.mp4", "cut short") for i in skipped], columns=["id", "path", "cause"]))
    usable = m[~m["id"].isin(skipped)].reset_index(drop=True)
    for f in correct:
        state = list(correct).index((alike or {}).get(f, f))
        save_result(folder, f, result_of(params, usable, k, params["features"][f], correct[f], state, names, f in constant))
    if fused(params):
        save_result(folder, "early", result_of(params, usable, k, VECTORS, max(correct.values()), 99, names))
        save_late(folder, list(names))
    stage = {"seconds": 3.2, "peak_memory_gb": .4, "fit_seconds": .5}
    add_record(folder, stages={"extract": {"seconds": 12.5, "peak_memory_gb": .9}} | {f"train_{f}": stage for f in correct})
    return folder


def executed_report(
    run: Path,
    pictures: bool = False,  # whether pictures are saved and all resamples are drawn, which takes most of the time
) -> nbformat.NotebookNode:
    "experiments/report.ipynb with its outputs, executed in this process."
    nb, space, shown = nbformat.read(EXPERIMENTS/"report.ipynb", 4), {}, []
    blank = Image(data=b"\x89PNG\r\n\x1a\n", format="png")

    def output(thing):
        if isinstance(thing, Markdown | HTML):
            return nbformat.v4.new_output("display_data", {"text/markdown" if isinstance(thing, Markdown) else "text/html": thing.data})
        data, meta = thing._repr_mimebundle_() if hasattr(thing, "_repr_mimebundle_") else ({"text/plain": repr(thing)}, {})
        return nbformat.v4.new_output("display_data", data, metadata=meta)

    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(limits=None))
        stack.enter_context(mock.patch("IPython.display.display", lambda *things, **_: shown.extend(map(output, things))))
        if not pictures:
            stack.enter_context(mock.patch("hw2.report.plots.picture", lambda file, alt, **how: blank))
            stack.enter_context(mock.patch("hw2.run.figures.save_figure", lambda figure, *_: plt.close(figure)))
            stack.enter_context(mock.patch("hw2.run.figures.save_photos", lambda figure, *_, **how: plt.close(figure)))
            stack.enter_context(mock.patch("hw2.run.run.embed_in_plane", lambda X: (np.arange(len(X)), X[:, :2])))
            stack.enter_context(mock.patch("hw2.evaluation.significance.RESAMPLES", 199))
            stack.enter_context(mock.patch("hw2.evaluation.calibration.DRAWS", 100))
            stack.enter_context(mock.patch("gc.collect", lambda *_: 0))  # statsmodels' `multipletests` asks for it each time: half of a report's time
        for cell in nb.cells:
            if cell.cell_type != "code": continue
            plt.close("all")
            shown.clear()
            exec(compile(cell.source, f"cell {cell.id}", "exec"), space)
            if "parameters" in cell.metadata.get("tags", []): space |= {"name": run.name, "runs": str(run.parent)}
            cell.outputs = list(shown)
        space["beside"].shutdown()
    return nb


def report_text(nb: nbformat.NotebookNode) -> str:
    "What a reader reads: prose, sentences, tables with a bar between cells; without the tables' sources."
    def plain(text: str, is_html: bool) -> str:
        if is_html:
            text = re.sub(r"</tr>", "\n", re.sub(r"\s*</t[dh]>\s*", " | ", re.sub(r"\s+|<pre>.*?</pre>", " ", text, flags=re.S)))
        return html.unescape(re.sub(r"<[^>]*>", "", text)).strip()

    texts = []
    for cell in shown_sections(nb).cells:
        if cell.cell_type == "markdown": texts.append(plain(cell.source, False))
        for o in cell.get("outputs", []):
            texts += [plain(o.data[kind], kind == "text/html") for kind in ("text/markdown", "text/html") if kind in o.data]
    return "\n\n".join(filter(None, texts))
