"""What `hw2 run` says: a line for each stage, a table of 100 columns at the end, on a terminal and in a file; and the report in the browser"""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

import pytest
from traces import lasting, parts_of, record

from hw2.extraction.store import CHUNK

STAGE = re.compile(r"^(extract features|train a classifier|fuse|draw the figures).* +\d+ (s|min)$")

MANY = """
from pathlib import Path
import nbformat
import pandas as pd
import hw2.run.cli as cli
from hw2.core.files import write_csv
from hw2.report.scores import SUMMARY

def execute(notebook, output, params):  # what the notebooks would leave
    nbformat.write(nbformat.v4.new_notebook(), output)
    ties = "; ".join(f"class {k} with a long name" for k in range(15))
    rows = [[f, 128, .5, 1.0, 150, 75, ties, ties, None, None] for f in FEATURES]
    write_csv(output.parent/"figures/summary.csv", pd.DataFrame(rows, columns=SUMMARY))
    write_csv(output.parent/"skipped.csv", pd.DataFrame(columns=["id", "path", "cause"]))

FEATURES = ["a_feature_with_a_long_name_" * 2 + str(i) for i in range(12)]
cli.execute = execute
Path("set.yaml").write_text(f"data: set\\nfeatures: {dict.fromkeys(FEATURES, {'kind': 'sift'})}\\n")
cli.app(["run", "--params", "set.yaml", "--name", "many"])
"""


def on_terminal(arguments: list[str], cwd: Path, **environment: str) -> tuple[int, str]:
    "The exit status of a Python process, and what it wrote to a terminal of 100 columns."
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen([sys.executable, *arguments], cwd=cwd, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
                               env=os.environ | environment)
    os.close(terminal)
    shown = b"".join(iter(lambda: _read(ours), b"")).decode()
    return process.wait(), shown


def _read(terminal: int) -> bytes:
    "What comes next; nothing when its processes have ended, which Linux reports as an error."
    try: return os.read(terminal, 4096)
    except OSError: return b""


def screen(shown: str) -> list[str]:
    "The lines that a terminal shows in the end, where text was written over other text."
    lines, row, column = [""], 0, 0
    for step in re.findall(r"\x1b\[A|\x1b\[[0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", shown):
        if step == "\x1b[A": row -= 1
        elif step == "\n": row, lines = row + 1, lines + [""] * (row + 2 - len(lines))
        elif step == "\r": column = 0
        elif step[0] != "\x1b":
            lines[row] = lines[row][:column].ljust(column) + step + lines[row][column + len(step):]
            column += len(step)
    return [line.rstrip() for line in lines]


def test_a_bar_that_was_written_over_is_not_on_the_screen():
    assert screen("one\r\n10%|\r\n 5%|\r\x1b[A\r    \rtwo\r\n\r    ") == ["one", "two", ""]


@pytest.mark.parametrize("where", ["terminal", "file"])
def test_fifteen_ties_and_twelve_long_names_fit_100_columns(where, tmp_path):
    if where == "terminal": status, shown = on_terminal(["-c", MANY], tmp_path)
    else:
        with open(tmp_path/"log", "w") as log: status = subprocess.run([sys.executable, "-c", MANY], cwd=tmp_path, stdout=log, stderr=log).returncode
        shown = (tmp_path/"log").read_text()
    assert status == 0, shown
    lines = screen(shown) if where == "terminal" else shown.splitlines()
    assert sum(bool(STAGE.match(line)) for line in lines) == 15  # extract, 12 features, fuse, report
    assert sum("0.500 (0.421 to 0.579)" in line for line in lines) == 12 and "class 3" not in shown
    assert max(map(len, lines)) <= 100


def test_a_file_has_a_line_for_each_stage_and_no_bars(tiny_run):
    lines = tiny_run.output.splitlines()
    assert [STAGE.match(line)[1].split()[0] for line in lines[:8]] == ["extract", *["train"] * 5, "fuse", "draw"]
    assert "with 2 seeds on cnn3d " in lines[3] and "5 features" in lines[0] and "%|" not in tiny_run.output
    table = lines[9:next(i for i, line in enumerate(lines) if line.startswith("top-1 with its 95 % interval, on "))]
    assert table[0].split() == ["feature", "dim", "validation", "test"]
    assert [line.split("  ")[0] for line in table[1:9]] == ["sift", "cnn (untrained)", "cnn3d", "cnn3d_shuffled", "cnn3d_still", "early fusion (untrained)",
                                                            "late fusion (untrained)", "majority class"]
    assert max(map(len, lines)) <= 100


@dataclass
class Second:
    "The tiny run's copy, run a second time on a terminal, with `--open`."
    run: Path
    parts: dict  # of the cache, before
    shown: str  # what it wrote to the terminal
    opened: str  # the address that the browser got


@pytest.fixture(scope="module")
def second(copied, tiny_run) -> Second:
    script, parts = copied/"browser", parts_of(copied/"cache")
    script.write_text(f'#!/bin/sh\necho "$1" > "{copied}/opened"\n')
    script.chmod(0o755)
    status, shown = on_terminal(["-m", "hw2.run.cli", *tiny_run.arguments, "-p", "cache", "cache", "--name", "tiny", "--open"], copied, BROWSER=str(script))
    assert status == 0, shown
    return Second(copied/"runs/tiny", parts, shown, (copied/"opened").read_text().strip())


def test_the_report_opens_in_the_browser(second):
    "On a terminal, where bars stand in the stages' lines meanwhile."
    assert "cell/s" in second.shown and second.opened == (second.run/"report.html").resolve().as_uri()
    lines = screen(second.shown)
    assert sum(bool(STAGE.match(line)) for line in lines) == 8 and "%|" not in "".join(lines) and max(map(len, lines)) <= 100


def test_a_second_run_reuses_every_feature(second, tiny_run):
    assert len(second.parts) == 7 * -(-105 // CHUNK)  # of three features, of clips in three more orders and of the thumbnails
    assert parts_of(second.run.parents[1]/"cache").items() >= second.parts.items()
    assert record(second.run)["stages"]["extract"]["extracted"] == 0
    assert lasting(second.run) == lasting(tiny_run.folder)


def test_without_a_browser_the_address_is_said(tmp_path):
    code = MANY.replace('"--name", "many"', '"--name", "many", "--open"')
    environment = {k: v for k, v in os.environ.items() if k not in {"BROWSER", "DISPLAY", "WAYLAND_DISPLAY"}} | {"PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and f"no browser was found; open {tmp_path.resolve()/'runs/many/report.html'}" in done.stdout
