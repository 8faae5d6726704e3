"""Labels as people write them: read where they can be understood, refused with file, line and value where they cannot"""

import csv
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hw2.core.files import write_csv
from hw2.data.dataset import (
    COLUMNS,
    from_course,
    from_csv,
    from_folders,
    read_classes,
    read_dataset,
    read_manifest,
    similar_paths,
    write_classes,
    write_manifest,
)
from hw2.data.labels import DataError, invisible_difference, look_alikes, skeleton
from hw2.data.split import cv_splits, label_warnings, split_manifest, split_warnings
from hw2.run.run import read_result

GOOD = {"cls_map": "Label,Category\n0,cat\n1,dog\n", "train_val": "Id,Category\nv0,0\nv1,0\nv2,1\nv3,1\n", "test_for_students": "Id,Category\nv4,\n"}


def course(root: Path, **tables: str | bytes | None) -> Path:
    "A course folder with two videos a class; `tables` replace its label files, None leaves one out."
    (root/"labels").mkdir(parents=True)
    (root/"videos").mkdir()
    for i in range(5): (root/f"videos/v{i}.mp4").write_bytes(b"not looked at")
    for name, text in (GOOD | tables).items():
        if text is not None: (root/f"labels/{name}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def table(folder: Path, text: str | bytes) -> Path:
    "A file `table.csv`."
    (folder/"table.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder/"table.csv"


# What is understood


@pytest.mark.parametrize("tables", [
    {},
    {name: b"\xef\xbb\xbf" + text.encode() for name, text in GOOD.items()},  # a byte-order mark
    {name: text.replace("\n", "\r\n") for name, text in GOOD.items()},
    {name: text.replace("\n", "\r") for name, text in GOOD.items()},
    {name: text.rstrip("\n") for name, text in GOOD.items()},
    {name: text.replace("\n", "\n\n") for name, text in GOOD.items()},  # empty lines
    {name: "\n".join(",".join(f'"{v}"' for v in line.split(",")) for line in text.splitlines()) for name, text in GOOD.items()},  # all quoted
    {"train_val": "Note,Category,Id\n\"a, b\",0,v0\n,0,v1\n\"two\nlines\",1,v2\n,1,v3\n"},  # other columns, in another order
    {"train_val": "Id,Category\nv0, cat\nv1, cat\nv2, dog\nv3, dog\n"},  # names, a space before them
    {"cls_map": "Label,Category\ncat,0\ndog,1\n"},  # the index in the other column
    {"test_for_students": "Id,Category\nv4\n"},  # a row that ends early
], ids=["plain", "mark", "crlf", "cr", "no-end", "empty-lines", "quoted", "columns", "names", "turned", "short-row"])
def test_the_same_set_in_other_spellings(tables, tmp_path):
    dataset, plain = from_course(course(tmp_path/"c", **tables)), from_course(course(tmp_path/"plain"))
    assert dataset.classes == ["cat", "dog"] and dataset.unlisted_files == []
    assert dataset.manifest.equals(plain.manifest) and len(plain.manifest) == 5


def test_ids_and_class_names_are_any_text(tmp_path):
    ids = ["=1+1", "-x", "v w", "007", "1e5", "NA", "null", "ü" * 100, "<b>", "a;b", "'", "#"]
    lines = "".join(f"{i},{k % 2}\n" for k, i in enumerate(ids))
    dataset = from_course(course(tmp_path/"c", cls_map="Label,Category\n0,\"cat, <i>large</i>\"\n1,../dog\n", train_val="Id,Category\n" + lines))
    assert dataset.manifest["id"].tolist() == [*ids, "v4"] and dataset.classes == ["cat, <i>large</i>", "../dog"]


# What is refused


@pytest.mark.parametrize("form, name", [("folders", "nowhere"), ("course", "nowhere/videos"), ("csv", "nowhere")])
def test_missing_folder_or_table(form, name, tmp_path):
    with pytest.raises(DataError, match=f"{name}: no such"): read_dataset(tmp_path/"nowhere", form)


@pytest.mark.parametrize("name", ["cls_map", "train_val", "test_for_students"])
def test_missing_label_file(name, tmp_path):
    with pytest.raises(DataError, match=f"{name}.csv: no such file"): from_course(course(tmp_path/"c", **{name: None}))


@pytest.mark.parametrize("name, text, words", [
    ("train_val", "Name,Category\nv0,0\n", "train_val.csv: no column Id; it has 'Name', 'Category'"),
    ("train_val", "Id\nv0\n", "train_val.csv: no column Category"),
    ("train_val", "Id,Id,Category\nv0,v0,0\n", "train_val.csv: column Id appears twice"),
    ("train_val", "Id,Category\n", "train_val.csv: no rows below the header"),
    ("cls_map", "Label,Category\n", "cls_map.csv: no rows below the header"),
    ("test_for_students", "Id;Category\nv4;\n", "test_for_students.csv: no column Id, Category"),
    ("cls_map", "Label,Name\n0,cat\n", "cls_map.csv: no column Category"),
    ("cls_map", "Label,Category\nzero,cat\n1,dog\n", "cls_map.csv, line 2: 'zero' is no class index"),
    ("cls_map", "Label,Category\n0,cat\n2,dog\n", "cls_map.csv: class indices must be 0 to 1"),
    ("cls_map", "Label,Category\n0,cat\n1,cat\n", "cls_map.csv: Category 'cat' appears in lines 2, 3"),
    ("train_val", "", "train_val.csv: an empty file"),
    ("train_val", b"\xef\xbb\xbf", "train_val.csv: an empty file"),
    ("train_val", "Id,Category\nv0,0\nv1,0,0,0\n", "train_val.csv, line 3: 4 fields, but the header has 2: ['0', '0']"),
    ("train_val", "Id,Category\nv0,0\n\"v1,0\nv2,1\n", "train_val.csv, line 3: not CSV"),
    ("train_val", "Id,Category\nv0,0\n\"v\n1\",0\nv2,cow\n", "train_val.csv, line 5: unknown label 'cow'"),  # after a row of two lines
    ("train_val", "Id,Category\nv0,0\nKöln,0\n".encode("latin-1"), "train_val.csv, line 3: not UTF-8 (byte 0xf6); save it as UTF-8"),
    ("train_val", "Id,Category\nv0,0\n".encode("utf-16"), "train_val.csv, line 1: not UTF-8"),
    ("train_val", "Id,Category\nv0,0\nv1,0\nv2,cow\n", "train_val.csv, line 4: unknown label 'cow'; known: 0 to 1, cat, dog"),
    ("train_val", "Id,Category\nv0,0\nv1,2\n", "train_val.csv, line 3: unknown label '2'"),
    ("train_val", "Id,Category\nv0,0\nv1,\n", "train_val.csv, line 3: unknown label ''"),
    ("train_val", "Id,Category\nv0,0\nv1,0\nv0,1\n", "train_val.csv: Id 'v0' appears in lines 2, 4"),
    ("test_for_students", "Id,Category\nv4,\nv1,\n", "test_for_students.csv, line 3: Id 'v1' appears in train_val.csv too"),
    ("train_val", "Id,Category\n../v0,0\n", "train_val.csv, line 2: id '../v0' cannot be a file name"),
    ("train_val", "Id,Category\nv0,0\n/etc/passwd,0\n", "train_val.csv, line 3: id '/etc/passwd' cannot be a file name"),
    ("train_val", "Id,Category\n..,0\n", "train_val.csv, line 2: id '..' cannot be a file name"),
    ("train_val", "Id,Category\nv0,0\n,0\n", "train_val.csv, line 3: id '' cannot be a file name"),
    ("train_val", "Id,Category\nv\0,0\n", "train_val.csv, line 2: id 'v\\x00' cannot be a file name"),
    ("test_labels", "Id,Category\nv9,0\n", "test_labels.csv, line 2: unknown id 'v9'"),
    ("split", "Id,Split\nv0,training\n", "split.csv, line 2: unknown split 'training'"),
])
def test_wrong_label_files(name, text, words, tmp_path):
    with pytest.raises(DataError) as error: from_course(course(tmp_path/"c", **{name: text}))
    assert words in str(error.value)


@pytest.mark.parametrize("text, words", [
    ("file,label\na.mp4,x\n", "table.csv: no column path"),
    ("path\na.mp4\n", "table.csv: no column label"),
    ("path,label,group,group\na.mp4,x,1,1\nb.mp4,y,2,2\n", "table.csv: column group appears twice"),
    ("path,label\na.mp4,x\nb.mp4,y\na.mp4,y\n", "table.csv: path 'a.mp4' appears in lines 2, 4"),
    ("path,label,split\na.mp4,x,train\nb.mp4,y,dev\n", "table.csv, line 3: unknown split 'dev'"),
    ("path,label,split\na.mp4,x,train\nb.mp4,,val\n", "table.csv, line 3: split 'val' but no label"),
    ("path,label\na.mp4,x\n../b.mp4,y\n", "table.csv, line 3: path '../b.mp4' leads out of this table's folder"),
    ("path,label\na.mp4,x\nin/../../b.mp4,y\n", "table.csv, line 3: path 'in/../../b.mp4' leads out"),
    ("path,label\n/etc/passwd,x\nb.mp4,y\n", "table.csv, line 2: path '/etc/passwd' leads out"),
    ("path,label\na.mp4,x\n\"\",y\n", "table.csv, line 3: path '' names no file"),
])
def test_wrong_table(text, words, tmp_path):
    with pytest.raises(DataError) as error: from_csv(table(tmp_path, text))
    assert words in str(error.value)


def test_fewer_than_two_classes(tmp_path):
    (tmp_path/"set/only").mkdir(parents=True)
    with pytest.raises(DataError, match="set: 1 class; at least two"): read_dataset(tmp_path/"set", "folders")
    with pytest.raises(DataError, match="table.csv: 1 class; at least two"): read_dataset(table(tmp_path, "path,label\na.mp4,x\nb.mp4,x\n"), "csv")


def test_a_class_without_a_training_video(tmp_path):
    dataset = read_dataset(table(tmp_path, "path,label,split\na.mp4,x,train\nb.mp4,y,val\n"), "csv")
    with pytest.raises(DataError, match="no training video for class y"): cv_splits(split_manifest(dataset.manifest), dataset.classes)
    dataset = read_dataset(table(tmp_path, "path,label,group\na.mp4,x,1\nb.mp4,x,2\nc.mp4,y,1\n"), "csv")
    with pytest.raises(DataError, match="no training video in fold 0 for class y"): cv_splits(split_manifest(dataset.manifest, folds="group"), dataset.classes)


@pytest.mark.parametrize("folds, words", [("group", "at least two groups"), (3, "smallest class has 2 videos")])
def test_folds_that_cannot_be_made(folds, words, tmp_path):
    dataset = from_course(course(tmp_path/"c"))
    with pytest.raises(DataError, match=words): split_manifest(dataset.manifest, folds=folds)


def test_a_file_name_without_its_group(tmp_path):
    (tmp_path/"a").mkdir()
    (tmp_path/"a/clip.mp4").touch()
    with pytest.raises(DataError, match=r"clip.mp4: the group pattern '\^\(\.\+\)_' finds nothing"): from_folders(tmp_path, "^(.+)_")


def test_a_split_for_some_videos_only(tmp_path):
    dataset = read_dataset(table(tmp_path, "path,label,split\na.mp4,x,train\nb.mp4,y,val\n"), "csv")
    dataset.manifest.loc[1, "split"] = ""
    with pytest.raises(DataError, match="b.mp4: no split given"): split_manifest(dataset.manifest)


# Tables of any text


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12) | st.sampled_from(
    ["Icon\r", "\r", "a\r\nb", "\"", ",", " a", "a ", "a\u00a0", "1", "01", "NA", "nan", "=1", "\ufeff", "#", "\\", "\x85", "\u2028", "'"])
TABLES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@TABLES
@given(st.lists(TEXT, min_size=1, max_size=6, unique=True), st.lists(TEXT, min_size=2, max_size=6, unique=True))
def test_names_and_labels_come_back_as_they_went(tmp_path, ids, classes):
    rows = [[i, i, "", k % len(classes), "val", i, None] for k, i in enumerate(ids)]
    manifest = pd.DataFrame(rows, columns=COLUMNS).astype({"label": "Int64", "fold": "Int64"})
    back = read_manifest(write_manifest(tmp_path/"manifest.csv", manifest))
    assert back[["id", "path", "group", "label"]].to_numpy().tolist() == manifest[["id", "path", "group", "label"]].to_numpy().tolist()
    assert read_classes(write_classes(tmp_path/"classes.csv", classes)) == classes
    predictions = manifest[["id", "split", "fold", "label"]].assign(pred=0, p_0=np.float32(1 / 3))
    assert read_result(write_csv(tmp_path/"predictions.csv", predictions))["id"].astype(str).tolist() == ids
    skipped = pd.DataFrame([(i, i, f"cannot open {i}") for i in ids], columns=["id", "path", "cause"])
    assert pd.read_csv(write_csv(tmp_path/"skipped.csv", skipped), dtype=str, keep_default_na=False).equals(skipped.astype(str))


@TABLES
@given(st.lists(TEXT, min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_classes_do_not_depend_on_the_order_of_the_rows(tmp_path, labels, random):
    rows = [(f"{k}.mp4", label) for k, label in enumerate(labels)]
    if len({label for _, label in rows}) < 2: return
    found = []
    for _ in range(3):
        with open(tmp_path/"table.csv", "w", encoding="utf-8", newline="") as f: csv.writer(f, quoting=csv.QUOTE_ALL).writerows([("path", "label"), *rows])
        dataset = from_csv(tmp_path/"table.csv")
        assert {dataset.classes[y] for y in dataset.manifest["label"]} == {label for _, label in rows}
        found.append((dataset.classes, dict(zip(dataset.manifest["path"], dataset.manifest["label"]))))
        random.shuffle(rows)
    assert found[0] == found[1] == found[2]


def test_classes_do_not_depend_on_the_hash_seed(tmp_path):
    file = table(tmp_path, "path,label\n" + "".join(f"{i}.mp4,{['1', '01', '001', '2'][i % 4]}\n" for i in range(8)))
    code = f"from hw2.data.dataset import from_csv; print(from_csv({str(file)!r}).classes)"
    told = {subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True).stdout
            for seed in "123"}
    assert told == {"['001', '01', '1', '2']\n"}


@TABLES
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["", *"abcdefg"])), min_size=6, max_size=60), st.integers(0, 99), st.booleans(),
       st.sampled_from([None, None, 2, 3, "group"]), st.booleans())
