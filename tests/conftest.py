"""What several test files share: the command line in a process of its own, a tiny demo set, and one finished run on it"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hw2.core.files import ROOT
from hw2.demo.videos import draw_set

DEMO = ROOT/"nbs/experiments/params/demo.yaml"


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="500 mutated videos and 30 kills in place of a few: `make soak`")


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
def tiny_home(tmp_path_factory) -> Path:
    "A working directory outside the checkout."
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def tiny_demo(tiny_home) -> Path:
    "105 videos in the course's form: 4 to train, 2 to validate and 1 to test for each of the 15 classes."
    return draw_set(tiny_home/"tiny", per_class=(4, 2, 1), workers=2)


@pytest.fixture(scope="session")
def tiny_run(tiny_demo, tiny_home, command) -> Run:
    "`hw2 run` with the demo's parameters, but three epochs, two seeds and a 2-D network that is untrained."
    changed = {"data": "tiny", "classifier.max_epochs": "3", "workers": "2", "classifier.seeds": "[0, 1]", "features.cnn.weights": "random"}
    arguments = ["run", "--params", str(DEMO), *(word for name, value in changed.items() for word in ("-p", name, value))]
    done = command(*arguments, "-p", "cache", "cache", "--name", "tiny", cwd=tiny_home)
    assert done.returncode == 0, done.stderr
    return Run(tiny_home/"runs/tiny", tiny_home, arguments, done.stdout, done.stderr)
