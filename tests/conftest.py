"""What several test files share: the command line, a tiny demo set and one finished run on it; and how two workers share the machine"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path

import dask
import pytest
from click.testing import CliRunner
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from hw2.core.files import ROOT
from hw2.demo.videos import draw_set
from hw2.run.cli import app

TESTS = Path(__file__).parent
DEMO = ROOT/"nbs/experiments/params/demo.yaml"
FIRST = ["runs/test_experiments.py", "runs/test_tutorial.py", "runs/test_documented_commands.py", "faults/test_interrupted.py", "runs/test_cluster.py",
         "unit/test_engines.py", "unit/test_libraries.py", "unit/test_pretraining.py",
         "faults/test_bad_videos.py"]  # the longest; one worker makes the tiny run, the tutorial on the other needs none of it
ALONE = {"test_ctrl_c_ends_everything_within_two_seconds", "test_importing_takes_less_than_a_third_of_a_second"}  # they measure time


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="500 mutated videos and 30 kills in place of a few: `make soak`")


# Two workers (pytest-xdist)


class Groups(LoadScopeScheduling):
    "What goes to one worker in one piece: a file, whose fixtures are made once; a notebook's tests; those that need the machine alone."
    def _split_scope(self, nodeid: str) -> str: return group_of(nodeid)


def group_of(test: str) -> str:
    "The group of a test by its id."
    file, name, case = re.fullmatch(r"(.*?)::(\w+)(.*)", test, re.S).groups()
    return "alone" if name in ALONE else file + case if file.endswith("test_notebooks.py") and name.startswith("test_runs_top_to_bottom_") else file


def pytest_xdist_make_scheduler(config, log):
    return Groups(config, log)


def pytest_collection_modifyitems(items):
    "The longest first, so that no worker begins one at the end; those that need the machine alone last."
    files = [str(TESTS/file) for file in FIRST]
    items.sort(key=lambda item: (item.originalname in ALONE, files.index(str(item.path)) if str(item.path) in files else len(files)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    "While a test runs that needs the machine alone, its fixtures included, no other worker runs one."
    with machine(alone=item.originalname in ALONE): return (yield)


@contextmanager
def machine(alone: bool, folder: Path = TESTS) -> Iterator[None]:
    "A lock that one holds alone, or any number together. Who waits for it keeps the door, so that no other gets in before."
    with open(folder/"conftest.py") as door, open(folder/"traces.py") as room:  # any two files of the checkout
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try: yield
        finally: fcntl.flock(room, fcntl.LOCK_UN)  # also where a child process has inherited it


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    "A folder that all workers share; without workers the session's own."
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def soak(request) -> bool:
    "Whether the long form is asked for."
    return request.config.getoption("--soak")


@dataclass
class Run:
    "A finished run of the tiny demo set."
    folder: Path  # runs/tiny
    home: Path  # the working directory that holds runs/, tiny/ and cache/
    arguments: list[str]  # of `hw2`, without the name and the cache
    output: str  # standard output
    errors: str  # standard error


@pytest.fixture(scope="session")
def command():
    "A function: `hw2 ...` in a process of its own that has no terminal."
    def run(*arguments, cwd: Path) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "hw2.run.cli", *arguments], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    return run


@pytest.fixture(scope="session")
def invoke():
    "A function: the same in this process, which has imported the libraries and has a server of kernels; where no process of its own is what is tested."
    def run(*arguments, cwd: Path) -> subprocess.CompletedProcess:
        with chdir(cwd): done = CliRunner().invoke(app, [str(a) for a in arguments])
        if not isinstance(done.exception, SystemExit | None): raise done.exception
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)
    return run


@pytest.fixture(scope="session")
def tiny_home(shared) -> Path:
    "A working directory outside the checkout."
    (shared/"home").mkdir(exist_ok=True)
    return shared/"home"


@pytest.fixture(scope="session")
def tiny_demo(shared, tiny_home) -> Path:
    "105 videos in the course's form: 4 to train, 2 to validate and 1 to test for each of the 15 classes."
    with FileLock(shared/"tiny_demo.lock"):
        if not (shared/"tiny_demo").exists(): draw_set(tiny_home/"tiny", per_class=(4, 2, 1), workers=2)
        (shared/"tiny_demo").touch()
    return tiny_home/"tiny"


@pytest.fixture(scope="session")
def tiny_run(shared, tiny_demo, tiny_home, command) -> Run:
    "`hw2 run` with the demo's parameters, but three epochs, two seeds and a 2-D network that is untrained. Tests read it; `copied` is there to be changed."
    changed = {"data": "tiny", "classifier.max_epochs": "3", "workers": "2", "classifier.seeds": "[0, 1]", "features.cnn.weights": "random"}
    arguments = ["run", "--params", str(DEMO), *(word for name, value in changed.items() for word in ("-p", name, value))]
    said = shared/"tiny_run.json"
    with FileLock(shared/"tiny_run.lock"):
        if not said.exists():
            done = command(*arguments, "-p", "cache", "cache", "--name", "tiny", cwd=tiny_home)
            assert done.returncode == 0, done.stderr
            said.write_text(json.dumps([done.stdout, done.stderr]))
    return Run(tiny_home/"runs/tiny", tiny_home, arguments, *json.loads(said.read_text()))


@pytest.fixture
def impatient(monkeypatch) -> Iterator[None]:
    "Dask waits a second for a scheduler's answer, here and in kernels."
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}): yield


@pytest.fixture(scope="module")
def copied(tiny_run, tmp_path_factory) -> Path:
    "A working directory with a copy of the tiny run, its set and its cache."
    home = tmp_path_factory.mktemp("copied")
    for name in ("runs/tiny", "cache"): shutil.copytree(tiny_run.home/name, home/name)
    (home/"tiny").symlink_to(tiny_run.home/"tiny")
    return home
