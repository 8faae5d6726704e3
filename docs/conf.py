"""The site that `make docs` builds in _docs/html: README, docs, and the notebooks with their stored outputs. It loads nothing from a network."""

import ast
import json
import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]

project = "hw2"
copyright = "2026 onwards, the hw2 authors"
extensions = ["myst_nb", "sphinx_copybutton", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "figures/*.md", "nbs/**/*.ipynb", "nbs/*.ipynb"]
exclude_patterns = [".*", "_docs", "build", "dist", "hw2", "runs", "tests", "**/.ipynb_checkpoints"]
nitpicky = True

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # the default is two scripts from a network; the notebooks hold no widgets

html_theme = "furo"
html_title = "hw2"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # excerpts are fetched, which a browser refuses where the site is opened as files

START = ["one_video", "tutorial"]
PAGES = re.findall(r"\]\(([\w-]+)\.md\)", (ROOT/"docs/index.md").read_text(encoding="utf-8"))
WINGS = [*sorted(p.name for p in (ROOT/"nbs").glob("[0-9]_*")), "demo", "pretraining", "explorer", "ablation", "benchmark", "experiments"]
TREE = "\n\n```{{toctree}}\n:hidden:\n:caption: {}\n\n{}\n```\n"


def notebooks(wing: str) -> list[Path]:
    "The wing's notebooks in their order."
    return sorted((ROOT/"nbs"/wing).glob("*.ipynb"))


def sidebar() -> str:
    "The side bar as MyST: where to start, docs, the wings in their order, what stands aside."
    parts = {"Start": ["Overview <self>", *(f"nbs/{name}" for name in START)],
             "Docs": ["docs/index", *(f"docs/{name}" for name in PAGES)]}
    parts |= {wing.replace("_", " "): [f"nbs/{wing}/{p.stem}" for p in notebooks(wing)] for wing in WINGS}
    parts |= {"Project": ["Index of functions <genindex>", "CONTRIBUTING", "CHANGELOG"]}
    return "".join(TREE.format(title, "\n".join(entries)) for title, entries in parts.items())


def contents() -> str:
    "What docs/index.md ends with: every notebook with its one-line summary, by wing."
    text = "Code with a blue edge is in the package; code with a grey edge shows and checks it.\n"
    for wing in WINGS:
        text += f"\n### {wing}\n\n"
        for path in notebooks(wing):
            first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
            summary = next(line for line in first.splitlines() if line.startswith("> "))
            text += f"- [{path.stem}](/nbs/{wing}/{path.name}): {summary[2:]}\n"
    return f"\n{text}"


def index_cell(code: str, name: str) -> list[dict]:
    "A cell that puts the functions and classes of exported code into the index, by which the search finds them first; none where there are none."
    names = [n.name for n in ast.parse(code).body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    return [{"cell_type": "markdown", "id": name, "metadata": {}, "source": "\n".join(f"```{{index}} ! {n}\n```" for n in names)}] if names else []


def readable(notebook: dict) -> dict:
    "The notebook without nbdev's comments and without the cells that only export; exported cells are tagged, their names indexed."
    cells = []
    for cell in notebook["cells"]:
        lines = "".join(cell["source"]).splitlines(keepends=True)
        said = [line[2:].split()[0] for line in lines if line.startswith("#|")] if cell["cell_type"] == "code" else []
        text = "".join(line for line in lines if not (said and line.startswith("#|"))).strip("\n")
        if "hide" in said or not text: continue
        exported = bool({"export", "exporti"} & set(said))
        if exported: cells += index_cell(text, f"index-{len(cells)}")
        cells.append(cell | {"source": text, "metadata": {"tags": ["exported"] if exported else []}})
    return notebook | {"cells": cells, "metadata": {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}}


def prepare(app: Sphinx, docname: str, source: list[str]) -> None:
    "Changes a source before it is parsed: the side bar goes into README, a title above each table of figures/."
    if docname == root_doc: source[0] += sidebar()
    elif docname == "docs/index": source[0] += contents()
    elif docname.startswith("figures/"): source[0] = f"---\norphan: true\n---\n# {Path(docname).name}\n\n{source[0]}"
    elif docname.startswith("nbs/"): source[0] = json.dumps(readable(json.loads(source[0])))


def folders(app: Sphinx, doctree: nodes.document) -> None:
    "A link to a wing's folder leads to its list of notebooks; one to another folder of the repository is plain text here."
    for link in list(doctree.findall(pending_xref)):
        at = (ROOT/app.env.docname).parent/link["reftarget"]
        if link["reftype"] != "myst" or link["refdomain"] or not at.is_dir(): continue
        if at.resolve().parent == ROOT/"nbs": link.attributes.update(refdomain="doc", reftarget="docs/index", reftargetid=at.name)
        else: link.replace_self(link.children)


def finish(app: Sphinx, failed: Exception | None) -> None:
    "What README and docs show by raw HTML goes where they look for it, and index.html leads to README."
    if failed: return
    shutil.copytree(ROOT/"figures", app.outdir/"figures", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.md"))
    (app.outdir/"index.html").write_text('<!doctype html><meta charset="utf-8"><title>hw2</title><meta http-equiv="refresh" content="0; url=README.html">\n')


def setup(app: Sphinx) -> None:
    "Connects the functions above."
    app.connect("source-read", prepare)
    app.connect("doctree-read", folders)
    app.connect("build-finished", finish)
