"""Pretraining shares no motion code, no region of a photograph, no seed and no video with the demo set"""

import ast
import inspect
import json
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import hw2.pretraining.clips
import hw2.pretraining.frames
import hw2.pretraining.shapes
import hw2.pretraining.training
from hw2.core.files import ROOT
from hw2.demo.sprites import CREDITS, SPLITS, photograph, region
from hw2.demo.videos import CLASSES
from hw2.features.backbone import Backbone, embed
from hw2.features.networks import WeightsError
from hw2.features.weights import WEIGHTS
from hw2.pretraining.clips import ACTORS, CLIP_QUESTIONS, EVENTS, event_answer, reversed_answers
from hw2.pretraining.frames import FORMS, FRAME_QUESTIONS
from hw2.pretraining.training import RECIPES, ClipDataset, FrameDataset
from hw2.run.cli import execute

DRAWING = {"CREDITS", "photograph", "region", "Placement", "paste", "sprite_pyramid"}  # all that both use


def test_pretraining_imports_only_sprites_from_the_demo():
    code = "import sys, hw2.pretraining.training; print(*(m for m in sys.modules if m.startswith('hw2.demo.')))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split() == ["hw2.demo.sprites"]


@pytest.mark.parametrize("module", [hw2.pretraining.shapes, hw2.pretraining.clips, hw2.pretraining.frames, hw2.pretraining.training])
def test_of_sprites_only_photographs_and_pasting_are_used(module):
    tree = ast.parse(inspect.getsource(module))
    froms = [((n.module or "").removeprefix("hw2."), {a.name for a in n.names}) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not any("demo" in a.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names)
    assert not any("demo" in n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and str(n.value).startswith("hw2."))
    froms = [(m, names) for m, names in froms if m.split(".")[0] == "demo"]
    assert {m for m, _ in froms} <= {"demo.sprites"} and {name for _, names in froms for name in names} <= DRAWING
    assert froms or module not in {hw2.pretraining.shapes, hw2.pretraining.clips, hw2.pretraining.frames}  # the check finds imports at all


@pytest.mark.parametrize("name", CREDITS.photograph)
def test_no_pixel_of_a_photograph_is_in_both(name, monkeypatch):
    shape, requests = photograph(name).shape[:2], []
    monkeypatch.setattr(hw2.pretraining.shapes, "region", lambda *a: requests.append(a) or region(*a))
    hw2.pretraining.shapes.texture(np.random.default_rng(0), name, 20, 20)
    assert requests == [(name, "pretext")]
    masks = {split: np.zeros(shape, bool) for split in (*SPLITS, "pretext")}
    for split, mask in masks.items():
        top, left, bottom, right = region(name, split)
        mask[top:bottom, left:right] = True
    assert not any((masks["pretext"] & masks[split]).any() for split in SPLITS) and masks["pretext"].sum() > 10_000


def test_no_seed_is_used_in_both():
    "numpy pads seed lists with zeros: [0, 1, 2] and [0, 1, 2, 0] are the same seed, so pretraining uses spawn keys."
    demo = {np.random.default_rng([s, split, k, i]).integers(2**63) for s in range(2) for split in range(3) for k in range(len(CLASSES)) for i in range(40)}
    pretext = {hw2.pretraining.training._generator(s, stream, i).integers(2**63) for s in range(2) for stream in (1, 2) for i in range(2000)}
    assert len(demo) == 2 * 3 * 15 * 40 and len(pretext) == 8000 and not demo & pretext
    assert np.random.default_rng([0, 1, 2]).integers(2**63) in demo  # a collision would be found


@pytest.mark.parametrize("data, questions", [(ClipDataset(300, seed=8), CLIP_QUESTIONS), (FrameDataset(300, seed=8), FRAME_QUESTIONS)])
def test_answers_are_valid_indices(data, questions):
    answers = np.array([list(data.draw(i)[1].values()) for i in range(200)])
    assert (answers >= -1).all() and (answers < [len(a) for a in questions.values()]).all()
    assert (np.sort(answers, 0)[-1] > 0).all()  # no question always has its first answer


def test_reversed_answers_agree_with_the_event_of_the_reversed_clip():
    "If the first answer stayed the same, training would teach that the order of frames is irrelevant."
    drawn = [a for a in (ClipDataset(1).draw(i)[1] for i in range(600)) if a["happens"] >= 0]
    drawn = [a for a in drawn if ACTORS[a["actor"]] != "sheet"]  # its event also depends on "travels", which is not a question
    assert all(event_answer(reversed_answers(a)) == reversed_answers(a)["happens"] for a in drawn)
    changed = {EVENTS[a["happens"]] for a in drawn if reversed_answers(a)["happens"] != a["happens"]}
    assert {"go right", "spin clockwise", "grow larger", "crowd outward", "panel left", "camera right"} <= changed


def test_an_item_depends_only_on_its_seed_and_number():
    a, b = ClipDataset(10, seed=5).draw(7), ClipDataset(10, seed=5).draw(7)
    assert np.array_equal(a[0], b[0]) and a[1] == b[1]
    assert not np.array_equal(a[0], ClipDataset(10, seed=6).draw(7)[0])


def motion(clip: np.ndarray) -> np.ndarray:
    "The mean shift of the picture between frames by phase correlation, (2,) pixels right and down."
    grey = clip.mean(3).astype(np.float32)
    window = cv2.createHanningWindow(grey.shape[:0:-1], cv2.CV_32F)
    return np.mean([cv2.phaseCorrelate(a, b, window)[0] for a, b in zip(grey, grey[1:])], 0)


def test_a_camera_that_moves_right_moves_the_picture_left():
    "In at least 85 % of the clips: phase correlation fails on a uniform dark background."
    data = ClipDataset(600, seed=2, without=("thing", "crowd", "sheet", "panel", "figure"))
    moves = [motion(clip)[0] for clip, answers in map(data.draw, range(600)) if EVENTS[answers["happens"]] == "camera right"]
    assert len(moves) > 40 and np.mean(np.array(moves) < 0) > 0.85


def test_what_is_left_out_does_not_happen():
    clips = [ClipDataset(200, without=("spin", "grow", "crowd", "camera")).draw(i)[1] for i in range(200)]
    assert not any(a["spin"] > 0 or a["grow"] > 0 or a["crowd"] >= 0 or a["camera"] > 0 for a in clips)
    assert any(a["go"] > 0 for a in clips)
    frames = [FrameDataset(200, without=("crowd", "rods", "panel", "sheet")).draw(i)[1] for i in range(200)]
    assert not any(a["count"] > 3 or a["rods"] or a["panel"] or a["form"] == FORMS.index("sheet") for a in frames)


# The experiment that writes the weights


@pytest.mark.parametrize("name, dim, shape, items", [("convnext_mini", 256, (3, 96, 96), 64), ("r2plus1d_mini", 128, (3, 16, 64, 64), 16)])  # a batch
def test_pretrain_writes_a_network_that_loads(tmp_path, name, dim, shape, items):
    execute(ROOT/"nbs/experiments/pretrain.ipynb", tmp_path/"pretrain.ipynb", dict(network=name, out=str(tmp_path/"weights"), items=items, workers=1, seed=3))
    file = tmp_path/"weights"/f"{name}.safetensors"
    backbone, facts = Backbone(name, str(file), batch=2), json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert file.stat().st_size <= 4e6 and facts["architecture"] == name and facts["seed"] == 3 and facts["seconds"] > 0
    assert all(v.dtype in {torch.float16, torch.int64} for v in load_file(file).values())
    assert embed(backbone, np.zeros((1, *shape), np.float32)).shape == (1, dim)
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(WeightsError, match=f"{name}.safetensors is damaged: its hash is"): Backbone(name, str(file))


# The bundled networks


@pytest.mark.parametrize("name", ["convnext_mini", "r2plus1d_mini"])
def test_a_bundled_network_has_the_accuracy_in_its_sidecar(name):
    "On items with numbers beyond those of the training, so the network is not trained on them."
    backbone, facts = Backbone(name, "bundled"), json.loads((WEIGHTS/f"{name}.json").read_text(encoding="utf-8"))
    assert backbone.file.stat().st_size <= 4e6
    assert not facts["without"] and facts["training_data"] and facts["seconds"] < 90 * 60
    dataset, n, _ = RECIPES[name]
    data = dataset(n + 300, facts["seed"])
    first, answers = next(iter(data.questions.items()))
    assert facts["questions"] == {q: list(a) for q, a in data.questions.items()}
    drawn = [item for item in map(data.draw, range(n, n + 300)) if item[1][first] >= 0]
    x = torch.from_numpy(np.moveaxis(np.stack([x for x, _ in drawn]), -1, 1)).float() / 255  # (n, 3, [16,] h, w)
    mean, std = (torch.tensor(v).view(3, *[1] * (x.ndim - 2)) for v in (backbone.transform.mean, backbone.transform.std))
    with torch.inference_mode(): logits = torch.cat([backbone.network((batch - mean) / std) for batch in x.split(30)])
    accuracy = (logits[:, :len(answers)].argmax(1).numpy() == [a[first] for _, a in drawn]).mean()
    assert accuracy == pytest.approx(facts["right_answers"][first], abs=0.12)


def test_docs_have_the_results_of_the_network_pretrained_without_most_motions():
    twin = pd.read_csv(WEIGHTS/"without.csv").set_index("videos")
    assert set(twin["without"]["val"].split(", ")) <= {*ACTORS, "spin", "grow", "flicker", "camera"} and (twin["seeds"] == 5).all()
    text = (ROOT/"docs/pretraining.md").read_text(encoding="utf-8")
    assert f"reaches {twin['mean']['val']:.3f} on the validation and {twin['mean']['test']:.3f} on the test videos (means of five seeds)" in text
