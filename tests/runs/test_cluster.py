"""Extraction on a Dask cluster: equal numbers, whoever computes them; workers and schedulers that are lost or were never there"""

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from hw2.core.params import read_params
from hw2.data.dataset import Dataset
from hw2.data.source import load_dataset
from hw2.extraction.cluster import ClusterError, cluster_client, on_cluster
from hw2.extraction.extract import extract, stores_of, with_reversed
from hw2.extraction.store import Units, chunks, read_chunk, read_units
from hw2.run.cli import app

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:distributed")


@pytest.fixture(scope="module")
def videos(tiny_demo, tmp_path_factory) -> Path:
    "The tiny demo's videos in a folder for every class, one of them text, one damaged."
    root = tmp_path_factory.mktemp("clustered")/"set"
    for i, path in enumerate(sorted((tiny_demo/"videos").glob("*.mp4"))):
        (root/f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root/f"class{i % 3}"/path.name)
    names = sorted(root.glob("*/*.mp4"))
    names[7].write_text("no video at all")
    names[50].write_bytes(names[50].read_bytes()[:3000])
    return root


def params_for(videos: Path, cache: str, **other) -> dict:
    "The demo's networks, on the folder, and the controls of the one for clips."
    networks = {"cnn": {"like": "convnext_mini", "fps": 4}, "cnn3d": {"like": "r2plus1d_mini", "clip_fps": 8, "n_clips": 1}}
    own = {"device": "cpu", "workers": 2, "features": {"sift": {"fps": 4}} | networks, "controls": True}
    return read_params({"data": str(videos), "form": "folders", "cache": str(videos.parent/cache)} | own, other)


def extracted(params: dict) -> tuple[dict[str, list[Units]], list]:
    "Everything in the store after an extraction, by feature; and what was left out."
    dataset = load_dataset(params)
    skipped = extract(dataset, params)
    return {f: read_units(store, dataset.manifest) for f, (_, store) in stores_of(with_reversed(params)).items()}, skipped.to_numpy().tolist()


def kill_one(cache: Path, done: threading.Event) -> None:
    "Kill one of the processes that compute when the first part is there."
    while not list(cache.glob("*/part-*.parquet")) and not done.wait(0.05): pass
    workers = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    workers[0].kill()


@pytest.fixture(scope="module")
def here(videos) -> tuple[dict[str, list[Units]], list]:
    "What this machine alone extracts."
    return extracted(params_for(videos, "alone"))


def test_a_cluster_with_a_worker_killed_in_the_middle_gives_what_one_machine_gives(videos, here):
    params, done = params_for(videos, "two", scheduler="local:2"), threading.Event()
    killer = threading.Thread(target=kill_one, args=(Path(params["cache"]), done))
    killer.start()
    units, skipped = extracted(params)
    done.set(); killer.join()
    assert skipped == here[1] and len(skipped) == 2
    for feature, videos_here in here[0].items():
        assert [u.content for u in units[feature]] == [u.content for u in videos_here]
        assert [u.error for u in units[feature]] == [u.error for u in videos_here]
        for a, b in zip(units[feature], videos_here):
            assert (a.units is None) == (b.units is None)
            if a.units is not None: np.testing.assert_array_equal(a.units, b.units)


def test_a_cluster_tries_again_what_was_given_up(videos, here):
    "The part is then what it would have been; on this machine it is SIFT's first one that is spoiled."
    params = params_for(videos, "again", features=["sift"])
    dataset = load_dataset(params)
    extract(dataset, params)
    store = stores_of(params)["sift"][1]
    contents = chunks(dataset.manifest)[0]["content"]
    before, units = store.path(contents).read_bytes(), read_chunk(store.path(contents))
    units[3] = Units(units[3].content, error="given up after 300 s")
    store.write(contents, units)
    assert len(extract(dataset, params | {"scheduler": "local:2"})) == 2 and store.path(contents).read_bytes() == before


def free_port() -> int:
    "A port that nobody listens at."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def scheduler():
    "A Dask scheduler with one worker, started as the README says; its address."
    address = f"tcp://127.0.0.1:{free_port()}"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dask = [sys.executable, "-m", "dask"]
    started = [subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", address.split(":")[-1], "--no-dashboard"], **silent),
               subprocess.Popen([*dask, "worker", address, "--nthreads", "1", "--no-dashboard"], **silent,
                                env=os.environ | {"DASK_DISTRIBUTED__WORKER__DAEMON": "False"})]
    yield address
    for process in reversed(started):
        for p in [*psutil.Process(process.pid).children(recursive=True), process]: p.kill()
        process.wait()


def test_a_scheduler_at_an_address(videos, here, scheduler):
    "SIFT alone: the same descriptors."
    units, _ = extracted(params_for(videos, "address", scheduler=scheduler, features=["sift"]))
    for a, b in zip(units["sift"], here[0]["sift"]):
        assert a.error == b.error and (a.error or (a.units == b.units).all())


def test_a_scheduler_that_is_lost_leaves_the_finished_parts(videos):
    "Everything goes away after the first part; the second try, alone, computes what is left."
    params = params_for(videos, "lost", features=["sift"])
    dataset = load_dataset(params)
    first = Dataset(dataset.root, dataset.manifest.head(32), dataset.classes)
    extract(first, params | {"scheduler": "local:1"})
    before = {p.name: p.stat().st_mtime_ns for p in Path(params["cache"]).rglob("part-*.parquet")}
    told = pytest.raises(ClusterError, match="no Dask scheduler answers at tcp://127.0.0.1:9 .*dask scheduler")
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), told:
        extract(dataset, params | {"scheduler": "tcp://127.0.0.1:9"})
    extract(dataset, params)
    after = {p.name: p.stat().st_mtime_ns for p in Path(params["cache"]).rglob("part-*.parquet")}
    assert len(before) == 1 and len(after) == 4 and before.items() <= after.items()


def test_a_job_that_kills_every_worker_is_told():
    with pytest.raises(ClusterError, match="workers died again and again at the same chunk of videos, most likely for lack of memory"):
        list(on_cluster("local:1", os._exit, [(9,)]))


def test_a_scheduler_without_workers_is_told():
    from distributed import LocalCluster
    with LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        told = f"{cluster.scheduler_address} has no workers; start some with `DASK_DISTRIBUTED__WORKER__DAEMON=False dask worker {cluster.scheduler_address}"
        with pytest.raises(ClusterError, match=told), cluster_client(cluster.scheduler_address, seconds=1): pass


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match=r"needs Dask: pip install -c constraints.txt -e '\.\[cluster\]'"):
        with cluster_client("local:2"): pass


def test_at_the_command_line(videos, monkeypatch, tmp_path, impatient):
    "One line says what to do."
    monkeypatch.chdir(tmp_path)
    (tmp_path/"set.yaml").write_text(f"data: {videos}\nform: folders\nfeatures: [sift]\nscheduler: tcp://127.0.0.1:9\n")
    done = CliRunner().invoke(app, ["run", "--params", "set.yaml"])
    assert done.exit_code == 1 and "no Dask scheduler answers at tcp://127.0.0.1:9" in done.stderr
    done = CliRunner().invoke(app, ["run", "--params", "set.yaml", "-p", "scheduler", "slurm"])
    assert done.exit_code == 1 and "scheduler: 'slurm' is not a text such as local:4 or tcp://host:8786 or null" in done.stderr
