"""The ablation at tiny sizes: what it runs, what it does not run again, what it refuses; never which value is best"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import DEMO
from traces import lasting, parts_of, record

from hw2.ablation.ablation import planned_runs, read_ablation, settings
from hw2.classifier.train import train_feature
from hw2.core.files import ROOT
from hw2.core.params import ParameterError, read_params
from hw2.data.dataset import read_classes, read_manifest
from hw2.extraction.extract import stores_of
from hw2.extraction.store import CHUNK, read_units
from hw2.run.cli import NotebookError, execute

ABLATION = ROOT/"nbs/experiments/ablation.ipynb"
COMMITTED = ROOT/"nbs/experiments/params/ablation.yaml"
FACTORS = {"words": {"features.sift.words": [8, 16]}, "hidden": {"classifier.hidden": [256]}}


@dataclass
class Swept:
    "The files of one ablation, run twice."
    runs: Path
    out: Path
    cache: Path
    first: dict[str, dict]  # after the first time: "runs", as `written` has it, and "out", the files' bytes


def written(folder: Path) -> dict[str, tuple[int, int]]:
    "Results and executed notebooks, with what changes when one is written again; not what the base's `extract` writes anew."
    files = [p for p in folder.rglob("*") if p.suffix in {".csv", ".ipynb", ".safetensors"}]
    anew = {folder/"base"/name for name in ("extract.ipynb", "manifest.csv", "classes.csv", "skipped.csv")}
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_ino) for p in files if p not in anew}


@pytest.fixture(scope="module")
def swept(tiny_demo, tmp_path_factory) -> Swept:
    "SIFT alone and two factors, one of them with nothing but the base's value; the second time nothing is left to be done."
    home = tmp_path_factory.mktemp("ablation")
    own = {"data": str(tiny_demo), "features": {"sift": {"words": 16}}, "workers": 2, "cache": str(home/"cache"),
           "classifier": {"max_epochs": 2, "seeds": [0, 1]}}
    (home/"tiny.yaml").write_text(yaml.safe_dump({"base": [str(DEMO), {"features": ["sift"]}, own], "factors": FACTORS}, sort_keys=False))
    given = {"sweep": str(home/"tiny.yaml"), "runs": str(home/"runs"), "out": str(home/"out")}
    execute(ABLATION, home/"first.ipynb", given)
    first = {"runs": written(home/"runs"), "out": {p.name: p.read_bytes() for p in (home/"out").iterdir()}}
    execute(ABLATION, home/"second.ipynb", given)
    return Swept(home/"runs", home/"out", home/"cache", first)


def test_the_table_holds_every_setting(swept):
    table = pd.read_csv(swept.out/"ablation.csv", dtype={"value": str})
    assert table.columns.tolist() == ["factor", "value", "base", "feature", "split", "mean", "lowest", "highest", "se", "seeds", "n", "seconds"]
    assert [tuple(r) for r in table[table["split"] == "val"][["factor", "value", "base"]].to_numpy()] == [
        ("words", "8", False), ("words", "16", True), ("hidden", "256", True)]
    assert set(table["seeds"]) == {2} and table.groupby("split")["n"].unique().map(list).to_dict() == {"test": [15], "val": [30]}
    assert (table["lowest"] <= table["mean"]).all() and (table["mean"] <= table["highest"]).all() and (table["seconds"] > 0).all()
    twice = table[table["base"]].drop(columns=["factor", "value"])
    assert len(twice) == 4 and twice.duplicated().sum() == 2  # the base's numbers under both factors
    text = (swept.out/"ablation.md").read_text(encoding="utf-8")
    assert "| words | 16 (base) | sift |" in text and "- **hidden**: " in text and (swept.out/"ablation.png").read_bytes()[:4] == b"\x89PNG"


def test_the_base_given_again_is_not_trained_twice(swept):
    assert sorted(p.name for p in swept.runs.iterdir()) == ["base", "words-8"]


def test_no_part_is_extracted_twice(swept):
    assert len(parts_of(swept.cache)) == 2 * -(-105 // CHUNK)  # of SIFT and of the thumbnails
    assert record(swept.runs/"words-8")["stages"]["extract"]["extracted"] == 0


def test_a_second_ablation_runs_nothing_again(swept):
    "Except the extraction of the base; it writes the same bytes."
    assert {"base/train_sift.ipynb", "words-8/extract.ipynb", "words-8/sift/model.safetensors"} <= swept.first["runs"].keys()
    assert written(swept.runs) == swept.first["runs"]
    assert sorted(swept.first["out"]) == ["ablation.csv", "ablation.md", "ablation.png"]
    assert {p.name: p.read_bytes() for p in swept.out.iterdir()} == swept.first["out"]


def test_a_setting_is_the_run_that_its_parameters_make(swept, tmp_path):
    params = read_params(swept.runs/"words-8/params.yaml")
    manifest, classes = read_manifest(swept.runs/"base/manifest.csv"), read_classes(swept.runs/"base/classes.csv")
    result = train_feature("sift", read_units(stores_of(params)["sift"][1], manifest), manifest, classes, params)
    rows = pd.read_csv(swept.runs/"words-8/sift/predictions.csv")
    assert result.X.shape == (105, 8) and np.allclose(result.predictions.filter(like="p_"), rows.filter(like="p_"), atol=1e-6)
    table = pd.read_csv(swept.out/"ablation.csv").query("value == 8 and split == 'val'")
    assert table["mean"].item() == pytest.approx(np.mean([s["val_top1"] for s in result.metrics["seeds"]]), abs=1e-6)
    assert lasting(swept.runs/"words-8").keys() >= {"metrics.json", "manifest.csv", "sift/model.safetensors"}


def test_only_what_a_value_makes_different_is_trained():
    ablation = read_ablation(COMMITTED)
    changed = {s.run: s.changed for s in settings(ablation)}
    assert changed["base"] == [] and changed["words-64"] == ["sift"] and changed["fps-2"] == ["sift", "cnn"] and changed["clips-two_of_1_s"] == ["cnn3d"]
    assert changed["backbone-untrained"] == ["cnn", "cnn3d"] and changed["lr-0.001"] == ["sift", "cnn", "cnn3d"]
    assert planned_runs(ablation)["base"] == read_params(DEMO, {"classifier": {"seeds": [0, 1, 2, 3, 4]}, "controls": False, "probes": ["mlp"],
                                                                   "learning_curves": False, "inner_folds": None})
    assert len(planned_runs(ablation)) == len(settings(ablation)) - len(ablation.factors) + 1


@pytest.mark.parametrize("factors, says", [
    ({"features.sift.wrods": [64, 128]}, "unknown parameter 'features.sift.wrods'; did you mean 'words'?"),
    ({"features.sift.words": [1, 128]}, "features.sift.words: 1 is not a whole number from 2"),
    ({"network": {"small": {"features.sift.words": 64, "features.sift.keypoint": 16}}},
     "unknown parameter 'features.sift.keypoint'; did you mean 'keypoints'?"),
    ({"features.sift.words": [64, 256]}, "features.sift.words: the base's value is not among 64, 256"),
    ({"words": 64}, "words: neither parameters with lists of as many values nor named values"),
    ({"words": {"features.sift.words": [64, 128], "features.sift.fps": [1]}}, "words: neither parameters with lists of as many values"),
    ({"words": [64, 128]}, "words: an ablation cannot vary this"),
    ({"cache": ["here", "runs/cache"]}, "cache: an ablation cannot vary this"),
    ({"features.cnn.pool": ["mean", "max"]}, "features.cnn.pool: cnn is none of the base's features, sift")])
def test_a_bad_file_is_refused_in_one_line(factors, says, tmp_path):
    file = tmp_path/"bad.yaml"
    file.write_text(yaml.safe_dump({"base": [str(DEMO), {"features": ["sift"]}], "factors": factors}))
    with pytest.raises(ParameterError) as error: read_ablation(file)
    assert str(error.value).startswith(f"{file}: {says}") and "\n" not in str(error.value)


def test_a_bad_file_stops_the_notebook_before_anything_is_run(tmp_path):
    (tmp_path/"bad.yaml").write_text(yaml.safe_dump({"base": str(DEMO), "factors": {"features.sift.wrods": [64, 128]}}))
    given = {"sweep": str(tmp_path/"bad.yaml"), "runs": str(tmp_path/"runs"), "out": str(tmp_path/"out")}
    with pytest.raises(NotebookError, match="ParameterError: .*bad.yaml: unknown parameter 'features.sift.wrods'"): execute(ABLATION, tmp_path/"bad.ipynb",
                                                                                                                            given)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ipynb", "bad.yaml"]
