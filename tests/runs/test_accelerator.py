"""The accelerator's benchmark on a CPU at tiny sizes, where nothing but torch is installed: what it writes, never how fast anything is"""

import csv
import json
import subprocess
import sys

import pytest

from hw2.benchmark.accelerator import COLUMNS, accelerator_text, plan, read_accelerator

ABSENT = ["IPython", "av", "cv2", "matplotlib", "pandas", "psutil", "pydantic", "scipy", "sklearn", "tqdm", "yaml"]
NETWORKS, BATCHES = ["convnext_mini", "r2plus1d_mini", "mobilenet_v3_small"], [2, 1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    "The folder and what was printed, after a run in a process in which most libraries cannot be imported."
    folder = tmp_path_factory.mktemp("accelerator")
    arguments = ["--out", str(folder), "--device", "cpu", "--rounds", "2", "--seconds", ".01", "--engines", "eager",
                 "--networks", *NETWORKS, "--batches", *map(str, BATCHES)]
    code = (f"import runpy, sys\nsys.modules.update(dict.fromkeys({ABSENT}))\nsys.argv[1:] = {arguments}\n"
            "runpy.run_module('hw2.benchmark.accelerator', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return folder, done.stdout


def test_every_setup_has_its_row(measured):
    "In the plan's order; a CPU computes no float16, and compilation was not asked for."
    expected = [s for s, _ in plan(*NETWORKS, *BATCHES) if s.engine == "eager" and s.precision != "float16"]
    rows = read_accelerator(measured[0]/"accelerator.csv")
    assert [r["error"] for r in rows] == [""] * len(rows)
    for row, s in zip(rows, dict.fromkeys(expected), strict=True):
        found = [row[name] for name in ("network", "rewrites", "precision", "layout", "cudnn_benchmark", "threads")]
        assert found == [s.network, " ".join(s.rewrites or ()), s.precision, s.layout, str(s.cudnn_benchmark), str(s.threads)]
        assert int(row["batch"]) == s.batch if s.batch else int(row["batch"]) > 2


def test_numbers_are_plausible(measured):
    "End to end where it was asked for, the networks alone everywhere; rewrites in float32 change rounding only, 16 bits more."
    rows = read_accelerator(measured[0]/"accelerator.csv")
    whole = [r for r in rows if r["rate"]]
    assert {r["network"] for r in whole} == {*NETWORKS} and {r["item"] for r in whole} == {"frames", "clips"}
    for r in whole: assert r["low"] <= r["rate"] <= r["high"] and r["plain"] > 0 and r["ratio"] > 0 and 1 <= r["rounds"] <= 2
    assert all(r["alone"] > 0 and r["build_seconds"] > 0 for r in rows)
    rewritten, = [r for r in rows if r["precision"] == "float32"]
    assert rewritten["difference"] < 1e-4
    assert all(1e-4 < r["difference"] < .1 and r["cosine"] > .99 for r in rows if r is not rewritten and r["network"] in NETWORKS[:2])
    assert all(r["busy"] is r["memory_gb"] is None for r in rows)  # which are an accelerator's


def test_what_is_written_and_printed(measured):
    folder, printed = measured
    with open(folder/"accelerator.csv", newline="", encoding="utf-8") as f: header, *rows = csv.reader(f)
    known = json.loads((folder/"accelerator.json").read_text(encoding="utf-8"))
    assert sorted(p.name for p in folder.iterdir()) == ["accelerator.csv", "accelerator.json"]
    assert header == COLUMNS and len(known["rows"]) == len(rows) and known["skipped"] == [] and known["card"] == "cpu"
    assert printed.count("convnext_mini x2 eager bfloat16 half: end to end") >= 2  # when it was measured, and in the table at the end


def test_nothing_starts_without_time(tmp_path):
    "What was not measured is named."
    code = "from hw2.benchmark.accelerator import main; import sys; main(sys.argv[1:])"
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--minutes", "0", "--engines", "eager", "--networks", *NETWORKS]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    assert read_accelerator(tmp_path/"accelerator.csv") == [] and accelerator_text([]) == ""
    assert "no time left: convnext_mini xdefault eager bfloat16 default: rate" in done.stdout


def test_the_table_names_what_was_measured(measured):
    rows = read_accelerator(measured[0]/"accelerator.csv")
    text = accelerator_text(rows, 1.)
    assert text.startswith("**On an accelerator** (cpu, torch 2.") and "course" not in text  # of which these are not the networks
    for r in rows: assert f"| {r['network']} | {r['batch']} | eager |" in text
    failed = [r | {"error": "OutOfMemoryError: none left"} for r in rows]
    assert accelerator_text(failed) == ""
