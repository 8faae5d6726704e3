"""The notebooks are the source: they run, hw2/ is their exact image, and the experiments' parameters are the package's"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import jsonschema
import nbformat
import papermill
import pytest
import yaml
from stored_outputs import differences, execute, offline

import hw2
from hw2.core.files import ROOT
from hw2.core.params import REPORT, Classifier, Params, params_schema, params_text, read_params

LIBRARY = sorted(p for p in (ROOT/"nbs").glob("*/*.ipynb") if p.parent.name != "experiments")
EXPERIMENTS = sorted((ROOT/"nbs/experiments").glob("*.ipynb"))
PARAMS = sorted(p for p in (ROOT/"nbs/experiments/params").glob("*.yaml") if p.stem != "ablation")  # which is a sweep: runs/test_ablation.py reads it
LEFTOVERS = {"__pycache__", ".ipynb_checkpoints"}


def stem(path: Path) -> str:
    "The name that pytest shows for a notebook."
    return path.stem


def module(path: Path) -> str:
    "The module that a library notebook is to export: `nbs/2_features/21_sift.ipynb` is `features.sift`."
    return f"{path.parent.name.split('_', 1)[-1]}.{path.stem.split('_', 1)[1]}"


def code_cells(path: Path) -> list:
    "The notebook's code cells."
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def syntax(path: Path, exported: bool = False) -> ast.Module:
    "All code of the notebook, or what it exports, as one tree."
    sources = [c.source for c in code_cells(path) if re.match(r"(#\|.*\n)*#\| ?export", c.source) or not exported]
    return ast.parse("\n".join(line for source in sources for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))))


def parameters_cell(path: Path) -> dict:
    "Names and literals of the cell tagged `parameters`."
    tagged, = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(tagged.source).body}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    "A function: a notebook executed, once, with no network and no cached weights."
    with offline(tmp_path_factory.mktemp("torch")): yield cache(lambda path: execute(nbformat.read(path, 4), path.parent))


@pytest.mark.parametrize("path", LIBRARY, ids=stem)  # one_video and the tutorial: tests/runs
def test_runs_top_to_bottom_without_a_word_on_stderr(path, executed):
    notebook = executed(path)
    said = [o["text"] for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.get("name") == "stderr"]
    assert said == []


@pytest.mark.parametrize("path", LIBRARY, ids=stem)
def test_runs_top_to_bottom_to_the_stored_outputs(path, executed):
    "What a reader sees is what the code gives: `make outputs` stores it, a cell that depends on the machine is tagged `varies`."
    found = differences(nbformat.read(path, 4), executed(path), str(path.relative_to(ROOT)))
    if found: pytest.fail("\n\n".join(["other outputs than the stored ones (`make outputs NOTEBOOKS=...` stores them)", *found]), pytrace=False)


@pytest.mark.parametrize("path", LIBRARY, ids=stem)
def test_library_notebook_is_small(path):
    assert path.stat().st_size <= 300_000


@pytest.mark.parametrize("path", LIBRARY + EXPERIMENTS, ids=stem)
def test_metadata_are_clean(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    assert set(notebook["metadata"]) == {"kernelspec"}
    assert {key for c in notebook["cells"] for key in c["metadata"]} <= {"tags"}
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    assert not any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs)
    assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs)


def test_export_is_in_sync(tmp_path):
    "Clean and export a copy: every byte of nbs/ and hw2/ stays where it is."
    for name in ["settings.ini", "pyproject.toml", "README.md"]:
        if (ROOT/name).exists(): shutil.copy(ROOT/name, tmp_path)
    for name in ["nbs", "hw2"]: shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns(*LEFTOVERS))
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # with it nbdev_export does nothing and says nothing
    for call in ["from nbdev.clean import nbdev_clean as go; go()", "from nbdev.doclinks import nbdev_export as go; go()"]:
        subprocess.run([sys.executable, "-c", call], cwd=tmp_path, env=environment, check=True, capture_output=True)
    files = [{p.relative_to(root): p.read_bytes() for name in ["nbs", "hw2"] for p in (root/name).rglob("*") if p.is_file() and not LEFTOVERS & set(p.parts)}
             for root in (ROOT, tmp_path)]
    moved = [str(p) for p in sorted(files[0].keys() | files[1].keys()) if files[0].get(p) != files[1].get(p)]
    assert not moved, f"clean and export again: {', '.join(moved)}"


def test_every_notebook_has_its_own_module_and_every_module_its_notebook():
    exports = [line.split()[-1] for path in LIBRARY for c in code_cells(path) for line in c.source.splitlines() if line.startswith("#| default_exp")]
    assert exports == [module(path) for path in LIBRARY]
    assert len(set(exports)) == len(exports)
    there = {".".join(p.relative_to(ROOT/"hw2").with_suffix("").parts) for p in (ROOT/"hw2").rglob("*.py") if p.stem not in {"__init__", "_modidx"}}
    assert there == set(exports)


STORY = ["core", "data", "features", "extraction", "evaluation", "classifier", "report", "run"]  # each may import the ones before it
ASIDE = {"demo": {"core", "data"}, "pretraining": {"core", "features", "extraction", "demo"}, "explorer": set(STORY), "ablation": set(STORY),
         "benchmark": {*STORY, "demo"}}  # nothing imports these
MAY_IMPORT = {wing: set(STORY[:i]) for i, wing in enumerate(STORY)} | ASIDE
for asked in ("data", "run"): MAY_IMPORT[asked] |= {"demo"}  # where `data: demo` asks for it
COMMANDS = {"run.cli": {"explorer"}}  # the command line, which nothing imports, starts what stands aside


IMPORTERS = {"import_module", "__import__", "run_module", "find_spec", "set_forkserver_preload"}  # functions whose first argument is a module's name


def imported(tree: ast.AST) -> set[str]:
    "The modules of the package that code imports, inside functions and by name as well; `hw2` itself, or a name that is no module, is an error."
    from_hw2 = [(n.module.removeprefix("hw2").lstrip("."), [a.name for a in n.names]) for n in ast.walk(tree)
                if isinstance(n, ast.ImportFrom) and n.module and n.module.split(".")[0] == "hw2"]
    assert not any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(tree)), "notebooks import with the whole name"
    whole = {a.name.removeprefix("hw2.") for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names if a.name.split(".")[0] == "hw2"}
    by_name = [a for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).split(".")[-1] in IMPORTERS for a in n.args[:1]]
    assert not any(isinstance(a, ast.JoinedStr) or isinstance(a, ast.Constant) and str(a.value).startswith(".") for a in by_name), "spell the name out"
    texts = {c.value for a in by_name for c in ast.walk(a) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
    named = {t.removeprefix("hw2.") for t in texts if t.split(".")[0] == "hw2"}
    found = {m if "." in m else f"{m}.{name}".strip(".") for m, names in from_hw2 for name in names} | whole | named
    assert found <= {module(p) for p in LIBRARY}, found
    return found


@pytest.mark.parametrize("code, seen", [
    ("from hw2.data.video import probe, decode", {"data.video"}), ("from hw2.data import video, labels", {"data.video", "data.labels"}),
    ("import hw2.run.cli, hw2.data.video as v", {"run.cli", "data.video"}), ("def f():\n    if x: from hw2.run.cli import app", {"run.cli"}),
    ("class C:\n    async def f(self): import hw2.run.cli", {"run.cli"}), ("import importlib\nimportlib.import_module('hw2.run.cli')", {"run.cli"}),
    ("lambda: __import__('hw2.run.cli').run", {"run.cli"}), ("START.set_forkserver_preload(['numpy', 'hw2.run.cli'])", {"run.cli"}),
    ("runpy.run_module('hw2.run.cli')", {"run.cli"}), ("import hw2_other, os.path\nfrom hw2s.run import cli\nimport_module('numpy')", set()),
    ("import hw2", None), ("from hw2 import Run", None), ("from hw2.run.nowhere import x", None), ("from hw2.run import nowhere", None),
    ("import hw2.data", None), ("import_module('hw2.nowhere')", None), ("import_module(f'hw2.{wing}')", None), ("import_module('.cli', 'hw2.run')", None),
    ("from ..run.cli import app", None), ("from . import cli", None),
])
def test_every_way_to_import_is_seen(code, seen):
    "What it finds, or None where it refuses."
    if seen is not None: assert imported(ast.parse(code)) == seen
    else:
        with pytest.raises(AssertionError): imported(ast.parse(code))


MENTION = re.compile(r"(?<![\w./-])hw2\.(?!egg-info)([A-Za-z]\w*(?:\.\w+)*)")  # hw2.features.sift.SIFT, in prose or in code
TAKEN = re.compile(r"from hw2([\w.]*) import (\w+(?: as \w+)?(?:, *\w+(?: as \w+)?)*)")


def mentioned(text: str) -> set[str]:
    "The names below hw2 in a text that are nowhere in the package."
    def there(name: str) -> bool:
        parts = name.split(".")
        if len(parts) == 1 and parts[0] in {*hw2.__all__, "experiments"}: return True  # which a wheel has
        if ".".join(parts[:2]) not in {module(p) for p in LIBRARY}: return len(parts) == 1 and (ROOT/"hw2"/parts[0]).is_dir()
        return len(parts) == 2 or hasattr(import_module("hw2." + ".".join(parts[:2])), parts[2])
    taken = [f"{m.lstrip('.')}.{name.split()[0]}".strip(".") for m, names in TAKEN.findall(text) for name in names.split(",")]
    return {name for name in MENTION.findall(text) + taken if not there(name)}


TEXTS = [*sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if not LEFTOVERS & set(p.parts)),
         *sorted(p for p in (ROOT/"tests").rglob("*.py") if p != Path(__file__)),  # which names what is not there on purpose
         ROOT/"README.md", ROOT/"CONTRIBUTING.md", *sorted((ROOT/"docs").glob("*.md"))]


@pytest.mark.parametrize("path", TEXTS, ids=stem)
def test_names_of_the_package_in_texts_are_there(path):
    "A name that was moved is found in strings, comments and prose, where no import fails."
    cells = [c.source for c in nbformat.read(path, 4).cells] if path.suffix == ".ipynb" else [path.read_text(encoding="utf-8")]
    assert mentioned("\n".join(cells)) == set()


def test_a_name_that_was_moved_is_found():
    text = "`hw2.features.sift.SIFT`, hw2.Run, hw2.run. But hw2.Rnu, hw2.sift.SIFT, hw2.features.sift.Sift, hw2.data.nowhere; from hw2.core import probe, files"
    assert mentioned(text) == {"Rnu", "sift.SIFT", "features.sift.Sift", "data.nowhere", "core.probe"}


@pytest.mark.parametrize("path", LIBRARY, ids=stem)
def test_a_wing_imports_what_it_may(path):
    wing = module(path).split(".")[0]
    allowed = {wing, *MAY_IMPORT[wing], *COMMANDS.get(module(path), ())}
    strangers = lambda exported, *more: {m for m in imported(syntax(path, exported)) if m.split(".")[0] not in {*allowed, *more}}
    assert strangers(True) == set() and strangers(False, "demo") == set()  # what shows and checks may take the demo's videos


@pytest.mark.parametrize("path", LIBRARY, ids=stem)
def test_within_a_wing_imports_come_from_lower_numbers(path):
    wing, own = module(path).split(".")[0], module(path)
    number = {module(p): (int(n[1]), n[2]) for p in LIBRARY if (n := re.match(r"(\d+)([a-z]?)_", p.stem))}  # 21, 21a, 22
    assert {m for m in imported(syntax(path)) - {own} if m.split(".")[0] == wing and number[m] >= number[own]} == set()


def test_no_star_imports():
    starred = [(p.stem, a.name) for p in LIBRARY + EXPERIMENTS for n in ast.walk(syntax(p)) if isinstance(n, ast.ImportFrom) for a in n.names if a.name == "*"]
    assert starred == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=stem)
def test_experiments_define_nothing(path):
    assert [n.name for n in ast.walk(syntax(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)] == []


@pytest.mark.parametrize("name, own, shared", [
    ("extract", {"name", "runs"}, {name: field.default for name, field in Params.model_fields.items()} |
     {"features": list(REPORT), "classifier": {name: field.default for name, field in Classifier.model_fields.items()}}),
     ("train", {"name", "runs", "feature"}, {}), ("report", {"name", "runs"}, {})])
def test_parameters_cell(name, own, shared):
    "The first notebook holds the defaults; the others take what the run's folder says."
    path = ROOT/f"nbs/experiments/{name}.ipynb"
    cell = parameters_cell(path)
    assert own <= set(cell) and {k: v for k, v in cell.items() if k not in own} == shared
    assert set(papermill.inspect_notebook(str(path))) == set(cell)  # as papermill reads it


def test_demo_yaml_shows_every_parameter():
    text = (ROOT/"nbs/experiments/params/demo.yaml").read_text(encoding="utf-8")
    assert text[text.index("data: "):] == params_text(read_params(ROOT/"nbs/experiments/params/demo.yaml"))


@pytest.mark.parametrize("path", PARAMS, ids=stem)
def test_parameter_files_are_valid(path):
    assert set(read_params(path)) == set(Params.model_fields)
    first, (schema, wrong) = path.read_text(encoding="utf-8").splitlines()[0], (json.loads((path.parent/"params.schema.json").read_text()),
                                                                                {"features": {"cnn": {"fsp": 3}}})
    assert first == "# yaml-language-server: $schema=params.schema.json" and schema == params_schema()
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(yaml.safe_load(path.read_text(encoding="utf-8"))) and not validator.is_valid(wrong)


def test_published_notebook_is_committed_with_its_outputs():
    outputs = [o for c in code_cells(ROOT/"nbs/experiments/published.ipynb") for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 3
    assert sum("text/html" in o.get("data", {}) for o in outputs) >= 3
