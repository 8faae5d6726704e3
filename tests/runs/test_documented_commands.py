"""Every command in the README and in docs/ is given as it stands there, on small videos; those that are not are named here, with the reason"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import yaml

from hw2.core.files import ROOT
from hw2.core.params import check_params
from hw2.run.cli import app

PAGES = [ROOT/"README.md", *sorted((ROOT/"docs").glob("*.md"))]

NOT_RUN = {  # command: why not, and the test that does the same in small
    "make report": ("minutes; fewer videos do", "runs/test_experiments.py::test_publish_brings_figures_and_pages_up_to_date"),
    "make test": ("this test is a part of it", "package/test_notebooks.py::test_export_is_in_sync"),
    "make ablation": ("29 runs", "runs/test_ablation.py::test_the_table_holds_every_setting"),
    "make bench": ("an hour on a quiet machine", "runs/test_benchmark.py::test_every_stage_has_its_row"),
    "make bench CLIPS=path/to/videos": ("an hour on a quiet machine", "runs/test_benchmark.py::test_every_stage_has_its_row"),
    "python -m hw2.benchmark.accelerator --out figures": ("it needs an accelerator", "runs/test_accelerator.py::test_every_setup_has_its_row"),
    **dict.fromkeys(["hw2 weights i3d", "hw2 weights efficientnet_lite2"],
                    ("they need a package index", "unit/test_package_index.py::test_what_is_fetched_is_written_once_with_its_sidecar")),
    "make real": ("it needs the clips and the weights", "runs/test_documented_commands.py::test_a_documented_command_works"),
    "source .venv/bin/activate": ("the tests are in their environment already", "package/test_wheel.py::test_publish_wants_a_checkout"),
    "papermill nbs/experiments/pretrain.ipynb runs/pretrain/3d.ipynb -p network r2plus1d_mini":
        ("an hour", "unit/test_pretraining.py::test_pretrain_writes_a_network_that_loads"),
    "hw2 run --params demo --name other -p features.cnn3d.weights runs/pretrain/r2plus1d_mini.safetensors":
        ("minutes; it needs the weights of the command before", "unit/test_pretraining.py::test_pretrain_writes_a_network_that_loads"),
    "papermill nbs/experiments/pretrain.ipynb runs/pretrain/twin.ipynb -p out runs/twin -y 'without: [spin, grow, flicker, crowd, sheet, panel, camera]'":
        ("an hour", "unit/test_pretraining.py::test_what_is_left_out_does_not_happen"),
    "hw2 run --params set.yaml -p scheduler local:8":
        ("eight workers", "runs/test_cluster.py::test_a_cluster_with_a_worker_killed_in_the_middle_gives_what_one_machine_gives"),
    **dict.fromkeys(["dask scheduler", "export DASK_DISTRIBUTED__WORKER__DAEMON=False", "dask worker tcp://host:8786 --nthreads 1 --nworkers 16",
                     "hw2 run --params set.yaml -p scheduler tcp://host:8786"], ("several machines", "runs/test_cluster.py::test_a_scheduler_at_an_address")),
    **{f"papermill nbs/experiments/{nb}.ipynb runs/demo/{out}.ipynb {own}": ("the whole demo", "runs/test_experiments.py::test_plain_papermill_does_the_same")
       for nb, out, own in [("extract", "extract", "-f nbs/experiments/params/demo.yaml -p name demo"),
                            *(("train", f"train_{f}", f"-p name demo -p feature {f}") for f in ("sift", "cnn", "cnn3d", "cnn3d_shuffled", "cnn3d_still")),
                            ("fuse", "fuse", "-p name demo"), ("report", "report", "-p name demo")]},
}

# Runs are made smaller by parameters behind those of the page: one feature without a download, two epochs, one seed
SMALLER = "-p classifier.max_epochs 2 -p classifier.seeds [0] -p workers 2"
FEATURE = {"course": "-p features [cnn3d] -p features.cnn3d.backbone r2plus1d_mini -p features.cnn3d.weights bundled", "set.yaml": "-p features [sift]"}


def blocks(page: Path, language: str) -> list[str]:
    "The page's code blocks in a language."
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(text: str) -> list[str]:
    "The commands of a block, each in one line, without comments."
    lines = (re.sub(r"\s+# .*", "", line).strip() for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


EVERY = list(dict.fromkeys(c for page in PAGES for text in blocks(page, "sh") for c in commands(text)))
RUN = [c for c in EVERY if c not in NOT_RUN]


def test_commands_are_found():
    assert commands("a b   # c\n\n# d\ne \\\n    -f '# g'\n") == ["a b", "e -f '# g'"]
    assert "hw2 init path/to/set" in RUN and not [c for c in EVERY if c.count("'") % 2]


def test_what_is_not_run_is_on_a_page_and_has_its_test():
    assert [c for c in NOT_RUN if c not in EVERY] == []
    for _, test in NOT_RUN.values():
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT/"tests"/file).read_text(encoding="utf-8"), test


def test_every_target_and_every_command_of_hw2_is_there():
    "Also of those in the text."
    text = "\n".join(p.read_text(encoding="utf-8") for p in PAGES)
    targets = {*re.findall(r"`make (\w+)", text), *(c.split()[1] for c in EVERY if c.startswith("make "))}
    found = set(re.findall(r"^([a-z ]+):(?!=)", (ROOT/"Makefile").read_text(encoding="utf-8"), re.M))
    assert targets and targets <= {name for names in found for name in names.split()}
    said = {*re.findall(r"`hw2 ([a-z-]+)", text), *(c.split()[1] for c in EVERY if c.startswith("hw2 "))}
    assert {"run", "init", "doctor"} <= said <= set(app.commands)


def smaller(command: str) -> str:
    "The command with fewer epochs, seeds and features behind what the page says."
    if not command.startswith("hw2 run"): return command
    return f"{command} {SMALLER} {next((more for name, more in FEATURE.items() if f'--params {name}' in command), '')}"


@pytest.fixture(scope="module")
def home(tiny_run, tiny_demo, tmp_path_factory) -> Path:
    "A working directory with all that the pages name: `path/to/set`, `path/to/course`, `clip.mp4`, Weizmann's clips, and the run `demo`."
    home = tmp_path_factory.mktemp("documented")
    table = pd.read_csv(tiny_demo/"labels/train_val.csv")
    for label, ids in table.groupby("Category")["Id"]:
        if label > 1: continue
        for n, name in enumerate(ids):
            for path in (f"path/to/set/{'ab'[label]}/{n}.mp4", f"data/weizmann/{'ab'[label]}/{'xy'[n % 2]}_{'ab'[label]}{n}.avi"):
                (home/path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tiny_demo/f"videos/{name}.mp4", home/path)
    shutil.copytree(tiny_demo, home/"path/to/course")
    shutil.copy(tiny_demo/f"videos/{table['Id'].iloc[-1]}.mp4", home/"clip.mp4")
    shutil.copytree(tiny_run.folder, home/"runs/demo")
    return home


@pytest.fixture(scope="module")
def done(home, invoke) -> dict[str, subprocess.CompletedProcess]:
    "What came of every command, given one after the other: `hw2` in this process, with the words that a shell makes of the line, others by the shell."
    shell = lambda line: subprocess.run(["bash", "-c", line], cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1200)
    with mock.patch("webbrowser.open", lambda address: Path(unquote(urlsplit(address).path)).is_file()):
        return {c: invoke(*shlex.split(smaller(c))[1:], cwd=home) if c.startswith("hw2 ") else shell(c) for c in RUN}


def test_words_are_those_of_a_shell():
    "Nothing in the lines is for the shell alone."
    assert [c for c in RUN if c.startswith("hw2 ") and re.search(r"[$*?~<>|&;`(]", re.sub("'[^']*'", "", c))] == []


@pytest.mark.parametrize("line", RUN)
def test_a_documented_command_works(line, done):
    assert done[line].returncode == 0, done[line].stdout + done[line].stderr


def test_what_they_leave(home, done):
    "The files that the pages name."
    assert (home/"found.csv").is_file() and (home/"set.yaml").is_file()
    left = ["set/report.html", "set/sift/predictions.csv", "weizmann-small/r2plus1d_mini/predictions.csv", "course/submission_cnn3d.csv"]
    assert [path for path in left if not (home/"runs"/path).is_file()] == []


def test_code_in_python_works(home, done):
    "`hw2.load` and `hw2.Run`; what needs a SLURM cluster is left out."
    codes = [c for page in PAGES for c in blocks(page, "python") if "dask_jobqueue" not in c]
    assert codes
    for code in codes: subprocess.run([sys.executable, "-c", code], cwd=home, check=True, env=os.environ | {"MPLBACKEND": "agg"})


def test_parameters_in_yaml_are_valid():
    found = [text for page in PAGES for text in blocks(page, "yaml")]
    assert found
    for text in found: check_params(yaml.safe_load(text))
