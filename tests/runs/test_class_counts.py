"""Sets that are not like the demo: two classes, one of them short of videos; a hundred and one classes. The report reads well on each"""

import html
import re

import numpy as np
import pandas as pd
import pytest

from hw2.data.probe import write_video

NAMES = {2: ["<b>bold</b> & $x$", "a|b"], 101: [f"class number {k}" for k in range(101)]}


@pytest.fixture(scope="module", params=NAMES, ids="{} classes".format)
def reported(request, tmp_path_factory, invoke):
    "A run with SIFT and the small 2-D network on that many classes: (their names, its folder)."
    k, home, rng = request.param, tmp_path_factory.mktemp("sizes"), np.random.default_rng(request.param)
    rows = []
    for label, name in enumerate(NAMES[k]):
        texture = np.kron(rng.integers(0, 255, (8, 8, 3), np.uint8), np.ones((12, 12, 1), np.uint8))
        counts = {"train": 2 if k > 2 else 6, "val": 1 if k > 2 else 4, "test": 1}
        for i, split in enumerate(s for s, n in counts.items() for _ in range(1 if k == 2 and label else n)):
            frames = np.stack([np.roll(texture, i + t, 1) for t in range(8)])
            rows.append((write_video(home/f"set/{label}_{i}.mp4", frames, fps=8).name, name, split))
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(home/"set/set.csv", index=False)
    (home/"set.yaml").write_text("data: set/set.csv\nform: csv\nfeatures: {sift: {fps: 2, words: 8}, cnn: {like: convnext_mini, fps: 2}}\ndevice: cpu\n"
                                 "classifier: {max_epochs: 3, seeds: [0, 1]}\ncache: cache\n")
    done = invoke("run", "--params", "set.yaml", cwd=home)
    assert done.returncode == 0, done.stderr
    return NAMES[k], home/"runs/set"


def test_the_report_names_every_class_as_it_is(reported):
    names, run = reported
    page = (run/"report.html").read_text(encoding="utf-8")
    body = re.sub(r"<pre>.*?</pre>", "", page, flags=re.S)  # sources of tables are escaped in their own ways
    assert all(html.escape(name, quote=False) in body for name in names)
    assert "<b>bold" not in page and "Traceback" not in page and not re.search(r"\bnan\b", re.sub(r"<[^>]*>", " ", body), re.I)


def test_what_few_videos_mean_is_said(reported):
    names, run = reported
    page = (run/"report.html").read_text(encoding="utf-8")
    assert re.search(r"Both classes have fewer than 10 training videos|Every class has only \d training videos", page)
    room = page[page.index("<h3>Which differences are real?"):page.index("<h3>What does fusion gain?")]
    verdicts = ["is better than" if r.p_holm < .05 else "are not distinguishable" if r.only_a or r.only_b else "classify the same videos"
                for r in pd.read_csv(run/"figures/differences.csv").itertuples()]
    assert re.findall("is better than|are not distinguishable|classify the same videos", room) == verdicts and len(verdicts) == 2


def test_the_page_stays_small(reported):
    assert (reported[1]/"report.html").stat().st_size < 8e6
