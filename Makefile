# make report | test | real | soak | lab | outputs | docs | hooks | ablation | bench: each makes .venv first when it is missing or the pins changed
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/installed
SHELL := /bin/bash
comma := ,
TIMED = start=$$SECONDS; trap 'echo "$(notdir $@): $$((SECONDS - start)) s"' EXIT

# what `make outputs` executes; experiments are stored from a run: make report, then NOTEBOOKS="nbs/experiments/extract.ipynb ..."
NOTEBOOKS = $(filter-out nbs/experiments/%,$(wildcard nbs/*.ipynb nbs/*/*.ipynb)) nbs/experiments/published.ipynb

.PHONY: help report test real soak lab outputs docs hooks ablation bench clean

help:
	@echo "make report   draw the demo set, extract, train, report: runs/demo/report.html and figures/"
	@echo "make test     every test: package (notebooks, export, imports, wheel), unit, runs, faults, browser"
	@echo "make real     the same on 90 real clips in data/weizmann, with trained networks: docs/real-video.md"
	@echo "make soak     30 kills of a run and 500 mutated videos, where make test has a few"
	@echo "make outputs  execute the notebooks and store what they show, half an hour; NOTEBOOKS=\"nbs/2_features/21_sift.ipynb ...\": only these"
	@echo "make lab      JupyterLab on the notebooks"
	@echo "make docs     README, docs and notebooks as a site with a search: _docs/html/index.html"
	@echo "make hooks    for who changes notebooks: git merges and shows them cell by cell, and cleans and exports them before a commit"
	@echo "make ablation one factor at a time on the demo set, 29 short runs: figures/ablation.*; what is done is not done again"
	@echo "make bench    every stage against the plain way, about an hour on a quiet machine: figures/bench.*; CLIPS=folder: clips from real videos"
	@echo "make clean    remove .venv, _docs and all runs"

$(STAMP): constraints.txt pyproject.toml setup.py
	@$(TIMED); set -e; echo "making .venv with $(PYTHON): some minutes, 2 GB, more with CUDA"; \
	$(PYTHON) -m venv --clear .venv; \
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	touch $@

report: $(STAMP)
	@$(TIMED); set -e; \
	$(BIN)/hw2 run --params nbs/experiments/params/demo.yaml --publish

test: $(STAMP)
	@$(TIMED); $(BIN)/python -m pytest

# MobileNetV2's weights come from a model hub; without their file it is left out
MOBILENET := $(wildcard weights/mobilenet_v2-imagenet.pth)
real: $(STAMP)
	@$(TIMED); set -e; \
	$(BIN)/hw2 run --params weizmann \
	  $(if $(MOBILENET),-p features.mobilenet_v2 '{kind: frames$(comma) backbone: mobilenet_v2$(comma) weights: $(MOBILENET)$(comma) fps: 3}'); \
	$(BIN)/hw2 publish weizmann --page docs/real-video.md

soak: $(STAMP)
	@$(TIMED); $(BIN)/python -m pytest --soak -m soak -o faulthandler_timeout=0

lab: $(STAMP)
	$(BIN)/jupyter lab nbs

outputs: $(STAMP)
	@$(TIMED); $(BIN)/python tests/stored_outputs.py $(NOTEBOOKS)

docs: $(STAMP)
	@$(TIMED); set -e; $(BIN)/sphinx-build -b html -c docs -E -q -d _docs/doctrees -W --keep-going . _docs/html; echo _docs/html/index.html

# absolute paths: the settings are shared by all work trees of a clone
hooks: $(STAMP)
	git config merge.nbdev-merge.name "nbdev: conflicts stay within cells"
	git config merge.nbdev-merge.driver "'$(CURDIR)/$(BIN)/nbdev_merge' %O %A %B %P"
	git config diff.jupyternotebook.command "'$(CURDIR)/$(BIN)/git-nbdiffdriver' diff --ignore-metadata --ignore-details"
	$(BIN)/pre-commit install

ablation bench: export JUPYTER_PATH :=  # the kernel python3 is to be .venv's

ablation: $(STAMP)
	@$(TIMED); set -e; mkdir -p runs/ablation; \
	$(BIN)/papermill nbs/experiments/ablation.ipynb runs/ablation/ablation.ipynb -k python3

# libgomp's own default, over the package's: the plain ways are to run as torch is delivered
bench: $(STAMP)
	@$(TIMED); set -e; mkdir -p runs/bench; \
	GOMP_SPINCOUNT=300000 $(BIN)/papermill nbs/experiments/bench.ipynb runs/bench/bench.ipynb -k python3 $(if $(CLIPS),-r clips "$(CLIPS)")

clean:
	rm -rf .venv _docs runs
