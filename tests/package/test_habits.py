"""What helps to carry on: hooks, merges and diffs of notebooks, the workflow, the issue template, and the way to nbdev 3"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ALONE, FIRST, group_of, machine

from hw2.core.files import ROOT

SUBMISSION = "nbs/4_evaluation/43_submission.ipynb"
NBDEV3 = "nbdev==3.3.26"
NOT_MINE = {"IN_TEST", "PYTHONPATH"} | {name for name in os.environ if name.startswith("GIT_")}
MINE = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_PAGER": "cat"} | dict.fromkeys(
    ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"], "me@example.org")

git_needed = pytest.mark.skipif(shutil.which("git") is None or not (ROOT/".git").exists(), reason="no git, or no clone")


def run(*command: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess:
    "A command that knows nothing of this machine's git settings nor of this test."
    environment = {k: v for k, v in os.environ.items() if k not in NOT_MINE} | MINE | more
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=580)


def copy_tree(to: Path) -> Path:
    "A copy of what git tracks or would track, without its history."
    listed = run("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)  # whoever owns the clone
    assert listed.returncode == 0, listed.stderr
    for name in filter(None, listed.stdout.split("\0")):
        if not (ROOT/name).is_file(): continue
        (to/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/name, to/name)
    return to


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "A function: git and make in a repository of its own in which `make hooks` was called; `call.folder` is its folder."
    folder = copy_tree(tmp_path_factory.mktemp("clone"))
    (folder/".venv").symlink_to(sys.prefix)
    home = str(tmp_path_factory.mktemp("pre-commit"))

    def call(*command: str) -> subprocess.CompletedProcess:
        return run(*command, cwd=folder, PRE_COMMIT_HOME=home)

    call("git", "init", "-q", "-b", "main")
    (folder/".git/info/exclude").write_text(".venv\n")
    call("git", "add", "-A")
    call("git", "commit", "-q", "-m", "all")
    done = call("make", "-o", ".venv/installed", "hooks")  # .venv is taken as it is
    assert done.returncode == 0, done.stderr
    call.folder = folder
    return call


@pytest.fixture
def fresh(clone):
    "The clone at its first commit."
    yield clone
    clone("git", "merge", "--abort")
    clone("git", "checkout", "-q", "-f", "main")
    clone("git", "branch", "-q", "-D", "other", "mine")


def edit(clone, changes: dict[str, str], counts: int | None = None) -> None:
    "Replaces text in the notebook; `counts` is written to every code cell, as running it does."
    notebook = nbformat.read(clone.folder/SUBMISSION, 4)
    for old, new in changes.items():
        cell = next(c for c in notebook.cells if old in c.source)
        cell.source = cell.source.replace(old, new)
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.execution_count = counts
    nbformat.write(notebook, clone.folder/SUBMISSION)


@git_needed
def test_hooks_pass_on_what_is_committed(fresh):
    done = fresh(".venv/bin/pre-commit", "run", "--all-files")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Passed") == 3 and fresh("git", "status", "--porcelain").stdout == ""


@git_needed
def test_a_commit_is_stopped_until_notebook_and_module_are_in_order(fresh):
    "The notebook was run, its summary was changed, and nothing was exported: the hooks put it right, the second try goes through."
    fresh("git", "checkout", "-q", "-b", "other")
    edit(fresh, {"The file to hand in": "The table to hand in"}, counts=7)
    tried = fresh("git", "commit", "-a", "-m", "summary")
    assert tried.returncode == 1 and "files were modified by this hook" in tried.stderr + tried.stdout
    assert "The table to hand in" in (fresh.folder/"hw2/evaluation/submission.py").read_text()
    assert '"execution_count": 7' not in (fresh.folder/SUBMISSION).read_text()
    assert fresh("git", "commit", "-a", "-m", "summary").returncode == 0
    assert fresh("git", "status", "--porcelain").stdout == ""


@git_needed
def test_a_diff_shows_cells_and_no_json(fresh):
    edit(fresh, {"The file to hand in": "The table to hand in"}, counts=7)
    shown = re.sub(r"\x1b\[\d*m", "", fresh("git", "diff").stdout)
    assert "modified /cells/0/source" in shown and "+> The table to hand in" in shown and "execution_count" not in shown


def branches(clone, theirs: dict[str, str], ours: dict[str, str]) -> subprocess.CompletedProcess:
    "The merge of two branches that changed the notebook, both without the hooks before a commit."
    for name, changes, counts in [("other", theirs, 3), ("mine", ours, 4)]:
        clone("git", "checkout", "-q", "-b", name, "main")
        edit(clone, changes, counts)
        clone("git", "commit", "-q", "-a", "--no-verify", "-m", name)
    return clone("git", "merge", "--no-edit", "--no-verify", "other")


@git_needed
def test_two_people_ran_a_notebook_and_changed_different_cells(fresh):
    "As lines of JSON the counts conflict everywhere; as cells nothing does."
    done = branches(fresh, {"The file to hand in": "The table to hand in"}, {"## Writing": "## Writing it"})
    assert done.returncode == 0, done.stdout + done.stderr
    sources = [c.source for c in nbformat.read(fresh.folder/SUBMISSION, 4).cells]
    assert any("The table to hand in" in s for s in sources) and any("## Writing it" in s for s in sources)


@git_needed
@pytest.mark.filterwarnings("ignore::nbformat.warnings.MissingIDFieldWarning", "ignore::nbformat.warnings.DuplicateCellId")  # until nbdev_clean
def test_a_conflict_within_a_cell_leaves_a_notebook_that_opens(fresh):
    "Both versions of the cell stand between markers; who removes one of them has resolved it."
    done = branches(fresh, {"The file to hand in": "The table to hand in"}, {"The file to hand in": "The list to hand in"})
    assert done.returncode == 1 and fresh("git", "diff", "--name-only", "--diff-filter=U").stdout.split() == [SUBMISSION]
    notebook = nbformat.read(fresh.folder/SUBMISSION, 4)
    nbformat.validate(notebook)
    marks = [i for i, c in enumerate(notebook.cells) if re.match(r"`?(<<<<<<<|=======|>>>>>>>)", c.source)]
    assert len(marks) == 3 and "list" in notebook.cells[marks[0] + 1].source and "table" in notebook.cells[marks[1] + 1].source
    notebook.cells = notebook.cells[:marks[0]] + notebook.cells[marks[1] + 1:marks[2]] + notebook.cells[marks[2] + 1:]
    nbformat.write(notebook, fresh.folder/SUBMISSION)
    fresh(".venv/bin/nbdev_clean")
    fresh(".venv/bin/nbdev_export")
    assert fresh("git", "commit", "-a", "--no-edit").returncode == 0


def test_the_workflow_is_what_ci_runs_on_every_python():
    text = (ROOT/".github/workflows/test.yml").read_text()
    job, = yaml.safe_load(text)["jobs"].values()
    steps = " ".join(step.get("run", "") for step in job["steps"])
    packages = re.compile(r"--no-install-recommends ([\w. -]+?) *(?:>|$|\n)", re.M)
    assert "make test" in steps and packages.search(text)[1] == packages.search((ROOT/".ci/run").read_text())[1]
    wanted = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]["requires-python"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"] and wanted == ">=3.11"


def test_what_is_first_and_what_is_alone_is_there():
    "A test that has another name now would run beside others."
    assert [file for file in FIRST if not (ROOT/"tests"/file).is_file()] == []
    texts = "".join(p.read_text(encoding="utf-8") for p in (ROOT/"tests").glob("*/test_*.py"))
    assert [name for name in ALONE if f"def {name}(" not in texts] == []


@pytest.mark.parametrize("test, group", [
    ("tests/unit/test_a.py::test_b", "tests/unit/test_a.py"), ("tests/unit/test_a.py::test_b[x::y]", "tests/unit/test_a.py"),
    ("tests/package/test_notebooks.py::test_runs_top_to_bottom_to_the_stored_outputs[21_sift]", "tests/package/test_notebooks.py[21_sift]"),
    ("tests/package/test_notebooks.py::test_runs_top_to_bottom_without_a_word_on_stderr[21_sift]", "tests/package/test_notebooks.py[21_sift]"),
    ("tests/package/test_notebooks.py::test_metadata_are_clean[21_sift]", "tests/package/test_notebooks.py"), (f"tests/unit/test_a.py::{min(ALONE)}", "alone")])
def test_what_a_worker_gets_in_one_piece(test, group):
    assert group_of(test) == group


def test_who_needs_the_machine_alone_waits_and_then_nobody_gets_in_before(tmp_path):
    "One is inside; another waits to be alone; the third comes after it and enters after it."
    for name in ("conftest.py", "traces.py"): (tmp_path/name).touch()
    order, inside, leave = [], threading.Event(), threading.Event()

    def enter(name: str, alone: bool) -> None:
        with machine(alone, tmp_path):
            order.append(name)
            if name == "first": inside.set(), leave.wait(60)
            order.append(name)

    threads = [threading.Thread(target=enter, args=a) for a in [("first", False), ("alone", True), ("third", False)]]
    threads[0].start(), inside.wait(60)
    for t in threads[1:]: t.start(), time.sleep(.2)
    assert order == ["first"]
    leave.set()
    for t in threads: t.join(60)
    assert order == ["first", "first", "alone", "alone", "third", "third"]


def test_an_issue_asks_for_the_doctors_table():
    form = yaml.safe_load((ROOT/".github/ISSUE_TEMPLATE/bug.yml").read_text())
    doctor, = [field for field in form["body"] if field.get("id") == "doctor"]
    assert "hw2 doctor" in doctor["attributes"]["label"] and doctor["validations"]["required"]


@git_needed
@pytest.mark.soak
def test_nbdev_3_makes_the_same_package(soak, tmp_path):
    """The way off settings.ini: nbdev 3 reads `[tool.nbdev]` of pyproject.toml, which `nbdev-migrate-config` makes.

    It is called beside the repository, not in it: it writes pyproject.toml anew, without what stands there. It also leaves out which metadata of a cell are
    kept; with that added, nbdev 3 changes nothing but the settings named in `_modidx.py`."""
    if not soak: pytest.skip("fetches another nbdev into an environment of its own: make soak")
    tree, alone, env = copy_tree(tmp_path/"tree"), tmp_path/"alone", tmp_path/"env"
    assert run(sys.executable, "-m", "venv", env, cwd=tmp_path).returncode == 0
    fetched = run(env/"bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", NBDEV3, cwd=tmp_path)
    if fetched.returncode: pytest.skip(f"{NBDEV3} cannot be fetched: {fetched.stderr.splitlines()[-1]}")
    (alone/"hw2").mkdir(parents=True)
    for name in ["settings.ini", "README.md", "hw2/__init__.py"]: shutil.copy(tree/name, alone/name)
    assert run(env/"bin/nbdev-migrate-config", cwd=alone).returncode == 0
    settings = tomllib.loads((alone/"pyproject.toml").read_text())["tool"]["nbdev"] | {"allowed_cell_metadata_keys": ["tags"]}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    with (tree/"pyproject.toml").open("a") as file: file.write("\n".join(["\n[tool.nbdev]", *lines, ""]))
    (tree/"settings.ini").unlink()
    for name in ["nbdev-clean", "nbdev-export"]:
        done = run(env/"bin"/name, cwd=tree)
        assert done.returncode == 0, done.stderr
    files = {p.relative_to(tree) for folder in ("nbs", "hw2") for p in (tree/folder).rglob("*") if p.is_file()}
    assert [str(p) for p in sorted(files) if not (ROOT/p).is_file() or (ROOT/p).read_bytes() != (tree/p).read_bytes()] == ["hw2/_modidx.py"]
    before, after = (ast.literal_eval(ast.parse((at/"hw2/_modidx.py").read_text()).body[-1].value) for at in (ROOT, tree))
    assert before["syms"] == after["syms"] and before["settings"] != after["settings"]
