"""pyproject.toml says what is built. Here: in a folder of its own, for whatever an earlier build left in build/ would get into the wheel"""

from tempfile import TemporaryDirectory

from setuptools import setup

with TemporaryDirectory() as folder: setup(options={"build": {"build_base": folder}, "egg_info": {"egg_base": folder}})
