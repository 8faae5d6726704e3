"""Weights as people have them: each file is read where it is unambiguous, and else is named in one line that says what it is"""

import io
import json
import pickle
import tarfile
import threading
import time
import zipfile
from argparse import Namespace
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

import hw2.features.pretrained
from hw2.classifier.fold import FeatureError
from hw2.classifier.train import train_feature
from hw2.core.params import check_params
from hw2.data.dataset import COLUMNS
from hw2.data.split import split_manifest
from hw2.extraction.store import Units
from hw2.features.backbone import Backbone, embed, locked_cached_property, needed_tensors
from hw2.features.checkpoint import select_tensors
from hw2.features.engine import inference_threads
from hw2.features.networks import WeightsError, build
from hw2.features.weights import load_weights, preprocessing, weights_file

NET, HEAD = "r2plus1d_mini", ("fc.weight", "fc.bias")
CLIP = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 64, 80), np.uint8)


def given(text: str, state: dict) -> dict:
    "The same tensors, with something before each name."
    return {text + k: v for k, v in state.items()}


def without(state: dict, *names: str) -> dict:
    "The same without the tensors whose name has one of these in it."
    return {k: v for k, v in state.items() if not any(n in k for n in names)}


def as_type(dtype: torch.dtype):
    "A function that gives a state's numbers another type."
    return lambda s: {k: v.to(dtype) if v.is_floating_point() else v for k, v in s.items()}


def other_head(s: dict, classes: int = 7) -> dict:
    "The same network for other classes."
    return s | {"fc.weight": torch.zeros(classes, 128), "fc.bias": torch.zeros(classes)}


def changed(s: dict, name: str = "stem.0.weight", value: float = 1.) -> dict:
    "The same, with one number of one tensor changed."
    first = s[name].clone()
    first.view(-1)[0] = value
    return s | {name: first}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    "A trained network's weights, as far as this matters: batch norm's statistics are not the initial ones."
    network = build(NET, seed=3)
    for name, values in network.state_dict().items():
        if name.endswith("running_var"): values.uniform_(0.5, 2, generator=torch.Generator().manual_seed(len(name)))
    return dict(network.state_dict())


@pytest.fixture(scope="module")
def reference(state, tmp_path_factory) -> np.ndarray:
    "The embedding with these weights put into the network by torch alone."
    network = build(NET)
    network.load_state_dict(state, strict=True)
    transform, seen = preprocessing(NET, "random"), []
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (transform.mean, transform.std))
    network.eval().avgpool.register_forward_hook(lambda m, i, o: seen.append(o.flatten(1)))
    with torch.inference_mode(): network((torch.from_numpy(CLIP).float() / 255 - mean) / std)
    return seen[0].numpy()


