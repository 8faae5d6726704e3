"""What runs the networks: every engine gives what torchvision's own network gives, on any number of cores, and says so where it cannot"""

import copy
import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

from hw2.core.params import read_params
from hw2.data.probe import write_video
from hw2.data.source import load_dataset
from hw2.extraction.extract import extract, stores_of
from hw2.extraction.store import read_units
from hw2.features.backbone import Backbone, BackboneSpec, embed
from hw2.features.engine import ENGINES, EngineError, check_engine, rewrite
from hw2.features.networks import build
from hw2.features.weights import preprocessing


def engine_or_skip(engine: str) -> str:
    "The engine, where it can run here."
    try: check_engine(engine)
    except EngineError as e: pytest.skip(str(e))
    return engine


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    "Sixteen frames that move, (16, 120, 160, 3) uint8."
    scene = np.kron(np.random.default_rng(0).integers(0, 256, (15, 60, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    return np.stack([scene[:, 3 * i:3 * i + 160] for i in range(16)])


@pytest.mark.parametrize("engine", ["eager", "openvino"])
@pytest.mark.parametrize("name, dim", [("convnext_base", 1024), ("r2plus1d_18", 512)])
def test_the_reports_networks(name, dim, engine, frames):
    "Against torchvision's network on torchvision's own preprocessing."
    backbone = Backbone(name, "random", engine=engine_or_skip(engine))
    views = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (16, 3, h, w)
    x = preprocessing(name, "random")(views)
    x = x[None] if backbone.clips else x[:2]
    network, seen = backbone.network, []
    network.avgpool.register_forward_hook(lambda m, i, o: seen.append(o.flatten(1)))
    with torch.inference_mode(): network(x)
    prepared = np.stack([backbone.prepare(f) for f in frames])
    vectors = embed(backbone, prepared.swapaxes(0, 1)[None] if backbone.clips else prepared[:2])
    assert vectors.shape == (len(x), dim)
    np.testing.assert_allclose(vectors, seen[0].numpy(), atol=2e-5 * float(seen[0].abs().max()))


@pytest.mark.parametrize("engine", ENGINES[1:])
@pytest.mark.parametrize("name", ["convnext_mini", "r2plus1d_mini"])
def test_the_small_networks(name, engine, frames):
    "Against eager; a batch that is not full; twice the same."
    make = lambda engine: Backbone(name, "bundled", batch=3, engine=engine)
    eager, other = make("eager"), make(engine_or_skip(engine))
    prepared = np.stack([eager.prepare(f) for f in frames])
    x = np.stack([prepared, prepared[::-1]]).swapaxes(1, 2) if eager.clips else prepared[:2]
    ours = embed(other, x)
    np.testing.assert_allclose(ours, embed(eager, x), atol=1e-5 * np.abs(ours).max())
    np.testing.assert_array_equal(ours, embed(other, x))
    assert other.key() != eager.key() and other.key()["engine"] == engine


@pytest.mark.parametrize("name", ["convnext_mini", "r2plus1d_mini"])
def test_half_precision(name, frames):
    "What an accelerator computes in, by the processor's autocast: near float32, another key."
    whole, half = Backbone(name, "bundled"), Backbone(name, "bundled", precision="bfloat16")
    prepared = np.stack([whole.prepare(f) for f in frames])
    x = prepared.swapaxes(0, 1)[None] if whole.clips else prepared[:2]
    difference = np.abs(embed(half, x) - embed(whole, x)).max() / np.abs(embed(whole, x)).max()
    assert 0 < difference < 0.03
    assert (whole.key()["precision"], half.key()["precision"]) == ("float32", "bfloat16")


@pytest.mark.parametrize("rewrites", [["fold"], ["planar"], ["fold", "align"], ["fold", "align", "planar", "half"]], ids="+".join)
def test_rewrites_keep_the_numbers(rewrites):
    "R(2+1)D-18 with batch norms that have something to fold, on a small clip."
    network = build("r2plus1d_18").eval().requires_grad_(False)
    for norm in [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]: norm.running_mean.normal_(); norm.running_var.uniform_(.5, 2)
    x = torch.randn(2, 3, 4, 32, 24)
    with torch.inference_mode():
        expected = network(x)
        found = rewrite(copy.deepcopy(network), rewrites)(x)
    assert not torch.equal(found, expected) and (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_rewrites_reach_every_layer():
    "No batch norm and no 3-D convolution is left in R(2+1)D-18, and the channels between convolutions are multiples of 8."
    network = rewrite(build("r2plus1d_18").eval(), ["fold", "align", "planar", "half"], "bfloat16")
    assert not any(isinstance(m, nn.BatchNorm3d | nn.Conv3d) for m in network.modules())
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2 + 16 * 2 + 3 and all(m.out_channels % 8 == 0 and m.weight.dtype == torch.bfloat16 for m in convolutions)
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)


def test_rewrites_are_part_of_the_key_and_keep_a_named_node():
    backbone = lambda **own: Backbone("r2plus1d_mini", "bundled", **own)
    assert backbone(rewrites=["half", "fold"]).key() == backbone().key() | {"rewrites": ["fold", "half"]} and "rewrites" not in backbone().key()
    assert backbone(node="stages.3", rewrites=["fold", "half"]).key()["rewrites"] == ["half"]
    assert BackboneSpec("r2plus1d_18", "random", device="cuda", precision="bfloat16").rewrites == ["align", "fold", "half", "planar"]
    on_cuda = BackboneSpec("r2plus1d_mini", "bundled", device="cuda")
    assert (on_cuda.precision, on_cuda.rewrites) == ("float32", []) and BackboneSpec("r2plus1d_18", "random", precision="bfloat16").rewrites == []
    clip = np.zeros((1, 3, 16, 64, 80), np.uint8)
    with pytest.raises(EngineError, match="rewrite 'wider' is unknown; known: fold, align, planar, half"): embed(backbone(rewrites=["wider"]), clip)


# A whole extraction


@pytest.fixture(scope="module")
def clips(frames, tmp_path_factory):
    "Two classes of three clips."
    root = tmp_path_factory.mktemp("engines")
    for k in range(6):
        (root/f"set/{'ab'[k % 2]}").mkdir(parents=True, exist_ok=True)
        write_video(root/f"set/{'ab'[k % 2]}/{k}.mp4", np.roll(frames, 20 * k, 2), fps=8)
    return root


def extracted(clips, cache: str, **own) -> dict:
    "By feature, the units of every video."
    features = {"sift": {"fps": 4}, "cnn": {"like": "convnext_mini", "fps": 4}, "cnn3d": {"like": "r2plus1d_mini", "clip_fps": 8, "n_clips": 3}}
    small = {"device": "cpu", "data": str(clips/"set"), "form": "folders", "workers": 1, "cache": str(clips/cache), "features": features}
    params = read_params(small | own)
    dataset = load_dataset(params)
    assert extract(dataset, params).empty
    return {f: [u.units for u in read_units(store, dataset.manifest)] for f, (_, store) in stores_of(params).items()}


@pytest.fixture(scope="module")
def reference(clips) -> dict:
    "Extracted with the defaults."
    return extracted(clips, "cache")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not restrict a process to some cores")
def test_the_number_of_cores_changes_nothing(clips, reference):
    "One core, one lane: the same bits."
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try: alone = extracted(clips, "one core")
    finally: os.sched_setaffinity(0, mine)
    for f in reference:
        for a, b in zip(alone[f], reference[f]): np.testing.assert_array_equal(a, b)


def test_an_engine_has_its_own_store(clips, reference):
    "The networks' features are computed anew, SIFT's are not."
    engine_or_skip("openvino")
    stores = lambda: {p.name for p in (clips/"cache").iterdir()}
    before = stores()
    other = extracted(clips, "cache", engine="openvino")
    assert sorted(name.split("-")[0] for name in stores() - before) == ["clips", "frames"]
    for f in ("cnn", "cnn3d"):
        for a, b in zip(other[f], reference[f]): np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_an_engine_that_is_not_installed_is_told(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"openvino is not installed: pip install -c constraints.txt -e '\.\[engine\]'"):
        extracted(clips, "none", engine="openvino")


def test_a_device_that_is_not_there_is_told(clips):
    if torch.cuda.is_available(): pytest.skip("there is one here")
    with pytest.raises(ValueError, match="device 'cuda:0' is not available here; available: cpu"): extracted(clips, "none", device="cuda:0")
