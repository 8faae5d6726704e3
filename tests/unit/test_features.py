"""Every extractor and every pooler keeps the protocols of `hw2.features.base`"""

import numpy as np
import pytest

from hw2.core.params import check_params, read_params
from hw2.data.probe import write_video
from hw2.data.thumbnails import Thumbnails
from hw2.demo.videos import FPS, draw_video
from hw2.extraction.fusion import pooler_of
from hw2.features.base import check_extractor, check_pooler
from hw2.features.catalogue import extractors_of

PARAMS = check_params({"device": "cpu", "features": {"sift": {"fps": 4, "words": 8}, "cnn": {"fps": 4, "backbone": "convnext_mini", "weights": "random"},
                                                     "cnn3d": {"clip_fps": 8, "n_clips": 2, "backbone": "r2plus1d_mini", "weights": "random"}}})
FEATURES = list(PARAMS["features"])


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    "Two drawn videos and one of a single frame."
    folder = tmp_path_factory.mktemp("films")
    films = [write_video(folder/f"{name}.mp4", draw_video(name, "train", 0), FPS) for name in ("mill_cw", "wheel_right")]
    return [*films, write_video(folder/"short.mp4", draw_video("mill_cw", "train", 1)[:1], FPS)]


@pytest.fixture(scope="module")
def units(films):
    "By feature: the units of each film; the extractors are checked on the way."
    return {f: [check_extractor(e, film) for film in films] for f, e in extractors_of(PARAMS).items()}


@pytest.mark.parametrize("feature", FEATURES)
def test_every_extractor_keeps_the_protocol(feature, units):
    assert [u.shape[1:] for u in units[feature]] == [units[feature][0].shape[1:]] * 3 and len(units[feature][2]) == (2 if feature == "cnn3d" else 1)


def test_thumbnails_are_an_extractor_though_their_wing_may_not_import_the_protocol(films):
    assert check_extractor(Thumbnails(), films[0]).dtype == np.uint8


@pytest.mark.parametrize("norm", ["none", "l1", "hellinger"])
@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("feature", [*PARAMS["features"], "early"])
def test_every_pooler_keeps_the_protocol(feature, pool, norm, units):
    params = read_params(PARAMS, {"features": {f: {"pool": pool} for f in PARAMS["features"]} | {"sift": {"norm": norm, "pool": pool}}})
    videos = [dict(zip(PARAMS["features"], video)) for video in zip(*(units[f] for f in PARAMS["features"]))] if feature == "early" else units[feature]
    X = check_pooler(lambda: pooler_of(feature, params), videos)
    assert X.shape == (3, {"sift": 8, "cnn": 256, "cnn3d": 128, "early": 392}[feature])
