"""Any file may be a video: each has its documented result, and a bad one costs nobody else anything"""

import multiprocessing
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pandas as pd
import pytest

from hw2.benchmark.workloads import extract_in_new_process
from hw2.classifier.train import train_feature
from hw2.core.files import ROOT
from hw2.core.params import check_params, read_params
from hw2.data.dataset import Dataset, from_csv, from_folders, hash_contents
from hw2.data.probe import VideoError, probe
from hw2.data.source import load_dataset
from hw2.data.split import split_manifest
from hw2.data.video import decode
from hw2.evaluation.submission import submission
from hw2.extraction import workers
from hw2.extraction.extract import extract, stores_of
from hw2.extraction.store import Units, read_units

MINI = {"device": "cpu", "workers": 2, "features": {"sift": {"fps": 2}, "cnn": {"fps": 2, "backbone": "convnext_mini", "weights": "bundled"},
                                                    "cnn3d": {"clip_fps": 8, "n_clips": 1, "backbone": "r2plus1d_mini", "weights": "bundled"}}}
REAL = ROOT.parent/"shared/data/clips"


# The corpus


def scene(n: int, height: int, width: int, seed: int) -> np.ndarray:
    "(n, height, width, 3) uint8: coarse blocks that move to the left."
    blocks = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, (width + 4 * n) // 8 + 1, 3), np.uint8)
    wide = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    return np.stack([wide[:height, 4*i:4*i + width] for i in range(n)])


def video(path: Path, n=20, height=48, width=64, codec="libx264", pix_fmt="yuv420p", times=None, form=None, container=None, options=None) -> Path:
    "An encoded scene of 10 frames a second, or with the given time stamps in milliseconds."
    with av.open(str(path), "w", format=form, options=container or {}) as out:
        stream = out.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if times: stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(scene(n, height, width, sum(path.name.encode()))):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times: frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def rewritten(path: Path, change) -> Path:
    "The same file with other bytes."
    path.write_bytes(change(path.read_bytes()))
    return path


def turned(data: bytes) -> bytes:
    "An MP4 whose track is to be turned by a quarter."
    at = data.index(b"tkhd") + 44
    return data[:at] + struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30) + data[at + 36:]


def mirrored(data: bytes) -> bytes:
    "An MP4 whose track is to be shown as in a mirror."
    at = data.index(b"tkhd") + 44
    return data[:at] + struct.pack(">9i", -(1 << 16), 0, 0, 0, 1 << 16, 0, 64 << 16, 0, 1 << 30) + data[at + 36:]


def longer(data: bytes) -> bytes:
    "A Matroska file that promises a minute."
    at = data.index(b"\x44\x89\x88") + 3
    return data[:at] + struct.pack(">d", 60_000) + data[at + 8:]


def still(data: bytes) -> bytes:
    "An AVI with 0 frames a second in both headers."
    main, own = data.index(b"avih") + 8, data.index(b"strh") + 8 + 24
    data = data[:main] + bytes(4) + data[main + 4:]
    return data[:own] + bytes(4) + data[own + 4:]


def sound(path: Path) -> None:
    "Sound alone."
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 8000
        out.mux([*stream.encode(silence), *stream.encode()])


def head_alone(path: Path) -> None:
    "A header without a frame."
    with av.open(str(path), "w", options={"movflags": "empty_moov"}) as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        out.start_encoding()


def link(path: Path, to: str) -> None:
    "A symbolic link."
    path.symlink_to(to)


def cut(path: Path, share: float, **how) -> None:
    "The beginning of a good video."
    rewritten(video(path, **how), lambda data: data[:int(len(data) * share)])


