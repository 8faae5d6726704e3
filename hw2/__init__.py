import os

# Before torch is loaded: threads wait without spinning, and MKL adds in one order wherever a matrix lies (nbs/0_core/01_devices.ipynb)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = "0.1.0"
