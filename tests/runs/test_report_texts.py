"""What the report says of runs of every kind: each sentence is true of its run, complete, and names what it is about"""

import re
import warnings

import pytest
from fabricated import executed_report, fabricate, report_text

NETWORKS = {"sift": {"kind": "sift", "words": 8}, "cnn": {"like": "convnext_mini"}, "cnn3d": {"like": "r2plus1d_mini"}}
THREE, TWO = {"sift": .2, "cnn": .6, "cnn3d": .95}, {"a": .4, "b": .8}
CONTROLS = {"cnn3d": {"like": "r2plus1d_mini"}, "still": {"like": "r2plus1d_mini", "order": "still"}}


def classes(k: int) -> list[str]: return [f"class {chr(97 + i)}" for i in range(k)]


KINDS = {
    "split": dict(correct=THREE, names=classes(5), entries=NETWORKS),
    "course": dict(correct=THREE, names=classes(3), entries=NETWORKS, form="course", data="course", seeds=1),
    "folds": dict(correct=THREE, names=classes(3), entries=NETWORKS, folds=3),
    "groups": dict(correct=TWO, names=classes(3), folds="group", patience=None),
    "no test": dict(correct=TWO, names=classes(3), counts=[(12, 8, 0)] * 3),
    "test without labels": dict(correct=TWO, names=classes(3), labelled_test=False),
    "no validation": dict(correct=TWO, names=classes(3), counts=[(12, 0, 8)] * 3),
    "one feature": dict(correct={"a": .95}, names=classes(3), patience=None),
    "twelve features": dict(correct={f"feature_{i}": .2 + .06 * i for i in range(12)}, names=classes(3), seeds=1),
    "controls": dict(correct={"cnn3d": .95, "still": .4}, names=classes(4), entries=CONTROLS),
    "two classes": dict(correct=TWO, names=["<b>one</b>", "a|b"]),
    "a hundred classes": dict(correct=TWO, names=[f"number {i}" for i in range(100)], counts=[(3, 2, 1)] * 100, seeds=1),
    "unbalanced": dict(correct=TWO, names=classes(3), counts=[(60, 40, 20), (8, 4, 2), (2, 0, 0)]),
    "one video a class": dict(correct=TWO, names=classes(5), counts=[(1, 1, 1)] * 5),
    "constant vectors": dict(correct={"a": .9, "b": .3}, names=classes(3), constant=["b"]),
    "identical features": dict(correct={"a": .6, "b": .6}, names=classes(3), alike={"b": "a"}),
    "all correct": dict(correct={"a": 1., "b": 1.}, names=classes(3)),
    "all wrong": dict(correct={"a": 0., "b": 0.}, names=classes(3)),
    "unread videos": dict(correct=TWO, names=classes(3), skipped=["0_train_1", "1_val_2", "2_test_0"])}