LARGE = {"height": 240, "width": 320, "options": {"crf": "1"}}  # next to which an index is small
BAD = {  # a file's name: how it is made, and its cause
    "missing.mp4": (lambda p: None, "no such file"), "empty.mp4": (Path.touch, "empty file (0 bytes)"),
    "text.mp4": (lambda p: p.write_text("this is not a video\n" * 50), "Invalid data"), "folder.mp4": (Path.mkdir, "a folder, not a file"),
    "dangling.mp4": (lambda p: link(p, "nowhere"), "dangling link"), "circle.mp4": (lambda p: link(p, "circle.mp4"), "circular link"),
    "pipe.mp4": (os.mkfifo, "not a regular file"), "device.mp4": (lambda p: link(p, "/dev/zero"), "not a regular file"),
    "ftyp.mp4": (lambda p: rewritten(video(p), lambda data: data[:32]), "Invalid data"), "head.mp4": (head_alone, "no frames"),
    "sound.mp4": (sound, "no video stream"), "zeros.mp4": (lambda p: p.write_bytes(bytes(5000)), "Invalid data"),
    "list.m3u8": (lambda p: p.write_text("#EXTM3U\n#EXTINF:1,\none.mp4\n#EXT-X-ENDLIST\n"), "Invalid data"),
    "notes.txt": (lambda p: p.write_text("What these videos are, and where they come from.\n" * 20), "text, not a video"),
    "list.txt": (lambda p: p.write_text("ffconcat version 1.0\nfile one.mp4\n"), "a list of other files, not a video"),
    "far.mkv": (lambda p: video(p, 3, times=[0, 100, 10**9]), "damaged time stamps: one frame for 1,000,000 s"),
    "short.mp4": (lambda p: cut(p, 9 / 11), "truncated: it ends before its index does"),
} | {f"cut{k}.mp4": (lambda p, k=k: cut(p, k / 11, **LARGE), "Invalid data") for k in range(1, 11)} | {  # which has its index at the end
    f"front{k}.mp4": (lambda p, k=k: cut(p, k / 11, **LARGE, container={"movflags": "faststart"}), "truncated: ") for k in range(1, 11)} | {
    f"cut{k}.mkv": (lambda p, k=k: cut(p, k / 11, codec="mjpeg", pix_fmt="yuvj420p"), "truncated: ") for k in range(1, 11)}
VARIABLE = [0, 100, 150, 400, 410, 900, 1000, 1001, 1100, 1500, *range(2000, 3000, 100)]
GOOD = {  # a file's name: how it is made
    "one.mp4": {"n": 1}, "two.mp4": {"n": 2}, "1x1.mkv": {"height": 1, "width": 1, "codec": "ffv1", "pix_fmt": "bgr0"},
    "odd.webm": {"height": 47, "width": 63, "codec": "libvpx-vp9"}, "odd.mp4": {"height": 47, "width": 63, "pix_fmt": "yuv444p"},
    "large.mp4": {"n": 3, "height": 2160, "width": 4096, "options": {"preset": "ultrafast"}}, "grey.mp4": {"pix_fmt": "gray"},
    "10bit.mp4": {"pix_fmt": "yuv420p10le"}, "hevc.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
    "alpha.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p"}, "alpha.mov": {"codec": "qtrle", "pix_fmt": "argb"},
    "av1.webm": {"codec": "libsvtav1"}, "variable.mp4": {"times": VARIABLE}, "variable.mkv": {"times": VARIABLE},
    "live.mkv": {"container": {"live": "1"}}, "raw.h264": {"form": "h264"}, "pieces.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "gif.gif": {"codec": "gif", "pix_fmt": "rgb8"}, "webm.webm": {"codec": "libvpx"}, "avi.avi": {"codec": "mpeg4"},
    "b.avi": {"codec": "mpeg4", "options": {"bf": "2"}}, "mov.mov": {}, "mkv.mkv": {}, "flv.flv": {"codec": "flv1"}, "wmv.wmv": {"codec": "wmv2"},
    "lines.mp4": {"height": 64, "options": {"x264-params": "tff=1:bframes=3"}},  # interlaced
    "open.mp4": {"n": 60, "options": {"x264-params": "open-gop=1:keyint=12:bframes=3"}}, "wrong.mp4": {"form": "avi", "codec": "mpeg4"},
    "picture.mp4": {"n": 1, "form": "image2pipe", "codec": "png", "pix_fmt": "rgb24"}, "turned.mp4": {}, "0fps.avi": {"codec": "mpeg4"},
    "back.ts": {"codec": "mpeg2video"},  # two recordings, one behind the other
    "order.avi": {"options": {"bf": "3"}}, "order.asf": {"options": {"bf": "3"}}, "mirrored.mp4": {}, "longer.mkv": {},
} | dict.fromkeys(["a name with spaces.mp4", "it's \"quoted\".mp4", "two\nlines.mp4", "v=1=x==.mp4", "-rf.mp4", "видео 🎬.mp4", "n" * 251 + ".mp4",
                   "file:mkv.mp4", "100%d.mp4"], {})
