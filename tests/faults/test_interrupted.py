"""Runs that are killed, stopped, short of disk or not alone: what was finished stays, and the end is the same to the byte"""

import csv
import filecmp
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from traces import lasting, parts_of, record

from hw2.extraction.store import CHUNK

SILENT = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.DEVNULL)


def started(arguments: list[str], home: Path, **how) -> psutil.Popen:
    "`hw2 ...` in a session of its own, as a terminal starts it."
    return psutil.Popen([sys.executable, "-m", "hw2.run.cli", *arguments], cwd=home, start_new_session=True, **(SILENT | how))


def family(process: psutil.Process) -> list[psutil.Process]:
    "The process and all that came of it."
    try: return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess: return []


def still_there(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    "Those that have not ended after so many seconds; an orphan that has may be there as a zombie for as long as its new parent pleases."
    until = time.monotonic() + seconds
    while (left := [p for p in processes if _runs(p)]) and time.monotonic() < until: time.sleep(.02)
    return left


def _runs(process: psutil.Process) -> bool:
    "Whether it has not ended."
    try: return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


def litter(home: Path) -> list[str]:
    "Temporary files that somebody left behind."
    return [str(p) for p in home.rglob(".*") if p.is_file()] + [str(p) for p in (home/"tmp").glob("hw2-spool-*")]


@pytest.fixture
def home(tiny_run, tmp_path) -> Path:
    "A working directory of its own, with the tiny demo set and a folder for temporary files."
    (tmp_path/"tiny").symlink_to(tiny_run.home/"tiny")
    (tmp_path/"tmp").mkdir()
    return tmp_path


def assert_equal(home: Path, name: str, cache: str, tiny_run) -> None:
    "The run left what the undisturbed one left, and so did its cache."
    assert lasting(home/"runs"/name) == lasting(tiny_run.folder)
    found = parts_of(home/cache)
    assert len(found) == 4 * -(-105 // CHUNK)  # of three features and of the thumbnails
    assert [n for n in found if not filecmp.cmp(tiny_run.home/"cache"/n, home/cache/n, shallow=False)] == []


@pytest.mark.soak
def test_a_run_that_is_killed_at_random_moments_ends_in_the_same_bytes(tiny_run, home, soak, monkeypatch):
    """All of it, or its first process alone, whose children must then end by themselves. No part that was finished is computed twice, also when
    another run on the same cache is started beside the last try."""
    monkeypatch.setenv("TMPDIR", str(home/"tmp"))
    rng, length = np.random.default_rng(0), record(tiny_run.folder)["stages"]["run"]["seconds"]
    killed, todo, attempt = 0, 30 if soak else 2, 0
    while killed < todo:
        attempt += 1
        arguments, kept, done = [*tiny_run.arguments, "-p", "cache", f"cache{attempt}", "--name"], {}, False
        while not done:
            last = killed == todo
            processes = [started([*arguments, f"run{attempt}"], home), *([started([*arguments, "beside"], home)] if last else [])]
            try: done = [p.wait(None if last else rng.uniform(0, length)) for p in processes] == [0] * len(processes)
            except psutil.TimeoutExpired:
                everything = family(processes[0])
                for p in everything if rng.integers(2) else everything[:1]: p.kill()
                killed += 1
                assert still_there(everything, 5) == []
            else: assert done
            assert kept.items() <= parts_of(home/f"cache{attempt}").items()
            kept = parts_of(home/f"cache{attempt}")
        for name in [f"run{attempt}", *(["beside"] if last else [])]: assert_equal(home, name, f"cache{attempt}", tiny_run)
        assert litter(home) == []


def test_ctrl_c_ends_everything_within_two_seconds(tiny_run, home):
    process = started([*tiny_run.arguments, "-p", "cache", "cache", "--name", "stopped"], home, stderr=subprocess.PIPE, text=True)
    while not parts_of(home/"cache") and process.poll() is None: time.sleep(0.02)
    everything = family(process)
    assert len(everything) > 3
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert still_there(everything, 10) == []
    took = time.monotonic() - start
    assert took < 2, took
    assert process.wait() == 1 and process.stderr.read().splitlines()[-1] == "hw2: stopped; the same command goes on from here"
    assert parts_of(home/"cache")


def test_a_file_that_may_not_grow(tiny_run, home):
    "The network's first part is small enough and is kept, SIFT's is not."
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (450_000, 450_000))
    arguments = [*tiny_run.arguments, "-p", "cache", "cache", "-p", "features", "[cnn, sift]", "--name", "large"]
    process = started(arguments, home, stderr=subprocess.PIPE, text=True, preexec_fn=small)
    said = process.communicate()[1]
    assert process.returncode == 1 and "File too large" in said and "Traceback" not in said
    assert len(parts_of(home/"cache")) == 1 and litter(home) == []


def test_a_full_disk(tiny_run, home):
    "A file system with room for a part of a kind."
    (home/"cache").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", home/"cache"], capture_output=True, text=True)
    if mounted.returncode: pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        process = started([*tiny_run.arguments, "-p", "cache", "cache", "--name", "full"], home, stderr=subprocess.PIPE, text=True)
        said = process.communicate()[1]
        assert process.returncode == 1 and "No space left on device" in said and "Traceback" not in said
        assert 0 < len(parts_of(home/"cache")) and litter(home) == []
    finally: subprocess.run(["umount", home/"cache"], check=True)


HOSTILE = ["<script>alert(1)</script>", "../../escape", "a|b \"c\" & 'd' `e` $f$", "{{ 7 * 7 }} [x](javascript:alert(2)) ![i](http://127.0.0.1:9/i.png)"]


def test_class_names_and_ids_are_text_everywhere(tiny_demo, home, command):
    "Whatever they are, they become no path, no cell and no HTML."
    videos = sorted((tiny_demo/"videos").glob("*.mp4"))[:24]
    ids = [f"<img src=x onerror=alert({i})>|`{{{i}}}`" for i in range(24)]
    for folder in ("set/videos", "set/labels"): (home/folder).mkdir(parents=True)
    for id, path in zip(ids, videos): shutil.copy(path, home/f"set/videos/{id}.mp4")
    (home/f"set/videos/{ids[0]}.mp4").write_text("no video")
    tables = {"cls_map": [("Label", "Category"), *enumerate(HOSTILE)], "train_val": [("Id", "Category"), *((id, i % 4) for i, id in enumerate(ids[:20]))],
              "test_for_students": [("Id", "Category"), *((id, "") for id in ids[20:])]}
    for name, rows in tables.items():
        with open(home/f"set/labels/{name}.csv", "w", newline="") as f: csv.writer(f).writerows(rows)
    before = {p.name for p in home.iterdir()}
    (home/"set.yaml").write_text("data: set\nfeatures: [sift]\nfps: 2\nwords: 8\nmax_epochs: 2\nseeds: [0]\nworkers: 2\ncache: cache\n")
    done = command("run", "--params", "set.yaml", "--name", "hostile", cwd=home)
    assert done.returncode == 0, done.stderr
    page = (home/"runs/hostile/report.html").read_text(encoding="utf-8")
    for raw in ["<script>alert", "<img src=x", "href=\"javascript", "\"http://127.0.0.1:9/i.png"]: assert raw not in page
    for shown in ["&lt;script&gt;alert(1)&lt;/script&gt;", "../../escape", "&lt;img src=x onerror=alert(0)&gt;"]: assert shown in page
    assert {p.name for p in home.iterdir()} - before == {"set.yaml", "runs", "cache"}
    assert {p.name for p in (home/"runs/hostile").iterdir() if p.is_dir()} == {"figures", "sift"}
    assert command("check-submission", "runs/hostile/submission_sift.csv", "--data", "set", cwd=home).returncode == 0
    seen = command("doctor", "set", "--csv", "found.csv", cwd=home)
    assert seen.returncode == 1 and "unreadable" in seen.stdout and ids[0] in (home/"found.csv").read_text()
