"""Networks by library: cards tell the truth, checkpoints are loaded strictly, from a folder and from a hub, and each mistake is one line"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from hw2.core.cards import CATALOGUE
from hw2.core.params import check_params
from hw2.data.source import load_dataset
from hw2.extraction.extract import extract, read_feature
from hw2.features.backbone import Backbone, Embedder, embed, pretrained
from hw2.features.clips import ClipEmbeddings
from hw2.features.frames import FrameEmbeddings
from hw2.features.networks import WeightsError

hf = pytest.importorskip("transformers", reason="the extra transformers is not installed")
timm = pytest.importorskip("timm", reason="the extra timm is not installed")
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
STATS = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])


def save_checkpoint(folder: Path, model, processor) -> str:
    "A local checkpoint; the backbone's name."
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return f"transformers/{folder}"


def small_videomae(**changes):
    "A VideoMAE with random weights, biases included, and its processor."
    settings = dict(SMALL, image_size=32, num_frames=4, use_mean_pooling=False, decoder_hidden_size=16, decoder_num_attention_heads=2,
                    decoder_intermediate_size=32, decoder_num_hidden_layers=1) | changes
    model = hf.VideoMAEForPreTraining(hf.VideoMAEConfig(**settings))
    with torch.no_grad(): [p.normal_(std=.1) for n, p in model.named_parameters() if n.endswith("bias")]
    return model, hf.VideoMAEVideoProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, **STATS)


@pytest.fixture(scope="module")
def videomae(tmp_path_factory) -> str:
    "The backbone's name of a small checkpoint."
    return save_checkpoint(tmp_path_factory.mktemp("videomae"), *small_videomae())


# Cards

CHECKPOINTS = {  # the class of each checkpoint, its configuration and its processor; transformers' defaults are those of the first networks of each family
    "videomae_base": lambda: (hf.VideoMAEForPreTraining, hf.VideoMAEConfig(use_mean_pooling=False), hf.VideoMAEVideoProcessor(**STATS)),
    "vjepa2_vitl": lambda: (hf.VJEPA2Model, hf.VJEPA2Config(), hf.VJEPA2VideoProcessor()),
    "xclip_base": lambda: (hf.XCLIPModel, hf.XCLIPConfig(), hf.VideoMAEImageProcessor(**STATS))}


@pytest.mark.parametrize("name", [name for name, card in CATALOGUE.items() if card.library in ("hw2", "torchvision", "timm", "transformers")])
def test_a_card_states_what_the_network_has(name, tmp_path, monkeypatch):
    card = CATALOGUE[name]
    entry, weights = card.entry, "bundled" if card.entry["weights"] == "bundled" else "random"
    backbone = entry["backbone"]
    if card.library == "transformers":
        made_by, config, processor = CHECKPOINTS[name]()
        config.architectures, backbone = [made_by.__name__], f"transformers/{tmp_path}"
        config.save_pretrained(tmp_path); processor.save_pretrained(tmp_path)
    monkeypatch.setattr(torch, "autocast", lambda *given, **more: contextlib.nullcontext())  # knows no meta device
    spec = Backbone(backbone, weights, preprocess=entry.get("preprocess"))
    with torch.device("meta"): network = spec.library.build().to("meta").eval().requires_grad_(False)
    embedder = Embedder(network, spec.where, spec.transform).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter: vector = embedder(torch.zeros(1, *spec.shape, dtype=torch.uint8, device="meta"))
    assert (vector.shape, sum(p.numel() for p in network.parameters())) == ((1, card.dim), card.parameters)
    assert (spec.library.frames or 1, spec.shape[-2:], entry["kind"] == "clips") == (card.frames, card.size, spec.clips)
    assert np.allclose([spec.transform.mean, spec.transform.std], [card.mean, card.std])
    assert counter.get_total_flops() / 1e9 == pytest.approx(card.gflop, rel=6e-3)
    assert all([card.licence, card.trained_on, card.paper])


# One seam

@pytest.mark.parametrize("name, engine", [*((name, engine) for name in ("timm/test_vit", "timm/test_convnext", "videomae") for engine in ("eager", "openvino")),
                                          ("videomae", "compile")])
def test_every_engine_gives_the_librarys_vector(name, engine, videomae):
    if engine == "openvino": pytest.importorskip("openvino")
    backbone = Backbone(videomae if name == "videomae" else name, "pretrained" if name == "videomae" else "random", batch=2, engine=engine)
    x = np.random.default_rng(0).integers(0, 256, (2, *backbone.shape), np.uint8)
    mean, std = (torch.tensor(v).view(1, 3, *[1] * (x.ndim - 2)) for v in (backbone.transform.mean, backbone.transform.std))
    pixels, network = (torch.from_numpy(x) / 255 - mean) / std, backbone.network.model
    with torch.inference_mode():
        if name == "videomae": expected = network.videomae(pixels.transpose(1, 2)).last_hidden_state.mean(1)
        else: expected = network.forward_head(network.forward_features(pixels), pre_logits=True)
    np.testing.assert_allclose(embed(backbone, x), expected, atol=1e-5 * float(expected.abs().max()))


def test_a_process_compiles_more_networks_than_torch_allows_by_itself(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 160, 160), np.uint8)
    for name in ("test_vit", "test_vit2"):
        vectors = [embed(Backbone(f"timm/{name}", "random", batch=1, engine=engine), x) for engine in ("eager", "compile")]
        np.testing.assert_allclose(*vectors, atol=1e-4 * np.abs(vectors[0]).max())


def test_the_key_has_the_library_and_all_the_files_of_a_checkpoint(videomae, tmp_path):
    assert Backbone("timm/test_vit", "random").key()["timm"] == timm.__version__
    folder = videomae.removeprefix("transformers/")
    key = Backbone(videomae, "pretrained").key()
    assert key["transformers"] == hf.__version__ and "timm" not in key and "transformers" not in Backbone("resnet18", "random").key()
    other, processor = small_videomae(hidden_act="relu")
    other.load_state_dict(hf.VideoMAEForPreTraining.from_pretrained(folder).state_dict())
    changed = Backbone(save_checkpoint(tmp_path, other, processor), "pretrained").key()  # the same weights
    assert {k for k in key if key[k] != changed[k]} == {"backbone", "weights"}


def test_a_node_is_named_as_the_library_names_it(videomae):
    x = np.zeros((1, 3, 160, 160), np.uint8)
    tokens = embed(Backbone("timm/test_vit", "random", node="blocks.1", batch=1), x)
    assert tokens.shape == (1, 64) and not np.allclose(tokens, embed(Backbone("timm/test_vit", "random", batch=1), x))
    clip = np.zeros((1, 3, 4, 32, 32), np.uint8)
    assert embed(Backbone(videomae, "pretrained", node="videomae.encoder.layer.0", batch=1), clip).shape == (1, 32)
    with pytest.raises(WeightsError, match="node 'model.blocks.99' is unknown"): _ = Backbone("timm/test_vit", "random", node="blocks.99").network
    with pytest.raises(WeightsError, match="the node gives no tensor but a tuple; name another"):
        embed(Backbone(videomae, "pretrained", node="videomae.encoder.layer.0.attention.attention", batch=1), clip)


def test_an_extraction_with_networks_of_both(tiny_demo, videomae, tmp_path):
    save_file(timm.create_model("test_vit").state_dict(), tmp_path/"vit.safetensors")
    features = {"vit": {"kind": "frames", "backbone": "timm/test_vit", "weights": str(tmp_path/"vit.safetensors"), "fps": 1},
                "mae": {"kind": "clips", "backbone": videomae, "weights": "pretrained", "clip_fps": 4, "n_clips": 1}}
    params = check_params({"data": str(tiny_demo), "features": features, "device": "cpu", "workers": 2, "cache": str(tmp_path/"cache")})
    dataset = load_dataset(params)
    assert extract(dataset, params).empty
    vit, mae = (read_feature(f, params, dataset.manifest) for f in features)
    assert {u.units.shape for u in vit} == {(2, 64)} and {u.units.shape for u in mae} == {(1, 32)}
    assert len({u.units.tobytes() for u in mae}) > 90


# A hub on this machine

class Hub(SimpleHTTPRequestHandler):
    "What the client asks of the hub, answered from folders OWNER/NAME; a repository named `gated` is."
    asked: list[str] = []

    def do_HEAD(self): self.answer(body=False)

    def do_GET(self): self.answer(body=True)

    def answer(self, body: bool):
        parts = self.path.split("?")[0].strip("/").split("/")
        if body: self.asked.append(self.path)
        if parts[:2] == ["api", "models"]:
            return self.send(200, json.dumps({"id": "/".join(parts[2:4]), "cardData": {"license": "cc-by-nc-4.0"}, "siblings": [], "tags": []}).encode(), body)
        repository, file = Path(self.directory, *parts[:2]), Path(self.directory, *parts[:2], *parts[4:])
        if parts[1] == "gated": return self.send(403, b"", body, **{"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        if not repository.is_dir(): return self.send(401, b"", body, **{"X-Error-Code": "RepoNotFound"})
        if not file.is_file(): return self.send(404, b"", body, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40})
        return self.send(200, file.read_bytes(), body, ETag=f'"{file.stat().st_size:040x}"', **{"X-Repo-Commit": "0" * 40})

    def send(self, status: int, content: bytes, body: bool, **headers: str):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items(): self.send_header(name, value)
        self.end_headers()
        if body: self.wfile.write(content)

    def log_message(self, *given): "No log."


@pytest.fixture(scope="module")
def hub(tmp_path_factory, videomae):
    "A hub with a VideoMAE, timm's smallest network and a repository of a pickle; its address, and what was asked of it."
    root = tmp_path_factory.mktemp("hub")
    (root/"small").mkdir()
    os.symlink(videomae.removeprefix("transformers/"), root/"small/videomae")
    (root/"timm/test_vit.r160_in1k").mkdir(parents=True)
    save_file(timm.create_model("test_vit").state_dict(), root/"timm/test_vit.r160_in1k/model.safetensors")
    save_checkpoint(root/"small/pickled", *small_videomae())
    (root/"small/pickled/model.safetensors").rename(root/"small/pickled/pytorch_model.bin")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown(); server.server_close()


def in_process(code: str, home: Path, **variables: str):
    "What the code prints as JSON, and what it writes to the terminal; the hub's client reads its settings when it is imported."
    head = ("import json, sys, time\ntime.sleep = lambda s: None  # between tries\nimport numpy as np\nfrom hw2.features.backbone import Backbone, embed\n"
            "def said(*given):\n    try: embed(Backbone(*given, batch=1), np.zeros((1, 3, 4, 32, 32), np.uint8))\n    except ValueError as e: return str(e)\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HF_HOME": str(home), "no_proxy": "127.0.0.1"} | variables
    done = subprocess.run([sys.executable, "-c", head + code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


BOTH = ("vectors = [embed(Backbone('transformers/small/videomae', 'pretrained', batch=1), np.full((1, 3, 4, 32, 32), 9, np.uint8)).tolist(),\n"
        "           embed(Backbone('timm/test_vit', 'pretrained', batch=1), np.full((1, 3, 160, 160), 9, np.uint8)).tolist()]\nprint(json.dumps(vectors))")


def test_networks_are_fetched_once_and_their_licence_is_told_before(hub, videomae, tmp_path):
    address, root = hub
    Hub.asked.clear()
    vectors, said = in_process(BOTH, tmp_path, HF_ENDPOINT=address)
    assert "small/videomae: licence cc-by-nc-4.0, which is not free for every use; read it at the hub first" in said
    asked = [p.split("?")[0] for p in Hub.asked]
    licence, weights = asked.index("/api/models/small/videomae"), next(i for i, p in enumerate(asked) if p.endswith("model.safetensors"))
    assert licence < weights and all("videomae" in asked[i] for i in (licence, weights))
    clip, frame = np.full((1, 3, 4, 32, 32), 9, np.uint8), np.full((1, 3, 160, 160), 9, np.uint8)
    np.testing.assert_array_equal(vectors[0], embed(Backbone(videomae, "pretrained", batch=1), clip))
    file = str(root/"timm/test_vit.r160_in1k/model.safetensors")
    np.testing.assert_array_equal(vectors[1], embed(Backbone("timm/test_vit", file, batch=1), frame))
    Hub.asked.clear()
    again, said = in_process(BOTH, tmp_path, HF_ENDPOINT=address)
    assert again == vectors and not any("model" in p for p in Hub.asked) and "licence" not in said
    assert in_process(BOTH, tmp_path, HF_HUB_OFFLINE="1")[0] == vectors


def test_what_the_hub_does_not_give_is_one_line(hub, tmp_path):
    address, _ = hub
    names = ["transformers/small/gated", "transformers/small/none", "transformers/small/pickled"]
    lines, _ = in_process(f"print(json.dumps([said(n, 'pretrained') for n in {names}]))", tmp_path, HF_ENDPOINT=address)
    gated = "small/gated is gated: accept its licence at https://huggingface.co/small/gated, then run `hf auth login`"
    assert lines[:2] == [gated, "small/none is not on the hub, or private: check its name, or run `hf auth login`"]
    assert lines[2].startswith("small/pickled has no model.safetensors; a revision with safetensors is named by small/pickled@REVISION")
    for variables, why in [({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")]:
        code = "print(json.dumps([said('transformers/small/x', 'pretrained'), said('timm/test_vit', 'pretrained')]))"
        (line, other), _ = in_process(code, tmp_path, **variables)
        assert f"processor_config.json of small/x is not here and cannot be downloaded ({why}). Run `hf download small/x`" in line
        assert f"model.safetensors of timm/test_vit.r160_in1k is not here and cannot be downloaded ({why})" in other


# Bad input

def test_a_checkpoint_in_pieces_is_read_whole_or_not_at_all(tmp_path):
    model, processor = small_videomae()
    model.save_pretrained(tmp_path, max_shard_size="40KB"); processor.save_pretrained(tmp_path)
    name, x = f"transformers/{tmp_path}", np.full((1, 3, 4, 32, 32), 9, np.uint8)
    pieces = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(pieces) > 2
    whole = save_checkpoint(tmp_path/"whole", model, processor)
    np.testing.assert_array_equal(embed(Backbone(name, "pretrained", batch=1), x), embed(Backbone(whole, "pretrained", batch=1), x))
    key = Backbone(name, "pretrained").key()
    held = load_file(pieces[1])
    save_file({k: v + 1 for k, v in held.items()}, pieces[1], {"format": "pt"})
    assert Backbone(name, "pretrained").key()["weights"] != key["weights"]
    pieces[1].unlink()
    with pytest.raises(WeightsError, match=f"{pieces[1].name} is missing: model.safetensors.index.json names it"): _ = Backbone(name, "pretrained").file


def test_a_file_of_ones_own_needs_no_head(tmp_path):
    state, x = timm.create_model("test_vit").state_dict(), np.full((1, 3, 160, 160), 9, np.uint8)
    vectors = []
    for name, held in {"full": state, "headless": {f"module.{k}": v for k, v in state.items() if not k.startswith("head.")}}.items():
        save_file(held, tmp_path/f"{name}.safetensors")
        vectors.append(embed(Backbone("timm/test_vit", str(tmp_path/f"{name}.safetensors"), batch=1), x))
    np.testing.assert_array_equal(*vectors)
    save_file({k: v for k, v in state.items() if k != "norm.bias"}, tmp_path/"less.safetensors")
    with pytest.raises(WeightsError, match="less.safetensors does not fit VisionTransformer: .*norm.bias"):
        _ = Backbone("timm/test_vit", str(tmp_path/"less.safetensors")).network


@pytest.mark.parametrize("name, weights, words", [
    ("timm/vit_small_patch14_dinov3", "pretrained", "timm model 'vit_small_patch14_dinov3' is unknown; did you mean vit_small_patch1"),
    ("timm/test_vit.lvd142m", "pretrained", "tag of test_vit 'lvd142m' is unknown; did you mean r160_in1k"),
    ("timm/test_vit", "bundled", "weights 'bundled': known for timm/test_vit: pretrained, a file or random"),
    ("timm/test_vit", "none.safetensors", "none.safetensors: no such weights file"),
    ("transformers/nowhere", "pretrained", "transformers/nowhere: no such folder, and no repository, which is written owner/name"),
    ("transformers/./nowhere/at/all", "pretrained", "no such folder, and no repository"),
    ("openclip/ViT-B-16", "pretrained", "library 'openclip' is unknown; a bare name is torchvision's; others are timm/NAME and transformers/OWNER/NAME"),
])
def test_a_network_that_nobody_knows(name, weights, words):
    with pytest.raises(WeightsError) as error: _ = Backbone(name, weights).file
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    said = lambda weights="random": pytest.raises(WeightsError, pretrained, f"transformers/{tmp_path}", weights).value.args[0]
    assert said() == f"{tmp_path} has no config.json; save the network there with model.save_pretrained"
    model, processor = small_videomae()
    model.save_pretrained(tmp_path)
    assert said().startswith(f"{tmp_path} has no preprocessor_config.json; save the processor there")
    processor.save_pretrained(tmp_path)
    (tmp_path/"model.safetensors").rename(tmp_path/"pytorch_model.bin")
    with pytest.raises(WeightsError) as error: pretrained(f"transformers/{tmp_path}", "pretrained").file()
    assert str(error.value).startswith(f"{tmp_path} has no model.safetensors") and "its .bin file is a pickle, which is not read" in str(error.value)
    config = json.loads((tmp_path/"config.json").read_text())
    (tmp_path/"config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "own"}))
    assert "its configuration cannot be read" in said()  # and code.py is not looked for
    (tmp_path/"config.json").write_text("{")
    assert "its configuration cannot be read" in said()


def test_a_network_that_gives_no_vector(tmp_path):
    config = hf.SegformerConfig(num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[16], patch_sizes=[7], strides=[4], num_attention_heads=[1],
                                mlp_ratios=[2], decoder_hidden_size=16)
    name = save_checkpoint(tmp_path, hf.SegformerForSemanticSegmentation(config), hf.SegformerImageProcessor(size={"height": 64, "width": 64}, **STATS))
    with pytest.raises(WeightsError, match="SegformerForSemanticSegmentation gives no vector"): FrameEmbeddings(Backbone(name, "pretrained")).ready()


def test_a_clip_that_the_network_cannot_take(tmp_path, monkeypatch):
    monkeypatch.setattr("hw2.features.pretrained.clip_frames", lambda name: 4)
    with pytest.raises(WeightsError, match="s3d does not accept clips of 3 x 4 x 224 x 224: "): ClipEmbeddings(Backbone("s3d", "random")).ready()
    model, processor = small_videomae()
    processor.crop_size = {"height": 48, "width": 48}
    name = save_checkpoint(tmp_path, model, processor)
    with pytest.raises(WeightsError, match="does not accept clips of 3 x 4 x 48 x 48: "): ClipEmbeddings(Backbone(name, "pretrained")).ready()
    with pytest.raises(WeightsError, match="is a network for clips, not frames"): FrameEmbeddings(Backbone(name, "pretrained"))
