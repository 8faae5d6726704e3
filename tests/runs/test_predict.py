"""`hw2 predict`: what it says of a run's own videos is what the run said, new clips are new, and only runs that are done are asked"""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from hw2.core.files import file_hash
from hw2.data.dataset import read_classes
from hw2.extraction.compute import local_chunks
from hw2.run.predict import predict
from hw2.run.record import RunError, done_in, done_run
from hw2.run.run import Run

OUTCOMES = {"sift": "sift", "cnn": "cnn (untrained)", "cnn3d": "cnn3d", "early": "early fusion (untrained)", "late": "late fusion (untrained)"}


@pytest.fixture(scope="module")
def chosen(tiny_run) -> pd.DataFrame:
    "Two test videos, a validation and a training video of the run, under other names."
    manifest = pd.read_csv(tiny_run.folder/"manifest.csv")
    rows = pd.concat([manifest[manifest["split"] == s].iloc[at] for s, at in [("test", [3, 9]), ("val", [4]), ("train", [7])]])
    rows["clip"] = [f"renamed {i}.mp4" for i in range(len(rows))]
    for row in rows.itertuples(): shutil.copy(tiny_run.home/"tiny"/row.path, tiny_run.home/row.clip)
    return rows


@pytest.fixture(scope="module")
def told(tiny_run, chosen) -> pd.DataFrame:
    "What the run says of them."
    return predict(Run(tiny_run.folder), [tiny_run.home/c for c in chosen["clip"]])


@pytest.mark.parametrize("feature", OUTCOMES)
def test_held_out_videos_get_the_runs_own_predictions(feature, tiny_run, chosen, told):
    known = pd.read_csv(tiny_run.folder/feature/"predictions.csv").set_index("id")
    classes, rows = read_classes(tiny_run.folder/"classes.csv"), told[told["feature"] == OUTCOMES[feature]]
    for (_, row), own in zip(rows.iloc[:3].iterrows(), chosen["id"]):
        p = known.loc[own].filter(regex=r"^p_\d+$").to_numpy(float)
        assert row["pred"] == classes[int(known["pred"][own])] and row["error"] == ""
        assert row["p"] == pytest.approx(p.max(), abs=2e-6)


def test_a_clip_of_the_runs_own_is_named(chosen, told):
    own = told.groupby("clip", sort=False)["own"].first().tolist()
    for said, row in zip(own, chosen.itertuples()): assert row.id in said
    assert [said.split(" ")[0] for said in own] == ["test", "test", "validation", "training"]
    assert ["not held-out evidence" in said for said in own] == [False, False, False, True]


def test_beside_each_probability_stands_the_held_out_top1(tiny_run, told):
    metrics = json.loads((tiny_run.folder/"metrics.json").read_text(encoding="utf-8"))
    assert told["feature"].unique().tolist() == list(OUTCOMES.values())
    for feature, name in OUTCOMES.items(): assert (told["top1"][told["feature"] == name] == metrics[feature]["test_top1"]).all()


def test_the_command_line(tiny_run, chosen, invoke):
    (tiny_run.home/"no clip.mp4").write_text("not a video")
    shutil.copy(tiny_run.home/chosen["clip"].iloc[0], tiny_run.home/"new.mp4")
    with open(tiny_run.home/"new.mp4", "ab") as f: f.write(bytes(8))  # after its last box: the same pictures, another file
    done = invoke("predict", chosen["clip"].iloc[3], "new.mp4", "no clip.mp4", "gone.mp4", "--run", "tiny", cwd=tiny_run.home)
    assert done.returncode == 1
    training, new, bad, gone, measured = done.stdout.rstrip("\n").split("\n\n")
    assert re.fullmatch(r"test_top1: on 15 test videos of the run; always the most frequent class: 0\.\d{3} \(n = 15\)", measured)
    note = f"training video {chosen['id'].iloc[3]} of this run: the classifiers were fitted on it, so p is not held-out evidence"
    assert training.startswith(chosen["clip"].iloc[3] + "\n  training video ") and note in " ".join(training.split())
    assert new.splitlines()[1] == "  new to this run" and new.splitlines()[2].split() == ["feature", "predicted", "p", "test_top1"]
    known = pd.read_csv(tiny_run.folder/"late/predictions.csv").set_index("id").loc[chosen["id"].iloc[0]]
    p, name = known.filter(regex="^p_[0-9]+$").max(), read_classes(tiny_run.folder/"classes.csv")[int(known["pred"])]
    assert new.splitlines()[-1].split()[-3:-1] == [name, f"{p:.3f}"]
    assert "Invalid data" in bad and len(bad.splitlines()) == 2 and gone.splitlines() == ["gone.mp4", "  no such file"]
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_only_runs_that_are_done(tiny_run, tmp_path, invoke):
    runs = tmp_path/"runs"
    for name in ("done", "fused", "begun", "empty"): (runs/name).mkdir(parents=True)
    for file in tiny_run.folder.rglob("*"):
        if not file.is_file() or file.suffix not in {".yaml", ".csv", ".json", ".safetensors"}: continue
        for name in ("done", "fused"):
            (runs/name/file.relative_to(tiny_run.folder)).parent.mkdir(parents=True, exist_ok=True)
            os.link(file, runs/name/file.relative_to(tiny_run.folder))
    for name in ("begun", "empty"): shutil.copy(tiny_run.folder/"params.yaml", runs/name)
    (runs/"fused/early/model.safetensors").unlink()
    (runs/"empty/params.yaml").write_text("unknown: 1\n")
    assert done_in(runs) == ["done"]
    with pytest.raises(RunError, match="tiny: no run here; done are: done$"): done_run(runs/"tiny")
    with pytest.raises(RunError, match="fused is not done: early not trained yet; `hw2 run` with the same parameters goes"): done_run(runs/"fused")
    done = invoke("predict", "a.mp4", "--run", "begun", cwd=tmp_path)
    left = "sift, cnn, cnn3d, cnn3d_shuffled, cnn3d_still, early, late"
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and f"begun is not done: {left} not trained yet" in done.stderr


def test_features_that_are_not_finite_are_no_answer(tiny_run, chosen, monkeypatch):
    def spoiled(*arguments):
        *_, (videos, units) = local_chunks(*arguments)
        units["cnn"][0].units = np.full_like(units["cnn"][0].units, np.inf)
        yield videos, units

    monkeypatch.setattr("hw2.run.predict.local_chunks", spoiled)
    told = predict(Run(tiny_run.folder), [tiny_run.home/chosen["clip"].iloc[0]]).set_index("feature")
    assert (told["error"] != "").tolist() == [False, True, False, True, True] and told["pred"]["cnn (untrained)"] == ""


def test_the_hash_of_the_manifest_is_the_files(tiny_run, chosen):
    assert chosen["content"].tolist() == [file_hash(tiny_run.home/c) for c in chosen["clip"]]