def test_a_split_takes_every_row_once_and_no_group_apart(rows, seed, grouped, folds, stratify):
    labels = [y for y, _ in rows]
    m = pd.DataFrame([[str(i), str(i), "", y, "", (g or "h") if grouped else "", None] for i, (y, g) in enumerate(rows)], columns=COLUMNS)
    m = m.astype({"label": "Int64", "fold": "Int64"})
    try: done = split_manifest(m, seed, folds, stratify)
    except DataError: return  # too few videos of a class, or groups, which the message says
    assert done["id"].tolist() == m["id"].tolist() and set(done["split"]) <= {"train", "val"}
    assert done.equals(split_manifest(m, seed, folds, stratify))
    of_group = done.groupby("group")
    if folds is None:
        assert {"train", "val"} == set(done["split"])
        if grouped: assert (of_group["split"].nunique() == 1).all()
        if stratify and not grouped and min(np.bincount(labels)[sorted(set(labels))]) > 1 and -(-len(rows) // 5) >= len(set(labels)):
            n, held = (np.bincount(d["label"].astype(int), minlength=5) for d in (done, done[done["split"] == "val"]))
            assert (np.abs(held - n * -(-len(rows) // 5) / len(rows)) < 1).all()
    else:
        assert (done["split"] == "val").all() and done["fold"].notna().all()
        if grouped: assert (of_group["fold"].nunique() == 1).all()


@TABLES
@given(TEXT, TEXT)
def test_what_looks_alike_is_named_and_nothing_else(a, b):
    assert bool(invisible_difference(a, b)) == (a != b and skeleton(a) == skeleton(b)) and invisible_difference(a, b) == invisible_difference(b, a)
    assert look_alikes([a, a + " "])[0][2] == "spaces" if skeleton(a).strip() else True


# Sets as other programs leave them


def test_what_a_system_keeps_for_itself_is_neither_a_video_nor_a_stray(tmp_path):
    for folder in ("", "x/", "y/", "x/@eaDir/", "@eaDir/", "__MACOSX/"):
        (tmp_path/"set"/folder).mkdir(parents=True, exist_ok=True)
        for name in [".DS_Store", "Thumbs.db", "desktop.ini", "._a.mp4", "Icon\r"]: (tmp_path/"set"/folder/name).touch()
    for k in "xy": (tmp_path/"set"/k/"a.mp4").touch()
    dataset = from_folders(tmp_path/"set")
    assert (dataset.classes, dataset.manifest["id"].tolist(), dataset.unlisted_files) == (["x", "y"], ["x/a.mp4", "y/a.mp4"], [])
    dataset = from_csv(table(tmp_path/"set", "path,label\nx/a.mp4,x\ny/a.mp4,y\nx/._a.mp4,x\n@eaDir/a.mp4,y\n.DS_Store,x\n\"Icon\r\",y\n"))
    assert dataset.manifest["id"].tolist() == ["x/a.mp4", "y/a.mp4"]
    root = course(tmp_path/"c")
    for name in [".DS_Store", "Thumbs.db", "Icon\r"]: (root/"videos"/name).touch()
    (root/"videos/@eaDir").mkdir()
    assert from_course(root).unlisted_files == []


def test_folders_that_are_a_split(tmp_path):
    for name in ["train/x/1.mp4", "train/y/2.mp4", "valid/x/3.mp4", "test/4.mp4", "test/y/5.mp4", "train/readme.txt", "train/x/._1.mp4"]:
        (tmp_path/"set"/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/"set"/name).touch()
    dataset = from_folders(tmp_path/"set", group="([0-9])")
    rows = dataset.manifest[["id", "split", "label", "group"]].fillna(-1).to_numpy().tolist()
    assert rows == [["test/4.mp4", "test", -1, "4"], ["test/y/5.mp4", "test", 1, "5"], ["train/x/1.mp4", "train", 0, "1"],
                    ["train/y/2.mp4", "train", 1, "2"], ["valid/x/3.mp4", "val", 0, "3"]]
    assert dataset.unlisted_files == ["train/readme.txt"] and split_manifest(dataset.manifest)["split"].tolist() == [r[1] for r in rows]


@pytest.mark.parametrize("files", [["train/1.mp4", "val/2.mp4"], ["train/x/1.mp4", "walk/1.mp4"], ["val/x/1.mp4", "test/x/1.mp4"],
                                   ["train/old/1.mp4", "train/2.mp4", "train/3.mp4", "val/1.mp4"]])
def test_folders_that_are_classes(files, tmp_path):
    for name in files:
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).touch()
    dataset = from_folders(tmp_path)
    assert dataset.classes == sorted({f.split("/")[0] for f in files}) and set(dataset.manifest["split"]) == {""}


def test_annotations_beside_a_split_are_no_class(tmp_path):
    for name in ["videos_train/x/1.mp4", "videos_train/y/2.mp4", "videos_val/x/3.mp4", "annotations/train.json", "old/x/4.mp4"]:
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).touch()
    dataset = from_folders(tmp_path)
    assert dataset.classes == ["x", "y"] and dataset.unlisted_files == ["annotations", "old"]
    assert dataset.manifest["split"].tolist() == ["train", "train", "val"]


@pytest.mark.parametrize("classes, videos", [(2, 4), (3, 4), (4, 4), (2, 1), (5, 2)])
def test_every_video_of_a_group_of_its_own(classes, videos):
    "Fewer videos of a class than scikit-learn's five folds."
    m = _manifest_of([(k, f"{k}-{i}") for k in range(classes) for i in range(videos)])
    for folds in (None, 2):
        split = split_manifest(m, 666, folds, True)
        assert set(split["split"]) == ({"train", "val"} if folds is None else {"val"})


def _manifest_of(rows: list[tuple[int, str]]) -> pd.DataFrame:
    "A manifest of (label, group)."
    return pd.DataFrame({"id": [str(i) for i in range(len(rows))], "label": pd.array([y for y, _ in rows], "Int64"), "split": "", "group": [g for _, g in rows],
                         "fold": pd.array([None] * len(rows), "Int64")})


def test_a_table_without_rows(tmp_path):
    (tmp_path/"set.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="0 classes"): read_dataset(tmp_path/"set.csv", "csv")


def test_a_path_that_is_nearly_right(tmp_path):
    (tmp_path/"set").mkdir()
    for name in [unicodedata.normalize("NFD", "vidéo.mp4"), "b.mp4", "c.mp4", "C.mp4"]: (tmp_path/"set"/name).touch()
    near = similar_paths(tmp_path, ["set/vidéo.mp4", "set /b.mp4", "Set/c.mp4", "set/d.mp4", "set/cc.mp4", "none/b.mp4", "set/ c.mp4"])
    assert near == {"set/vidéo.mp4": f"did you mean {unicodedata.normalize('NFD', 'set/vidéo.mp4')!r}? It differs by how accents are composed (NFC, NFD)",
                    "set /b.mp4": "did you mean 'set/b.mp4'? It differs by spaces", "Set/c.mp4": "did you mean 'set/c.mp4'? It differs by capitals"}


def test_small_classes_are_named_with_what_to_do(tmp_path):
    rows = "".join(f"{i}.mp4,{'abc'[i % 3] if i < 30 else 'rare'}\n" for i in range(32))
    dataset = from_csv(table(tmp_path, "path,label\n" + rows))
    assert split_warnings(dataset) == ["class 'rare': 2 videos, of which one or none is held out; add videos, or take folds: 2"]
    assert [row[0] for row in label_warnings(dataset)] == ["split"]
    with pytest.raises(DataError, match="smallest class has 2 videos: rare; fewer than folds: 5; take folds: 2, add videos, or leave the class out"):
        split_manifest(dataset.manifest, folds=5, classes=dataset.classes)


def test_stratified_groups_keep_the_shares(tmp_path):
    "97 clips of 24 sources, as a set that got one validation clip of a class with 23 when it was split without labels."
    sizes, rng = [23, 20, 18, 14, 12, 10], np.random.default_rng(0)
    m = pd.DataFrame([[f"{k}-{i}", "", "", k, "", f"s{rng.integers(4)}-{k}", None] for k, n in enumerate(sizes) for i in range(n)], columns=COLUMNS)
    m = m.astype({"label": "Int64", "fold": "Int64"})
    for seed in range(5):
        held = split_manifest(m, seed, stratify=True).query("split == 'val'")
        assert held["label"].nunique() >= 4 and 10 <= len(held) <= 35
        assert split_manifest(m, seed, folds=4, stratify=True).groupby("fold")["label"].nunique().min() >= 4
