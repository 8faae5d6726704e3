"""What notebooks show: executed as the tests execute them, compared with what is stored, and stored anew: `make outputs`"""

import copy
import difflib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient
from nbdev.clean import clean_nb, nbdev_clean
from nbformat import NotebookNode
from traitlets.config import Config

from hw2.core.files import ROOT
from hw2.run.kernels import OwnKernels

VARIES = "varies"  # the tag of a cell whose outputs depend on the processor, the time or a path
WIDGET = "application/vnd.jupyter.widget-view+json"
EXPERIMENTS = ROOT/"nbs/experiments"
COPIES = {"train": "train_sift"}  # the executed copy of an experiment in a run's folder, where it has another name
UP = "\x1b[A"  # with which tqdm moves a terminal's cursor to an upper bar
BAR = re.compile(r"\d+%\|.*\[\d+:\d\d<|\[\d+:\d\d, [^]]*/s\]")
QUIET = Config({"KernelManager": {"transport_encryption": "auto"}, "NotebookClient": {"shutdown_kernel": "immediate"}})  # a polite end may warn of its own task


@contextmanager
def offline(folder: str | Path) -> Iterator[None]:  # `folder`: empty, in place of torch's cache and the hub's
    "An environment with no network, no cached weights, no progress bars, and no export, which would rewrite hw2/ under a notebook that runs beside."
    nobody = "http://127.0.0.1:9"  # where nobody listens
    changed = {"HW2_TERMINAL": os.devnull, "IN_TEST": "1", "TORCH_HOME": str(folder), "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "http_proxy": nobody,
               "https_proxy": nobody, "no_proxy": "127.0.0.1"}  # a notebook may serve a file to itself
    with mock.patch.dict(os.environ, changed): yield


def execute(notebook: NotebookNode, folder: str | Path) -> NotebookNode:  # `folder`: where the kernel runs
    "The notebook, executed from top to bottom by a fresh kernel."
    where = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=1800, kernel_manager_class=OwnKernels, resources=where, config=QUIET, coalesce_streams=True).execute()


def without_bars(text: str) -> str:
    "What a command printed, without the progress bars that it drew in a terminal."
    lines = [line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join(line for line in lines if not BAR.search(line) and line != UP)


def cleaned(notebook: NotebookNode) -> NotebookNode:
    "A copy as `nbdev_clean` leaves it, without addresses of objects, without widgets and progress bars."
    notebook = nbformat.from_dict(copy.deepcopy(notebook))
    clean_nb(notebook, allowed_cell_metadata_keys=["tags"])
    for cell in notebook.cells:
        if cell.cell_type != "code": continue
        cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        for o in cell.outputs:
            if o.output_type == "stream": o.text = without_bars(o.text)
    return notebook


def shown(cell: NotebookNode) -> list[dict[str, str]]:
    "What a cell shows: a dictionary from media type to text for each output; streams are joined, of a picture counts that it is there."
    streams, found = {}, []
    for o in cell.outputs:
        if o.output_type == "stream": streams[o.name] = streams.get(o.name, "") + o.text
        elif o.output_type == "error": found.append({"error": f"{o.ename}: {o.evalue}"})
        else: found.append({kind: "a picture" if kind.startswith("image/") else str(text) for kind, text in o.data.items()})
    return [{name: text} for name, text in sorted(streams.items())] + found


def changes(stored: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    "A diff of two outputs: by the first media type that differs, plain text before others."
    for kind in sorted({*stored, *now}, key=lambda kind: (kind != "text/plain", kind)):
        if stored.get(kind) != now.get(kind):
            return list(difflib.unified_diff(*((o.get(kind, "").splitlines()) for o in (stored, now)), f"stored {kind}", f"executed {kind}", lineterm="", n=1))
    return []


def differences(stored: NotebookNode, executed: NotebookNode, name: str) -> list[str]:  # `name`: of the notebook
    "For each cell whose outputs are not the stored ones: its place, its first line, and a diff. Cells tagged `varies` are left out."
    pairs, found = zip(cleaned(stored).cells, cleaned(executed).cells, strict=True), []
    for i, (a, b) in enumerate(pairs):
        if a.cell_type != "code" or VARIES in a.metadata.get("tags", []): continue
        diff = [line for outputs in zip_longest(shown(a), shown(b), fillvalue={}) for line in changes(*outputs)]
        if diff: found.append("\n".join([f"{name}, cell {i}: {(a.source.splitlines() or [''])[0]}", *diff]))
    return found


def executed(path: Path) -> NotebookNode:
    "The notebook with its outputs: of an experiment those of the run `demo`, of the tutorial those that a reader gets who starts with no files."
    name = path.stem
    if path.parent == EXPERIMENTS and name != "published": return nbformat.read(ROOT/"runs/demo"/f"{COPIES.get(name, name)}.ipynb", 4)
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as torch, offline(torch):
        return execute(nbformat.read(path, 4), home if name == "tutorial" else ROOT if name == "published" else path.parent)


def store(path: Path) -> None:
    "Store the outputs of a notebook, cleaned; its cells stay as they are, and papermill's own cell is left out."
    notebook, now = nbformat.read(path, 4), {c.id: c for c in cleaned(executed(path)).cells}
    for cell in notebook.cells:
        if cell.cell_type != "code": continue
        if now[cell.id].source != cell.source: raise ValueError(f"{path.name} has changed since the run demo: cell {cell.id}")
        cell.outputs = now[cell.id].outputs
    nbformat.write(notebook, path)
    nbdev_clean(str(path))


if __name__ == "__main__":
    for path in [Path(a).resolve() for a in sys.argv[1:]]:
        store(path)
        print(path.relative_to(ROOT), flush=True)
