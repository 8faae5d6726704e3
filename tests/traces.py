"""What runs leave behind, and how it is compared"""

import json
from pathlib import Path

from hw2.core.files import file_hash

VARIES = {"report.html", "run.json", "params.yaml"}  # with the notebooks: what times and paths are written to


def lasting(run: Path) -> dict[str, str]:
    "The files that equal runs leave equal, with a hash of their bytes."
    return {str(p.relative_to(run)): file_hash(p) for p in sorted(run.rglob("*")) if p.is_file() and p.name not in VARIES and p.suffix != ".ipynb"}


def parts_of(cache: Path) -> dict[str, tuple[int, int]]:
    "The parts of all stores, with what changes when one is written again."
    return {str(p.relative_to(cache)): (p.stat().st_mtime_ns, p.stat().st_ino) for p in cache.glob("*/part-*.parquet")}


def record(run: Path) -> dict:
    "run.json."
    return json.loads((run/"run.json").read_text(encoding="utf-8"))
