"""`import hw2` costs next to nothing, sets up the threads before torch is loaded, and has its names when they are asked for"""

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import av
import pytest

import hw2
from hw2.features.backbone import Backbone

NAMES = {"Run": "hw2.run.run", "load": "hw2.run.run", "SIFT": "hw2.features.sift", "BagOfWords": "hw2.features.sift",
         "FrameEmbeddings": "hw2.features.frames", "ClipEmbeddings": "hw2.features.clips", "MLP": "hw2.classifier.mlp"}  # and the module where each is made
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "MKL_CBWR": "AUTO"}


def in_new_process(code: str, **variables: str):
    "What the code prints as JSON, in a process without the variables that hw2 sets."
    environment = {k: v for k, v in os.environ.items() if k not in THREADS} | variables
    return json.loads(subprocess.run([sys.executable, "-c", f"import json, os, sys, time\n{code}"], env=environment, check=True, capture_output=True).stdout)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_one_of_its_module(name):
    found = getattr(hw2, name)
    assert found is getattr(import_module(NAMES[name]), name) and (found.__module__, found.__name__) == (NAMES[name], name)


def test_the_catalogue_is_a_module():
    assert hw2.catalogue is import_module("hw2.features.catalogue")


def test_these_names_and_no_others():
    assert sorted(hw2.__all__) == sorted([*NAMES, "catalogue"])
    with pytest.raises(AttributeError, match="module 'hw2' has no attribute 'Rnu'"): hw2.__getattr__("Rnu")
    assert not hasattr(hw2, "__path") and "__version__" in dir(hw2)


def test_importing_takes_less_than_a_third_of_a_second():
    "The best of three: another process may have the core."
    code = "start = time.perf_counter(); import hw2; print(json.dumps(time.perf_counter() - start))"
    assert min(in_new_process(code) for _ in range(3)) < .3


def test_a_name_costs_nothing_before_it_is_used():
    code = ("before = set(sys.modules); import hw2; new = sorted(set(sys.modules) - before); listed = dir(hw2); hw2.SIFT\n"
            "print(json.dumps([new, listed, 'hw2.features.sift' in sys.modules]))")
    new, listed, there = in_new_process(code)
    assert [m for m in new if m.split(".")[0] not in sys.stdlib_module_names] == ["hw2"] and there
    assert {*NAMES, "catalogue"} <= set(listed)


@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"MKL_CBWR": "COMPATIBLE"}])
def test_threads_are_set_up_before_torch_unless_somebody_did(chosen):
    code = f"import hw2; print(json.dumps([{{k: os.environ[k] for k in {list(THREADS)}}}, 'torch' in sys.modules]))"
    assert in_new_process(code, **chosen) == [THREADS | chosen, False]


ABSENT = ["av", "cv2", "huggingface_hub", "pandas", "psutil", "pydantic", "sklearn", "timm", "tqdm", "transformers", "yaml"]


def test_networks_run_where_only_torch_is_installed():
    "The modules that compute networks import torch, torchvision, numpy and safetensors; a batch of frames from memory goes through one."
    code = (f"sys.modules.update(dict.fromkeys({ABSENT}))\nimport numpy as np\n"
            "from hw2.features import backbone, base, checkpoint, engine, hub, networks, package_index, pretrained, weights\n"
            "network = backbone.Backbone('convnext_mini', 'bundled', batch=4)\n"
            "frames = [network.prepare(f) for f in np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), np.uint8)]\n"
            "not_needed = sorted(m for m in sys.modules if m.startswith('hw2.data') or m == 'torch._dynamo')\n"  # torch's compiler: a second
            "print(json.dumps([backbone.embed(network, np.stack(frames)).shape, network.key(), not_needed]))")
    shape, key, not_needed = in_new_process(code)
    assert (shape, not_needed) == ([3, 256], [])
    assert key == Backbone("convnext_mini", "bundled", batch=4).key() and key["av"] == version("av") == av.__version__


def test_timm_and_transformers_are_imported_for_their_own_networks_only():
    "The catalogue's other features, the list of them and what a report asks of their weights do without; an entry of timm's names the extra."
    code = ("sys.modules.update(dict.fromkeys(['timm', 'transformers', 'huggingface_hub'])); import importlib.util as util\n"
            "here = util.find_spec; util.find_spec = lambda name, *more: None if name in ('timm', 'transformers') else here(name, *more)\n"
            "import hw2\nfrom hw2.classifier.zero_shot import categories\nfrom hw2.core.cards import CATALOGUE\nfrom hw2.core.params import check_params\n"
            "from hw2.features.backbone import Backbone\nfrom hw2.features.catalogue import availability, extractors_of\n"
            "extractors_of(check_params({'features': ['sift', 'convnext_mini', 'r2plus1d_mini', 'swin3d_t'], 'device': 'cpu'}))\n"
            "try: Backbone('timm/test_vit', 'random')\nexcept ValueError as e: said = str(e)\n"
            "known = [len(categories(*(CATALOGUE[f].entry[k] for k in ('backbone', 'weights')))) for f in ('xclip_base', 'dinov2_small')]\n"
            "print(json.dumps([said, known, [availability(CATALOGUE[f].entry) for f in ('dinov2_small', 'xclip_base')]]))")
    said, known, here = in_new_process(code)
    assert said == "timm/test_vit needs timm, which is not installed: pip install -c constraints.txt -e '.[timm]'"
    assert (known, here) == ([400, 0], ["after pip install 'hw2[timm]'", "after pip install 'hw2[transformers]'"])
