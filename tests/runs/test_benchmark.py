"""The benchmark's notebook at tiny sizes: what it writes, never how fast anything is"""

import re
from importlib.util import find_spec

import pandas as pd
import pytest

from hw2.benchmark.accelerator import COLUMNS
from hw2.benchmark.benchmark import goal_met
from hw2.core.files import ROOT
from hw2.features.engine import default_precision
from hw2.run.cli import execute

TINY = dict(n_clips=2, clip_seconds=2, repeats=1, slow_repeats=1, catalogue=False, large_clips=2, large_repeats=1, large_set=0, cnn="convnext_mini",
            cnn3d="r2plus1d_mini", batches=1, product_side=256, workers=1, n_descriptors=1500, words=16, n_vectors=300, dim=64, epochs=1,
            engines=["eager", *filter(find_spec, ["openvino"]), "eager bfloat16", "clockwork"], seeds=2, seed_epochs=1, minute=2, hour=4)
TILES = default_precision() == "bfloat16"  # AMX
GOALS = {"convnext_mini, 96 x 120": "at least 6" if TILES else "at least 1.2",
         "r2plus1d_mini, clips of 16 x 64 x 80": "at least 12" if TILES else "at least 1.4",
         "all three features, 2 clips of 2 s, drawn": "at least 3.5", "time, 2 videos": "at most 2.1",
         "crash-isolated processes, 4 demo videos": "at most 1.05", "SIFT, 2 processes": "at least 1.6", "k-means, 1,500 descriptors, 16 words": "at least 5",
         "inertia of these clusters": "at most 1.02", "word assignment, 16 words": "at least 10",
         "MLP, 300 x 64, 15 classes, 1 epochs": "at least 5", "2 seeds of the MLP together": "at least 1.4",
         "memory, a video of 4 s at 1280 x 720": "at most 1.1", "peak memory, a video of 4 s": "at most 1"}
if TILES: GOALS["all three features, convnext_mini and r2plus1d_mini, 2 clips"] = "at least 5"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    "The folder with what the notebook wrote, beside what was measured on an accelerator."
    folder = tmp_path_factory.mktemp("bench")
    (folder/"figures").mkdir()
    rows = [dict(network=n, item=i, rate=rate, alone=9e9, plain=10, ratio=3, cosine=.5, batch=7, engine="eager", card="a card", threads=2)
            for n, i, rate in [("convnext_base", "frames", 1_500), ("r2plus1d_18", "clips", 750)]]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder/"figures/accelerator.csv", index=False)
    execute(ROOT/"nbs/experiments/bench.ipynb", folder/"bench.ipynb", TINY | {"out": str(folder/"figures")})
    return folder/"figures"


def test_three_files(bench):
    assert sorted(p.name for p in bench.iterdir()) == ["accelerator.csv", "bench.csv", "bench.md", "bench.png"]
    assert (bench/"bench.png").read_bytes()[:4] == b"\x89PNG"


def test_every_stage_has_its_row(bench):
    table = pd.read_csv(bench/"bench.csv")
    assert table.columns.tolist() == ["stage", "against", "ratio", "goal"]
    goals = {re.sub(", (eager|openvino)( bfloat16)?$", "", row.stage): row.goal for row in table[table["goal"].notna()].itertuples()}
    accelerated = {k for k in goals if " on cuda" in k or " on mps" in k}
    assert {k: v for k, v in goals.items() if k not in accelerated} == GOALS
    assert table["stage"].str.contains(", eager").sum() == 4
    assert (table["ratio"] > 0).all() and table["against"].notna().all()


def test_the_text_says_where_it_was_measured_and_what_is_missing(bench):
    text, table = (bench/"bench.md").read_text(encoding="utf-8"), pd.read_csv(bench/"bench.csv")
    assert re.search(r"Measured on \d+ cores .*torch \d.*hw2 at ", text)
    for stage in ("convnext_mini", "r2plus1d_mini"): assert f"- {stage}, clockwork: engine: 'clockwork' is not" in text
    for row in table.fillna({"goal": ""}).itertuples():
        line, = [line for line in text.splitlines() if line.startswith(f"| {row.stage} |")]
        assert f"| {row.goal} | {goal_met(row.goal, row.ratio)} |" in line


def test_larger_sets_are_computed_not_claimed(bench):
    text = (bench/"bench.md").read_text(encoding="utf-8")
    assert "not run, but computed from the rates measured here" in text
    assert "| the course's set | 8,250 |" in text and "| Kinetics-400, training | 240,000 |" in text and "| 100 machines |" in text


def test_the_accelerator_where_it_was_measured(bench):
    "The table, and the course's set: 7,500 videos of 15 frames and 5 clips at these rates."
    text = (bench/"bench.md").read_text(encoding="utf-8")
    assert "**On an accelerator** (a card, " in text and "| 1,500 frames/s | 3,000: no |" in text
    assert re.search(r"computed from the fastest rates: 125 s on the device; \d+ s on 16 cores", text)


def test_the_roofline_of_the_networks(bench):
    text, rate = (bench/"bench.md").read_text(encoding="utf-8"), r"\d+ GFLOP/s"
    for network in ("convnext_mini", "r2plus1d_mini"):
        for precision, engines in {"float32": "eager|openvino", "bfloat16": "(?:eager|openvino) bfloat16"}.items():
            assert re.search(rf"\| {network} \| {rate}, {precision} \| ({engines}) \| {rate} \| \d+% \| [\d.]+ \| [\d.]+ \|", text)
