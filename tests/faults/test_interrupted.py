"""Runs that are killed, stopped, short of disk or not alone: what was finished stays, and the end is the same to the byte"""

import filecmp
import os
import resource
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
    assert len(found) == 7 * -(-105 // CHUNK)  # of three features, of one in three other orders, and of the thumbnails
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
