"""What runs the networks: every engine gives what torchvision's own network gives, on any number of cores, and says so where it cannot"""

import copy
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import hw2.features.engine
from hw2.core.devices import cores
from hw2.core.params import read_params
from hw2.data.probe import write_video
from hw2.data.source import load_dataset
from hw2.extraction.extract import extract, stores_of
from hw2.extraction.store import read_units
from hw2.features.backbone import Backbone, BackboneSpec, cosines, embed
from hw2.features.catalogue import choose_engines, extractors_of
from hw2.features.engine import ENGINES, EngineError, check_engine, check_precision, inference_threads, openvino_core, rewrite, runner
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
    assert BackboneSpec("r2plus1d_mini", "bundled", device="cuda").rewrites == [] == BackboneSpec("r2plus1d_18", "random", precision="bfloat16").rewrites
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
    "Extracted by torch in float32."
    return extracted(clips, "cache", engine="eager", precision="float32")


def test_openvinos_requests_are_made_before_the_first_batch(monkeypatch):
    "One that is made while another computes waits for it, and a core idles."
    engine_or_skip("openvino")
    core, made = openvino_core(), []

    def compile_model(*arguments):
        model = core.compile_model(*arguments)
        make = model.create_infer_request
        model.create_infer_request = lambda: made.append(threading.get_ident()) or make()
        return model
    monkeypatch.setattr(hw2.features.engine, "openvino_core", lambda: SimpleNamespace(compile_model=compile_model))
    run, x = runner(nn.Linear(4, 2).eval().requires_grad_(False), "openvino"), torch.rand(3, 4)
    with torch.inference_mode(): expected = run(x)
    for _ in range(2):  # each time with new threads
        with inference_threads() as pool: assert all(torch.equal(y, expected) for y in pool.map(run, [x] * 8))
    assert made == [threading.get_ident()] * cores()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not restrict a process to some cores")
@pytest.mark.parametrize("engine", ["eager", None])
def test_the_number_of_cores_changes_nothing(clips, engine):
    "One core, one thread: the same bits."
    together, mine = extracted(clips, f"{engine}, all cores", engine=engine), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try: alone = extracted(clips, f"{engine}, one core", engine=engine)
    finally: os.sched_setaffinity(0, mine)
    for f in together:
        for a, b in zip(alone[f], together[f]): np.testing.assert_array_equal(a, b)


def test_an_engine_has_its_own_store(clips, reference):
    "The networks' features are computed anew, SIFT's are not."
    engine_or_skip("openvino")
    stores = lambda: {p.name for p in (clips/"cache").iterdir()}
    before = stores()
    other = extracted(clips, "cache", engine="openvino")
    assert sorted(name.split("-")[0] for name in stores() - before) == ["clips", "frames"]
    for f in ("cnn", "cnn3d"):
        for a, b in zip(other[f], reference[f]): np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def half_or_skip() -> None:
    "Where OpenVINO computes in bfloat16."
    engine_or_skip("openvino")
    try: check_precision("bfloat16", "openvino")
    except EngineError as e: pytest.skip(str(e))


def test_bfloat16_by_openvino_is_near_and_another_store(clips, reference):
    half_or_skip()
    half = extracted(clips, "cache", engine="openvino", precision="bfloat16")
    for f in ("cnn", "cnn3d"):
        found = cosines(np.concatenate(half[f]), np.concatenate(reference[f]))
        assert .99 < found.min() < 1 - 1e-7, f


def test_what_is_not_asked_for_is_settled_once(monkeypatch):
    "By what the machine has; what was asked for stays; the bundled networks keep float32."
    engine_or_skip("openvino")
    asked = read_params({"device": "cpu", "features": {
        "sift": {}, "cnn": {"like": "convnext_mini"}, "large": {"kind": "frames", "backbone": "mobilenet_v2", "weights": "random"},
        "exact": {"like": "large", "precision": "float32"}, "plain": {"like": "large", "engine": "eager"}}})
    settled = lambda: {f: (e["engine"], e["precision"]) for f, e in choose_engines(asked)[0]["features"].items() if f != "sift"}
    monkeypatch.setattr("hw2.features.catalogue.check_agreement", lambda backbone: None)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert settled() == {"cnn": ("openvino", "float32"), "large": ("openvino", "bfloat16"), "exact": ("openvino", "float32"), "plain": ("eager", "bfloat16")}
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert settled()["large"] == ("openvino", "float32")
    monkeypatch.setattr("hw2.features.engine.find_spec", lambda library: None)
    assert settled()["large"] == ("eager", "float32")


def test_a_network_that_openvino_cannot_run_is_computed_by_torch(monkeypatch):
    "A sort whose operator has no translation, and an engine whose numbers are others; asked for, it is an error."
    engine_or_skip("openvino")
    asked = read_params({"device": "cpu", "features": {"cnn": {"kind": "frames", "backbone": "mobilenet_v2", "weights": "random"}}})
    monkeypatch.setattr(nn.AdaptiveAvgPool2d, "forward", lambda self, x: torch.linalg.eigvals(x[..., :1, :1]).real.unsqueeze(-1))
    monkeypatch.setattr(nn.functional, "adaptive_avg_pool2d", lambda x, size: torch.linalg.eigvals(x[..., :1, :1]).real.unsqueeze(-1))
    params, (note,) = choose_engines(asked)
    assert params["features"]["cnn"]["engine"] == "eager" and note.startswith("cnn: engine openvino cannot run Embedder (")
    assert note.endswith("take eager; torch computes it in eager mode")
    explicit = extractors_of(read_params(asked, {"engine": "openvino"}))["cnn"]
    with pytest.raises(EngineError, match="engine openvino cannot run Embedder"): embed(explicit.backbone, np.zeros((1, 3, 224, 224), np.uint8))


def test_a_precision_that_is_not_there_is_told(clips, monkeypatch):
    "Before a frame is decoded."
    engine_or_skip("openvino")
    monkeypatch.setattr("hw2.features.engine.openvino_core", lambda: SimpleNamespace(get_property=lambda *names: ["FP32"]))
    with pytest.raises(EngineError, match=r"openvino does not compute in bfloat16 on this processor \(.+\); take float32"):
        extracted(clips, "no half", engine="openvino", precision="bfloat16")


def test_an_engine_that_is_not_installed_is_told(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"openvino is not installed: pip install openvino, or take eager"):
        extracted(clips, "none", engine="openvino")


def test_a_device_that_is_not_there_is_told(clips):
    if torch.cuda.is_available(): pytest.skip("there is one here")
    with pytest.raises(ValueError, match="device 'cuda:0' is not available here; available: cpu"): extracted(clips, "none", device="cuda:0")
