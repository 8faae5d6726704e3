"""Labels as people write them: read where they can be understood, refused with file, line and value where they cannot"""

from pathlib import Path

import pytest

from hw2.data import from_course, from_csv, from_folders, parts, read_dataset, split_manifest
from hw2.labels import DataError

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
    assert dataset.classes == ["cat", "dog"] and dataset.strays == []
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
    ("train_val", "Id,Id,Category\nv0,v0,0\n", "train_val.csv: column Id stands twice"),
    ("train_val", "Id,Category\n", "train_val.csv: no rows below the header"),
    ("cls_map", "Label,Category\n", "cls_map.csv: no rows below the header"),
    ("test_for_students", "Id;Category\nv4;\n", "test_for_students.csv: no column Id, Category"),
    ("cls_map", "Label,Name\n0,cat\n", "cls_map.csv: no column Category"),
    ("cls_map", "Label,Category\nzero,cat\n1,dog\n", "cls_map.csv, line 2: 'zero' is no class index"),
    ("cls_map", "Label,Category\n0,cat\n2,dog\n", "cls_map.csv: class indices must be 0 to 1"),
    ("cls_map", "Label,Category\n0,cat\n1,cat\n", "cls_map.csv: Category 'cat' stands in lines 2, 3"),
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
    ("train_val", "Id,Category\nv0,0\nv1,0\nv0,1\n", "train_val.csv: Id 'v0' stands in lines 2, 4"),
    ("test_for_students", "Id,Category\nv4,\nv1,\n", "test_for_students.csv, line 3: Id 'v1' stands in train_val.csv too"),
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
    ("path,label,group,group\na.mp4,x,1,1\nb.mp4,y,2,2\n", "table.csv: column group stands twice"),
    ("path,label\na.mp4,x\nb.mp4,y\na.mp4,y\n", "table.csv: path 'a.mp4' stands in lines 2, 4"),
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
    with pytest.raises(DataError, match="no training video for class y"): parts(split_manifest(dataset.manifest), dataset.classes)
    dataset = read_dataset(table(tmp_path, "path,label,group\na.mp4,x,1\nb.mp4,x,2\nc.mp4,y,1\n"), "csv")
    with pytest.raises(DataError, match="no training video in fold 0 for class y"): parts(split_manifest(dataset.manifest, folds="group"), dataset.classes)


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
