"""Names of classes and videos that would be HTML, Markdown, formulas or paths: they are text everywhere"""

import csv
import shutil

HOSTILE = ["<script>alert(1)</script>", "../../escape", "a|b \"c\" & 'd' `e` $f$", "{{ 7 * 7 }} [x](javascript:alert(2)) ![i](http://127.0.0.1:9/i.png)"]


def test_class_names_and_ids_are_text_everywhere(tiny_demo, tmp_path, invoke):
    "Whatever they are, they become no path, no cell and no HTML."
    home = tmp_path/"home"
    videos = sorted((tiny_demo/"videos").glob("*.mp4"))[:24]
    ids = [f"<img src=x onerror=alert({i})>|`{{{i}}}`" for i in range(24)]
    for folder in ("set/videos", "set/labels"): (home/folder).mkdir(parents=True)
    for id, path in zip(ids, videos): shutil.copy(path, home/f"set/videos/{id}.mp4")
    (home/f"set/videos/{ids[0]}.mp4").write_text("no video")
    tables = {"cls_map": [("Label", "Category"), *enumerate(HOSTILE)], "train_val": [("Id", "Category"), *((id, i % 4) for i, id in enumerate(ids[:20]))],
              "test_for_students": [("Id", "Category"), *((id, "") for id in ids[20:])]}
    for name, rows in tables.items():
        with open(home/f"set/labels/{name}.csv", "w", newline="") as f: csv.writer(f).writerows(rows)
    (home/"set.yaml").write_text("data: set\nfeatures: {sift: {fps: 2, words: 8}}\nclassifier: {max_epochs: 2}\nworkers: 2\ncache: cache\n")
    done = invoke("run", "--params", "set.yaml", "--name", "hostile", cwd=home)
    assert done.returncode == 0, done.stderr
    page = (home/"runs/hostile/report.html").read_text(encoding="utf-8")
    for raw in ["<script>alert", "<img src=x", "href=\"javascript", "\"http://127.0.0.1:9/i.png"]: assert raw not in page
    for shown in ["&lt;script&gt;alert(1)&lt;/script&gt;", "../../escape", "&lt;img src=x onerror=alert(0)&gt;"]: assert shown in page
    assert invoke("explore", "hostile", cwd=home).returncode == 0
    page = (home/"runs/hostile/explore.html").read_text(encoding="utf-8")
    for raw in [*HOSTILE[:1], "<img src=x", "<script>alert"]: assert raw not in page
    for shown in ["\\u003cscript>alert(1)", "\\u003cimg src=x onerror=alert(0)>", "23 of 24 videos play"]: assert shown in page
    assert {p.name for p in home.iterdir()} == {"set", "set.yaml", "runs", "cache"} and list(tmp_path.iterdir()) == [home]
    assert {p.name for p in (home/"runs/hostile").iterdir() if p.is_dir()} == {"figures", "sift"}
    assert invoke("check-submission", "runs/hostile/submission_sift.csv", "--data", "set", cwd=home).returncode == 0
    seen = invoke("doctor", "set", "--csv", "found.csv", cwd=home)
    assert seen.returncode == 1 and "unreadable" in seen.stdout and ids[0] in (home/"found.csv").read_text()