CHANGED = {"turned.mp4": turned, "mirrored.mp4": mirrored, "longer.mkv": longer, "0fps.avi": still,
           "back.ts": lambda data: data * 2}  # what is done to a good file's bytes


def extracted(root: Path, table: list[tuple[str, str]], **other) -> tuple[Dataset, pd.DataFrame, dict[str, list[Units]]]:
    "Extract (path, label) pairs: the set, what was left out, and the store's units by feature."
    pd.DataFrame(table, columns=["path", "label"]).to_csv(root/"table.csv", index=False)
    params = read_params(MINI, {"data": str(root/"table.csv"), "form": "csv", "cache": str(root/"cache")} | other)
    dataset = from_csv(root/"table.csv")
    dataset.manifest = split_manifest(dataset.manifest)
    dataset.manifest = hash_contents(dataset, 2)
    skipped = extract(dataset, params)
    return dataset, skipped, {f: read_units(store, dataset.manifest) for f, (_, store) in stores_of(params).items()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    "A folder with all of these files."
    root = tmp_path_factory.mktemp("corpus")
    for name, (make, _) in BAD.items(): make(root/name)
    for name, how in GOOD.items(): rewritten(video(root/name, **how), CHANGED.get(name, bytes))
    return root


@pytest.fixture(scope="module")
def told(corpus) -> tuple[dict, dict]:
    "All three features of the corpus: causes by path, and by path the shapes of the units."
    names = [*BAD, *GOOD]
    dataset, skipped, units = extracted(corpus, [(name, "xy"[i % 2]) for i, name in enumerate(names)])
    shapes = {p: {f: u[i].units.shape for f, u in units.items() if u[i].units is not None} for i, p in enumerate(dataset.manifest["path"])}
    return skipped.set_index("path")["cause"].to_dict(), shapes


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_listed_with_its_cause(name, corpus, told):
    causes, shapes = told
    assert BAD[name][1] in causes[name] and shapes[name] == {}
    with pytest.raises(VideoError) as error: probe(corpus/name)
    assert name in str(error.value)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_is_read(name, corpus, told):
    causes, shapes = told
    assert name not in causes and {f: s[1:] for f, s in shapes[name].items()} == {"sift": (32, 128), "cnn": (256,), "cnn3d": (128,)}
    found = probe(corpus/name)
    frames = dict(decode(found, np.arange(len(found.times))))
    size = [GOOD[name].get(k, usual) for k, usual in [("height", 48), ("width", 64)]]
    assert len(frames) == GOOD[name].get("n", 20) * (1 + (name == "back.ts")) and list(frames[0].shape[:2]) == (size[::-1] if name == "turned.mp4" else size)
    for wanted in [[len(frames) // 2], [0, len(frames) - 1], range(1, len(frames), 3)]:  # what is skipped changes nothing
        for position, frame in decode(found, np.array(wanted, int)): np.testing.assert_array_equal(frame, frames[position])


def test_nothing_is_left_out_silently(told):
    causes, shapes = told
    assert set(causes) == set(BAD) and {p for p, s in shapes.items() if len(s) == 3} == set(GOOD)


@pytest.mark.parametrize("hidden", [False, True])
def test_without_permission(hidden):
    "To read it, or to enter its folder. Root, who may do everything, becomes somebody else for the moment."
    with TemporaryDirectory() as folder:
        file, mine = video(Path(folder)/"mine.mp4"), os.geteuid()
        file.chmod(0)
        Path(folder).chmod(0o600 if hidden else 0o755)
        if mine == 0: os.seteuid(65534)
        try:
            with pytest.raises(VideoError, match="Permission denied"): probe(file)
            content, = hash_contents(Dataset(Path(folder), pd.DataFrame({"path": ["mine.mp4"]}), []))["content"]
        finally: os.seteuid(mine)
        Path(folder).chmod(0o700)
    assert content == ""


def test_names_that_are_no_text_are_strays(tmp_path):
    for k in "xy": (tmp_path/k).mkdir()
    for name in [b"x/good.mp4", b"x/\xff.mp4", b"y/good.mp4"]: Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    dataset = from_folders(tmp_path)
    assert dataset.manifest["id"].tolist() == ["x/good.mp4", "y/good.mp4"] and dataset.unlisted_files == ["x/\\xff.mp4"]


# In a set of the course's form


SIFT_ONLY = {"features": {"sift": {"fps": 2, "words": 8}}, "workers": 1, "device": "cpu", "classifier": {"max_epochs": 2}}
OF_COURSE = {"absent": "no such file", "empty": "empty file (0 bytes)", "text": "Invalid data", "half": "Invalid data", "folder": "a folder, not a file"}


@pytest.fixture(scope="module")
def course(tiny_demo, tmp_path_factory):
    "A course set of two classes with bad videos, three test videos and a stray: (dataset, parameters, what was left out)."
    root, labels = tmp_path_factory.mktemp("spoiled"), pd.read_csv(tiny_demo/"labels/train_val.csv")
    good = [(id, label) for label, k in [("ball", 0), ("swing", 3)] for id in labels["Id"][labels["Category"] == k]]  # six each
    split = ["val" if i % 6 == 5 else "train" for i in range(len(good))]
    tables = {"cls_map": "Label,Category\n0,ball\n1,swing\n", "test_for_students": "Id,Category\ntest_good,\ntest_bad,\ntest_gone,\n",
              "train_val": "\n".join(["Id,Category", *(f"{id},{label}" for id, label in good), *(f"{id},ball" for id in OF_COURSE)]),
              "split": "\n".join(["Id,Split", *(f"{id},{s}" for (id, _), s in zip(good, split)), *(f"{id},train" for id in OF_COURSE)])}
    videos, first = root/"c/videos", tiny_demo/f"videos/{good[0][0]}.mp4"
    for folder in (videos, root/"c/labels"): folder.mkdir(parents=True)
    for name, text in tables.items(): (root/f"c/labels/{name}.csv").write_text(text)
    for id, _ in good: shutil.copy(tiny_demo/f"videos/{id}.mp4", videos)
    for name in ["test_good", "stray"]: shutil.copy(first, videos/f"{name}.mp4")
    (videos/"empty.mp4").touch()
    (videos/"folder.mp4").mkdir()
    (videos/"text.mp4").write_text("this is not a video\n" * 50)
    (videos/"half.mp4").write_bytes(first.read_bytes()[:first.stat().st_size // 2])
    shutil.copy(videos/"text.mp4", videos/"test_bad.mp4")
    params = check_params(SIFT_ONLY | {"data": str(root/"c"), "cache": str(root/"cache")})
    dataset = load_dataset(params)
    return dataset, params, extract(dataset, params)


@pytest.mark.parametrize("name, cause", OF_COURSE.items())
def test_a_bad_video_of_the_course_is_listed_with_its_cause(name, cause, course):
    dataset, _, skipped = course
    row, = skipped[skipped["id"] == name].itertuples()
    assert row.path == f"videos/{name}.mp4" and cause in row.cause
    with pytest.raises(VideoError) as error: probe(dataset.root/row.path)
    assert f"{name}.mp4" in str(error.value)


def test_a_label_without_video_and_a_video_without_label_are_listed(course):
    skipped = course[2]
    assert skipped[skipped["id"] == "absent"]["cause"].tolist() == ["no such file"]
    assert skipped[skipped["id"] == ""][["path", "cause"]].to_numpy().tolist() == [["videos/stray.mp4", "no label names this file"]]
    assert set(skipped["id"]) == {*OF_COURSE, "test_bad", "test_gone", ""}


def test_bad_videos_are_counted_and_left_out(course):
    dataset, params, _ = course
    units = read_units(stores_of(params)["sift"][1], dataset.manifest)
    assert [i for i, u in zip(dataset.manifest["id"], units) if u.units is None] == [*OF_COURSE, "test_bad", "test_gone"]
    result = train_feature("sift", units, dataset.manifest, dataset.classes, params)
    assert result.metrics["skipped"] == {"train": len(OF_COURSE), "val": 0, "test": 2} and len(result.X) == 13 and result.X.any(1).all()
    assert result.predictions["id"].tolist()[-1] == "test_good" and len(result.predictions) == 3
    handed_in = submission(dataset.manifest, result.predictions)
    assert handed_in["Id"].tolist() == ["test_good", "test_bad", "test_gone"] and handed_in["Category"].isin([0, 1]).all()


def test_stopping_at_a_bad_video_names_it(course):
    dataset, params, _ = course
    with pytest.raises(VideoError, match="absent.mp4: no such file"): extract(dataset, params | {"on_error": "stop"})


# Processes that are lost


OPEN = """
import os, signal, time
import av
opened = av.open

def spoiled(file, *args, **kwargs):
    here, name = os.path.split(str(file))
    with open(here + "/spoil.py") as how: exec(how.read())
    return opened(file, *args, **kwargs)

av.open = spoiled
"""
SPOIL = """
if name == "crash.mp4": os.abort()
if name == "hang.mp4": time.sleep(600)
if name == "greedy.mp4": bytearray(8 * 2**30)
if name == "killed.mp4": os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def spoiled_decoder(tmp_path, monkeypatch) -> Iterator[Path]:
    "A folder of four good videos; what worker processes open fails in the way that spoil.py says, which may change."
    (tmp_path/"sitecustomize.py").write_text(OPEN)
    (tmp_path/"spoil.py").write_text(SPOIL)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(workers, "time_limit", lambda path: 3)
    for i in range(4): video(tmp_path/f"{i}.mp4")
    _forkserver._stop()  # the next one imports sitecustomize
    yield tmp_path
    _forkserver._stop()


def test_a_crash_a_hang_and_greed_cost_one_video_each(spoiled_decoder):
    for name in ["crash", "hang", "greedy"]: video(spoiled_decoder/f"{name}.mp4")
    names = ["0", "crash", "1", "hang", "2", "greedy", "3"]
    _, skipped, units = extracted(spoiled_decoder, [(f"{n}.mp4", "xy"[i % 2]) for i, n in enumerate(names)], features=["sift"])
    causes = {"crash.mp4": "its decoder crashed (SIGABRT)", "hang.mp4": "given up after 3 s", "greedy.mp4": "not enough memory"}
    assert skipped.set_index("path")["cause"].to_dict() == causes
    assert [u.units is None for u in units["sift"]] == [n in {"crash", "hang", "greedy"} for n in names]


WATCH = """
if name == "crash.mp4": os.abort()
if name in {"hang.mp4", "greedy.mp4", "killed.mp4"}:
    with open(here + "/busy", "w"): time.sleep(.3)
    os.unlink(here + "/busy")
    open(here + "/again-" + name, "a").close()
elif os.path.exists(here + "/busy"): open(here + "/beside-" + name, "w").close()
"""


def test_what_was_given_up_is_tried_again_alone_and_leaves_no_trace(spoiled_decoder):
    "Neither time nor memory - its process's, or the machine's, so that the kernel kills - is a fact about a file; a crash of its decoder is one."
    for name in ["hang", "killed", "crash", "greedy"]: video(spoiled_decoder/f"{name}.mp4")
    names = ["0", "hang", "1", "killed", "2", "crash", "3", "greedy"]
    table = [(f"{n}.mp4", "xy"[i % 2]) for i, n in enumerate(names)]
    _, skipped, _ = extracted(spoiled_decoder, table, features=["sift", "cnn"])
    assert skipped["path"].tolist() == ["hang.mp4", "killed.mp4", "crash.mp4", "greedy.mp4"]
    part = lambda: {p.parent.name: p.read_bytes() for p in (spoiled_decoder/"cache").glob("*/part-*.parquet")}
    first = part()
    _, skipped, _ = extracted(spoiled_decoder, table, features=["sift", "cnn"])  # as before: nothing is written
    assert len(skipped) == 4 and part() == first
    (spoiled_decoder/"spoil.py").write_text(WATCH)
    _, skipped, units = extracted(spoiled_decoder, table, features=["sift", "cnn"])
    assert skipped["cause"].tolist() == ["its decoder crashed (SIGABRT)"] and [u.units is None for u in units["cnn"]] == [n == "crash" for n in names]
    assert sorted(p.name for p in spoiled_decoder.glob("again-*")) == ["again-greedy.mp4", "again-hang.mp4", "again-killed.mp4"]
    assert list(spoiled_decoder.glob("beside-*")) == []
    (spoiled_decoder/"spoil.py").write_text(SPOIL.replace("hang", "-").replace("greedy", "-").replace("killed", "-"))
    healed = part()
    for p in (spoiled_decoder/"cache").glob("*/part-*.parquet"): p.unlink()
    extracted(spoiled_decoder, table, features=["sift", "cnn"])
    assert part() == healed != first


def test_a_part_that_another_run_completed_is_not_spoiled(spoiled_decoder, monkeypatch):
    "The other run was done between the look at the store and the end of this one's stall."
    video(spoiled_decoder/"hang.mp4")
    table = [("0.mp4", "x"), ("hang.mp4", "y"), ("1.mp4", "x")]
    (spoiled_decoder/"spoil.py").write_text("")
    extracted(spoiled_decoder, table, features=["sift"])
    before = {p: p.read_bytes() for p in (spoiled_decoder/"cache").glob("*/part-*.parquet")}
    (spoiled_decoder/"spoil.py").write_text(SPOIL)
    looked = []
    monkeypatch.setattr("hw2.extraction.extract.missing_chunks", lambda manifest, stores: looked.append(stores) or [(manifest, list(stores))])
    _, skipped, _ = extracted(spoiled_decoder, table, features=["sift"])
    assert {p: p.read_bytes() for p in before} == before and len(skipped) == 0 and len(looked) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="this system has no server that forks")
def test_a_worker_has_its_modules_from_the_server_that_forks_it():
    "A module that is not there would be left out in silence, and every worker would import for seconds."
    code = ("from hw2.extraction.decode import START, __name__ as wanted; import multiprocessing.forkserver as server\n"
            "there = START.Pool(1).apply(eval, (f'{wanted!r} in __import__(\"sys\").modules',)); print(there, server._forkserver._preload_modules == [wanted])")
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout == "True True\n"


def test_workers_that_cannot_start_stop_the_run(spoiled_decoder, monkeypatch):
    "No video is blamed for it."
    monkeypatch.setattr(workers, "START", multiprocessing.get_context("spawn"))  # each worker is an interpreter of its own
    (spoiled_decoder/"sitecustomize.py").write_text("import os, sys; '--multiprocessing-fork' in sys.orig_argv and os._exit(7)")
    with pytest.raises(RuntimeError, match="a worker process cannot be started: it ended with status 7"):
        extracted(spoiled_decoder, [("0.mp4", "x"), ("1.mp4", "y"), ("2.mp4", "x")], features=["sift"])


# Mutations


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    "The file with one thing done to its bytes that disks, networks and people do."
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 2000))
    match rng.integers(6):
        case 0: return data[:at]
        case 1: return data[:at] + bytes(length) + data[at + length:]
        case 2: return data[:at] + data[at + length:]
        case 3: return data[:at] + rng.bytes(length) + data[at:]
        case 4: near, many = len(data), int(rng.integers(1, 100))  # flipped anywhere
        case 5: near, many = 600, int(rng.integers(1, 8))  # or in the headers, which stand at one end
    changed = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, near, many) if rng.integers(2) else len(data) - 1 - rng.integers(0, near, many)
    changed[places] ^= rng.integers(1, 256, many, np.uint8)
    return changed.tobytes()


@pytest.fixture(scope="module")
def mutations(tiny_demo, tmp_path_factory, soak) -> Path:
    "Mutated clips: of the tiny demo's, the corpus's containers, and real ones where they are."
    root, rng = tmp_path_factory.mktemp("mutations"), np.random.default_rng(0)
    sources = sorted((tiny_demo/"videos").glob("*.mp4"))[::9]
    sources += [video(root/name, **GOOD[name]) for name in ["mkv.mkv", "avi.avi", "webm.webm", "gif.gif", "b.avi"]]
    originals = [p.read_bytes() for p in sources] + [p.read_bytes() for p in sorted(REAL.glob("*.mp4"))]
    for i in range(500 if soak else 50): (root/f"{i:03d}.mp4").write_bytes(mutated(originals[i % len(originals)], rng))
    return root


@pytest.mark.soak
def test_mutated_files_are_read_or_listed(mutations, tmp_path):
    "No crash of the run, no omission, little memory; and a second time the same, from another cache."
    files = sorted(mutations.glob("[0-9]*.mp4"))
    table, asked = [(p.name, "xy"[i % 2]) for i, p in enumerate(files)], {"features": ["sift", "cnn3d"]}
    assert extract_in_new_process(files, read_params(MINI, asked), tmp_path)["peak_memory_gb"] < 2
    first = extracted(mutations, table, cache=str(next(tmp_path.glob("*/*/")).parent), **asked)  # read from the store
    again = extracted(mutations, table, **asked)
    assert len(first[0].manifest) == len(table) and 0 < len(first[1]) < len(table)
    pd.testing.assert_frame_equal(first[1], again[1])
    for feature, units in first[2].items():
        for path, a, b in zip(first[0].manifest["path"], units, again[2][feature]):
            assert (a.units is None) == (path in set(first[1]["path"]))
            if a.units is not None: np.testing.assert_array_equal(a.units, b.units, err_msg=path)
