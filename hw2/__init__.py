"""How much of a video's label does each kind of feature carry? The names of `__all__` are imported at their first use"""

import os
from importlib import import_module

# Before torch is loaded: threads wait without spinning, and MKL adds in one order wherever a matrix lies (nbs/0_core/01_devices.ipynb)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = "0.1.0"

_MODULES = {"Run": "hw2.run.run", "load": "hw2.run.run", "SIFT": "hw2.features.sift", "BagOfWords": "hw2.features.sift",
            "FrameEmbeddings": "hw2.features.frames", "ClipEmbeddings": "hw2.features.clips", "MLP": "hw2.classifier.mlp",
            "catalogue": "hw2.features.catalogue"}  # where each name is made; the catalogue is the module itself
__all__ = list(_MODULES)


def __getattr__(name: str):
    "A name of `__all__` at its first use (PEP 562)."
    if name not in _MODULES: raise AttributeError(f"module 'hw2' has no attribute {name!r}", name=name)
    module = import_module(_MODULES[name])
    globals()[name] = module if _MODULES[name].endswith(f".{name}") else getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    "What is here, the names that are not imported yet included."
    return sorted({*globals(), *__all__})