READ = {  # a file's name, and what it holds
    "plain.pth": dict, "plain.pt": dict, "model_best.pth.tar": dict, "last.ckpt": dict, "pytorch_model.bin": dict, "UPPER.PTH": dict,
    "LAST.CKPT": dict, "x.tar": dict,
    "odd.weights": dict, "no suffix": dict, "ordered.pth": OrderedDict, "model.safetensors": dict, "MODEL.SAFETENSORS": dict, "safetensors.bin": dict,
    "counters.pth": lambda s: without(s, "num_batches"),
    "counters.safetensors": lambda s: without(s, "num_batches"),
    "double.pth": as_type(torch.float64), "parameters.pth": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    **{f"{w}.pth": lambda s, w=w: {w: s, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": s["stem.0.weight"]}}, "param_groups": [{"lr": .1}]}}
       for w in ["state_dict", "model", "model_state_dict", "model_ema", "ema", "ema_state_dict", "net", "network", "backbone", "weights", "teacher"]},
    **{f"{t}pth": lambda s, t=t: given(t, s)
       for t in ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "module._orig_mod.", "module.encoder_q."]},
    "mmaction.pth": lambda s: {"meta": {}, "state_dict": given("backbone.", without(s, *HEAD)) | {"cls_head.fc_cls.bias": torch.zeros(9)}},
    "lightning.ckpt": lambda s: {"state_dict": given("model.", s), "pytorch-lightning_version": "2.4", "hyper_parameters": {"lr": .1, "name": "x"}},
    "options.pth": lambda s: {"model": s, "args": Namespace(lr=.1, data="x"), "best_acc1": np.float64(.5), "steps": np.int64(3)},
    "deep.pth": lambda s: {"checkpoint": {"ema": {"module": s}}},
    "listed.pth": lambda s: {"models": [s]},
    "both equal.pth": lambda s: {"model": s, "model_ema": {k: v.clone() for k, v in s.items()}},
    "headless.pth": lambda s: without(s, *HEAD), "classes.pth": other_head, "bias.pth": lambda s: without(s, "fc.bias"),
    "mlp head.pth": lambda s: without(s, *HEAD) | {"fc.0.weight": torch.zeros(9, 128), "fc.2.weight": torch.zeros(4, 9)},
    "projector.pth": lambda s: given("backbone.", s) | {"projector.0.weight": torch.zeros(9, 128), "queue": torch.zeros(128, 9)},
    "profiled.pth": lambda s: s | {"stem.0.total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
    "head of NaN not needed.pth": lambda s: without(s, *HEAD) | {"optimizer.exp": torch.full((3,), torch.nan)},
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("ignore")
def test_a_file_is_read(name, state, reference, tmp_path):
    held = READ[name](state)
    if "safetensors" in name.lower(): save_file(held, tmp_path/name)
    else: torch.save(held, tmp_path/name)
    np.testing.assert_array_equal(embed(Backbone(NET, str(tmp_path/name), batch=1), CLIP), reference)


@pytest.mark.parametrize("dtype, near", [(torch.float16, 2e-2), (torch.bfloat16, 2e-1)])
def test_short_numbers_become_float32(dtype, near, state, reference, tmp_path):
    torch.save(as_type(dtype)(state), tmp_path/"short.pth", _use_new_zipfile_serialization=False)
    backbone = Backbone(NET, str(tmp_path/"short.pth"), batch=1)
    assert {p.dtype for p in backbone.network.parameters()} == {torch.float32}
    np.testing.assert_allclose(embed(backbone, CLIP), reference, atol=near * np.abs(reference).max())
    np.testing.assert_array_equal(backbone.network.stem[0].weight, state["stem.0.weight"].to(dtype).float())


class Own:
    "A class that is not to be run."
    def __init__(self): self.path = Path("x")


def zipped(**files: bytes) -> bytes:
    "A zip archive."
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in files.items(): archive.writestr(name.replace("__", "/"), content)
    return held.getvalue()


def tarred(content: bytes) -> bytes:
    "A tar archive of one file."
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        info = tarfile.TarInfo("model.pth"); info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return held.getvalue()


def pickled(held, **how) -> bytes:
    "What torch.save writes."
    file = io.BytesIO()
    torch.save(held, file, **how)
    return file.getvalue()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
INDEX = {"metadata": {"total_size": 9}, "weight_map": {"stem.0.weight": "model-00001-of-00002.safetensors", "fc.bias": "model-00002-of-00002.safetensors"}}
REFUSED = {  # a file's name: its bytes from the state, and what the line says
    "lfs.pth": (lambda s: LFS.encode(), "is a Git LFS pointer to 12,345 bytes, not the weights; run `git lfs pull`"),
    "lfs.safetensors": (lambda s: LFS.replace("\n", "\r\n").encode(), "is a Git LFS pointer"),
    "annex.pth": (lambda s: b"/annex/objects/SHA256E-s12--4d7a.pth\n", "is a git-annex pointer"),
    "drive.pth": (lambda s: b"<!DOCTYPE html><title>Google Drive - Virus scan</title>", "is a web page (Google Drive - Virus scan), not weights"),
    "page.bin": (lambda s: b"\n<!-- x --><HTML lang='de'><body>" + "ä".encode() * 5000, "is a web page, not weights"),
    "s3.pth": (lambda s: b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "is an XML text (AccessDenied)"),
    "model.safetensors.index.json": (lambda s: json.dumps(INDEX).encode(), "is the index of weights in several files (model-00001-of-00002.safet"),
    "config.json": (lambda s: b'{"architectures": ["x"]}', "is a JSON file, not weights"),
    "notes.pth": (lambda s: b"404: Not Found", "text file, not weights; it begins '404: Not Found'"),
    "empty.pth": (lambda s: b"", "is empty (0 bytes)"),
    "empty.safetensors": (lambda s: b"", "is empty (0 bytes)"),
    "noise.pth": (lambda s: bytes(range(256)), "nothing that torch or safetensors"),
    "half.pth": (lambda s: pickled(s)[:100_000], "is cut off"),
    "half old.pth": (lambda s: pickled(s, _use_new_zipfile_serialization=False)[:100_000], "is cut off"),
    "half.safetensors": (lambda s: save(s)[:100_000], "is cut off: its header states"),
    "header.safetensors": (lambda s: save(s)[:100], "is cut off: its header states"),
    "whole.pt": (lambda s: pickled(build(NET)), "is a whole pickled network (hw2.features.networks.R2Plus1DMini)"),
    "whole old.pth": (lambda s: pickled(build(NET), _use_new_zipfile_serialization=False), "is a whole pickled network (hw2.features.networks.R2Plus1DMini)"),
    "yolo.pt": (lambda s: pickled({"model": build(NET), "epoch": 1}), "holds more than tensors (hw2.features.networks.R2Plus1DMini"),
    "hparams.ckpt": (lambda s: pickled({"state_dict": s, "pytorch-lightning_version": "2.4", "hyper_parameters": Own()}),
                     "is a Lightning checkpoint that holds more than tensors ("),
    "own.pth": (lambda s: pickled({"state_dict": s, "own": Own()}), "is a pickle that holds more than tensors ("),
    "plain.pkl": (lambda s: pickle.dumps({k: v.numpy() for k, v in s.items()}), "is a pickle without torch's tensors (numpy."),
    "arrays.npz": (lambda s: zipped(**{"a.npy": b"x"}), "NumPy arrays (.npz)"),
    "a.keras": (lambda s: zipped(**{"model.weights.h5": b"x"}), "is a Keras model"),
    "zipped.pth": (lambda s: zipped(**{"model.pth": b"x"}), "is a zip archive of other files (model.pth)"),
    "real.pth.tar": (lambda s: tarred(b"x"), "is a tar archive"),
    "a.pth.gz": (lambda s: b"\x1f\x8b\x08" + bytes(20), "compressed by gzip"),
    "keras.h5": (lambda s: b"\x89HDF\r\n\x1a\n" + bytes(20), "is an HDF5 file"),
    "net.onnx": (lambda s: b"\x08\x08\x12\x07pytorch\x1a\x052.4.0" + bytes(20), "is an ONNX model"),
    "renamed.pth": (lambda s: b"\x08\x07\x12\x07pytorch" + bytes(20), "an ONNX model"),
    "flax_model.msgpack": (lambda s: b"\x81\xa6params\x82\xa4conv" + bytes(20), "is a MessagePack file"),
    "flax.bin": (lambda s: b"\x81\xa6params\x82" + bytes(20), "MessagePack"),
    "model.ckpt.index": (lambda s: b"\x00\x00\x01\x02" + bytes(200), "part of a TensorFlow model"),
    "saved_model.pb": (lambda s: b"\x08\x01\x12\xf1\x80" + bytes(20), "TensorFlow"),
    "list.pth": (lambda s: pickled([1, 2]), "holds no tensors by name, but a list"),
    "one.pth": (lambda s: pickled(torch.zeros(3)), "holds no tensors by name, but a Tensor"),
    "nan.pth": (lambda s: pickled(changed(s, value=torch.nan)), "stem.0.weight holds NaN or infinity (1 of its 2,352 numbers)"),
    "inf.pth": (lambda s: pickled(changed(s, "stem.1.running_var", -torch.inf)), "stem.1.running_var holds NaN or infinity (1 of its 16"),
    "large.pth": (lambda s: pickled(changed(as_type(torch.float64)(s), value=1e300)), "stem.0.weight holds NaN or infinity"),
    "nan head.pth": (lambda s: pickled(changed(s, "fc.bias", torch.nan)), "fc.bias holds NaN or infinity"),
    "two.pth": (lambda s: pickled({"model": s, "model_ema": changed(s)}), "more than one set of weights that fits: model, model_ema; save only the one"),
    "moco.pth": (lambda s: pickled(given("encoder_q.", s) | given("encoder_k.", changed(s))), "more than one set of weights that fits: encoder_q, encoder_k"),
    "partly.pth": (lambda s: pickled(without(s, "stages.3")), "are missing (stages.3.conv1.0.0.weight, "),
    "one missing.pth": (lambda s: pickled(without(s, "stages.1.conv1.1.bias")), "tensors needed are missing (stages.1.conv1.1.bias)"),
    "shape.pth": (lambda s: pickled(s | {"stem.3.weight": torch.zeros(16, 16, 5, 1, 1)}),
                  "stem.3.weight is 16 x 16 x 5 x 1 x 1 there, 16 x 16 x 3 x 1 x 1 in the network"),
    "deeper.pth": (lambda s: pickled(s | {"stages.4.conv1.weight": torch.zeros(2)}),
                   "has 1 tensors more than this network (stages.4.conv1.weight): another architecture's"),
    "other.pth": (lambda s: pickled(build("convnext_mini").state_dict()),
                  "tensors needed are missing (stem.0.weight, stem.1.weight, stem.1.bias, ...); the file's are features.0.0.weight"),
    "model-00001-of-00002.bin": (lambda s: pickled({k: v for k, v in s.items() if "stem" in k}), "the file is piece 1 of 2"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_a_file_is_refused_in_one_line_that_says_what_it_is(name, state, tmp_path):
    content, words = REFUSED[name]
    (tmp_path/name).write_bytes(content(state))
    with pytest.raises(WeightsError) as error: embed(Backbone(NET, str(tmp_path/name), batch=1), CLIP)
    assert words in str(error.value) and name in str(error.value) and len(str(error.value).splitlines()) == 1, error.value


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_named(tmp_path):
    torch.jit.script(build(NET).fc).save(tmp_path/"jit.pt")
    with pytest.raises(WeightsError, match="jit.pt is a TorchScript archive"): Backbone(NET, str(tmp_path/"jit.pt"))


def test_no_pickled_code_runs(tmp_path):
    class Evil:
        def __reduce__(self): return (Path(tmp_path/"ran").touch, ())
    (tmp_path/"evil.pth").write_bytes(pickled({"state_dict": {}, "x": Evil()}))
    with pytest.raises(WeightsError): load_weights(build(NET), tmp_path/"evil.pth")
    assert not (tmp_path/"ran").exists()


def test_what_is_not_there(tmp_path):
    (tmp_path/"folder.pth").mkdir(); (tmp_path/"folder.pth/a.bin").touch()
    (tmp_path/"link.pth").symlink_to("nowhere")
    said = {"folder.pth": "is a folder; name the file of weights in it (a.bin)", "link.pth": "a link to nothing", "gone.bin": "no such weights file"}
    for name, words in said.items():
        with pytest.raises(WeightsError) as error: weights_file("resnet18", str(tmp_path/name))
        assert words in str(error.value)
    with pytest.raises(WeightsError, match="https://x.org/a.pth: an address; download it"): weights_file("resnet18", "https://x.org/a.pth")
    with pytest.raises(WeightsError, match="'IMAGENET1K' is unknown; did you mean IMAGENET1K_V1"): weights_file("resnet18", "IMAGENET1K")


# What is the network's


def test_a_deeper_network_of_the_family_is_another():
    "resnet34 has every tensor of resnet18, of the same shape."
    with pytest.raises(ValueError, match="another architecture's"): select_tensors(build("resnet34").state_dict(), build("resnet18").state_dict())


def test_a_node_behind_the_head_needs_it(state, tmp_path):
    torch.save(without(state, *HEAD), tmp_path/"headless.pth")
    torch.save(other_head(state), tmp_path/"classes.pth")
    for name, words in {"headless.pth": r"tensors needed are missing \(fc.weight, fc.bias\)", "classes.pth": "fc.weight is 7 x 128 there, 15 x 128"}.items():
        assert np.isfinite(embed(Backbone(NET, str(tmp_path/name), batch=1), CLIP)).all()
        with pytest.raises(WeightsError, match=words): embed(Backbone(NET, str(tmp_path/name), node="fc", batch=1), CLIP)


def test_a_node_in_the_middle_needs_what_lies_before_it(state, tmp_path):
    torch.save(without(state, "stages.3"), tmp_path/"begun.pth")
    whole = tmp_path/"whole.pth"
    torch.save(state, whole)
    ours, theirs = (embed(Backbone(NET, str(file), node="stages.2", batch=1), CLIP) for file in (tmp_path/"begun.pth", whole))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name, head", [("mobilenet_v2", "classifier.1."), ("swin_t", "head."), ("vit_b_32", "heads.head.")])
def test_the_head_of_other_families(name, head):
    "Attention uses weights of modules that it never calls; the embedding has a gradient for them all the same."
    network = build(name).eval()
    assert set(network.state_dict()) - needed_tensors(network, None, (3, 224, 224)) == {head + "weight", head + "bias"}


@pytest.mark.parametrize("name, today, older", [("densenet121", r".denselayer1.norm1.", ".denselayer1.norm.1."), ("vit_b_32", ".mlp.0.", ".mlp.linear_1.")])
def test_torchvisions_older_names(name, today, older, tmp_path):
    network = build(name, seed=1)
    held = {k.replace(today, older): v for k, v in network.state_dict().items()}
    assert held.keys() != network.state_dict().keys()
    torch.save(held, tmp_path/"older.pth")
    again = load_weights(build(name), tmp_path/"older.pth").state_dict()
    assert all(torch.equal(v, again[k]) for k, v in network.state_dict().items())


# Features that are not finite


def set_of(values: dict[int, float]) -> tuple[list[Units], pd.DataFrame]:
    "Forty made-up videos of two classes, one number of some of them replaced."
    rng = np.random.default_rng(0)
    m = pd.DataFrame([[f"v{i}", f"clips/{i}.mp4", str(i), i % 2, "", "", None] for i in range(40)], columns=COLUMNS).astype({"label": "Int64", "fold": "Int64"})
    units = [Units(c, np.arange(3.), rng.normal(size=(3, 4)).astype(np.float32)) for c in m["content"]]
    for i, value in values.items(): units[i].units[1, 2] = value
    return units, split_manifest(m)


@pytest.mark.parametrize("values, words", [
    ({7: np.nan}, "cnn: the features of clips/7.mp4 hold NaN or infinity"),
    ({9: -np.inf, 12: np.nan}, "clips/9.mp4 hold NaN or infinity, and those of 1 more video"),
    ({i: np.nan for i in range(40)}, "clips/0.mp4 hold NaN or infinity, and those of 39 more videos"), ({5: 3.4e38}, None)])
def test_features_that_are_not_finite_stop_before_training(values, words):
    units, manifest = set_of(values)
    params = check_params({"device": "cpu", "features": {"sift": {}, "cnn": {"weights": "random"}, "cnn3d": {}}, "classifier": {"hidden": 4, "max_epochs": 1}})
    if words is None: train_feature("cnn", units, manifest, ["a", "b"], params)
    else:
        with pytest.raises(FeatureError) as error: train_feature("cnn", units, manifest, ["a", "b"], params)
        assert words in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_pooled_vector_that_is_not_finite_is_named():
    units, manifest = set_of({})
    units[4].units = np.full((3, 4), 3e38, np.float32)  # each is finite, their sum is not
    params = check_params({"device": "cpu"})
    with pytest.raises(FeatureError, match="cnn: the features of clips/4.mp4 hold NaN"): train_feature("cnn", units, manifest, ["a", "b"], params)


# Threads


def test_networks_built_side_by_side_have_their_seeds_weights():
    alone = [build(NET, seed=i).fc.weight for i in range(4)]
    with ThreadPoolExecutor(8) as pool: beside = list(pool.map(lambda i: build(NET, seed=i % 4).fc.weight, range(32)))
    assert all(torch.equal(w, alone[i % 4]) for i, w in enumerate(beside))


def test_threads_build_one_network_once(monkeypatch):
    building, most, made = 0, 0, []

    def slowly(name, **size):
        nonlocal building, most
        building += 1; most = max(most, building); made.append(name)
        time.sleep(0.05)
        building -= 1
        return build(name, **size)

    monkeypatch.setattr(hw2.features.pretrained, "build", slowly)
    backbones, barrier = [Backbone(NET, "random", batch=1), Backbone(NET, "random", batch=1)], threading.Barrier(6)

    def use(i):
        barrier.wait()
        return embed(backbones[i % 2], CLIP)

    with inference_threads(n=6) as pool: vectors = list(pool.map(use, range(6)))
    assert len(made) == 2 and most == 1
    for v in vectors: np.testing.assert_array_equal(v, vectors[0])
    assert isinstance(Backbone.__dict__["network"], locked_cached_property)