SAID = {  # by kind: what must stand there
    "split": ["Best feature: cnn3d", "On 20 test videos", "Validation chose each classifier's epoch",
              "top-1 on the validation videos has not risen for 15 epochs",
              "### cnn3d: top-1 ", " of 30 validation videos", "rely on test top-1", "SIFT's k-means", "| 1.5 frames a second |"],
    "course": ["homework report", "| report_kaggle |", "trained once"],
    "folds": ["66 held-out videos", "Cross-validation: each labelled video is predicted once", "| held_out_top1 |", "| held-out |",
              "a part of the training videos that is kept apart", "The best of 3 was chosen on these very videos"],
    "groups": ["66 held-out videos", "come from 3 groups", "trained for 6 epochs, and its last weights are kept"],
    "no test": ["of 24 validation videos"],
    "test without labels": ["The labels of the test videos are not known", "and 12 without a label"],
    "no validation": ["of 24 test videos", "There are no validation videos.", "The hardest class", "read from the test videos themselves"],
    "one feature": ["the feature a carry?", "One feature: a.", "No other feature to compare it with", "there is only one feature"],
    "twelve features": ["each of 12 features", "of 11 others", "all 132 comparisons", "every two features"],
    "controls": ["still is a control of cnn3d.", "With its frames in another order: still 0.", "One feature: cnn3d"],
    "two classes": ["The 2 classes: <b>one</b>, a\\|b."],
    "a hundred classes": ["all 100 are folded away below", "Every class has only 2 validation videos", "no class was the hardest in more than"],
    "unbalanced": ["below the majority class", "the most frequent class 0.909", "class c, has 2"],
    "one video a class": ["Every class has only 1 training video:", "too few for any difference to be expected to show",
                          "Every class has only 1 validation video:"],
    "constant vectors": ["all vectors of b are the same", "carry nothing of the label"],
    "identical features": ["a and b classify the same videos correctly", "Choosing between them can gain nothing"],
    "all correct": ["Best features: a and b, which classify equally many videos correctly", "nothing can be gained by choosing",
                    "All classes are equally hard (recall 1.000 each)"],
    "all wrong": ["No feature is above the majority class", "Neither a nor b classifies any", "below the majority class"],
    "unread videos": ["1 of 36 training videos could not be read and is not counted", "cut short", "In the submissions these test videos"]}

NEVER = {  # by kind, as regular expressions: what must not
    "folds": [r"(?<!Cross-)(?<!cross-)[Vv]alidat", r"\bval(_|\b)", "looked at once", "training videos are(?! needed)"],
    "groups": [r"(?<!Cross-)(?<!cross-)[Vv]alidat", "a dot marks", "has not risen"],
    "no test": [r"[Tt]est (top-1|videos?)\b", r"\| test", "n_test"],
    "test without labels": [r"Test top-1", r"\| test_top1"],
    "no validation": [r"[Vv]alidation (top-1|chose)", r"\| (n_)?val(_top1)? \|", "a dot marks", "has not risen", "highest validation"],
    "one feature": ["Which differences", "What does fusion", "Which mistakes", "a dot marks", "has not risen", "the others"],
    "course": [r"\bsd\b"],
    "constant vectors": ["No map: it needs"],
    "two classes": ["<b>bold"]}

HOMEWORK = r"homework|Kaggle|report_val_top1|\b144(\.0)? s"
WRONG = [r"\b[Nn]a[Nn]\b", r"\b[Ii]nf(inity)?\b", r"\bNone\b(?!: every video)", "Traceback",
         r"\b1 (videos|classes|seeds|epochs|features|others|frames|pairs)\b", r"\b1 of \d+ \w+ (have|are)\b",
         r"\b1 (training|validation|test|held-out|labelled) videos",
         r"\b(\d+) of \1 classes", r"\(val\b", r"-0\.0+\b", "  and|,,| ,|\\.\\.", "Nobody", "all 2 "]


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str: return request.param


@pytest.fixture(scope="module")
def text(kind, tmp_path_factory) -> str:
    "The report of a run of this kind; a warning is an error."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return report_text(executed_report(fabricate(tmp_path_factory.mktemp("runs")/kind.replace(" ", "-"), **KINDS[kind])))


def test_what_must_stand_there(kind, text):
    assert [said for said in SAID[kind] if said not in text] == []


def test_what_must_not_stand_there(kind, text):
    wrong = [*WRONG, *NEVER.get(kind, []), *[HOMEWORK] * (kind != "course")]
    assert [text[max(found.start() - 60, 0):found.end() + 30] for pattern in wrong if (found := re.search(pattern, text))] == []


def test_the_answer_is_five_lines_of_sixty_words(text):
    answer = text[text.index("How much of a video's label"):text.index("## 1. Introduction")]
    lines = [line for line in answer.splitlines() if line.startswith("- ")]
    assert len(lines) == 5 and max(len(line.split()) for line in lines) <= 60


def test_every_table_has_rows(text):
    "A heading alone says nothing."
    tables = [block for block in text.split("\n\n") if block.count(" | ") > 2]
    assert [t for t in tables if "\n" not in t.strip()] == []
