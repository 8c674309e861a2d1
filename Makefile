# make run: the whole pipeline. make test: all checks. make help: the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := $(CURDIR)/.venv/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Another index for torch alone, such as PyTorch's own with CPU builds; PyPI's Linux build brings gigabytes of CUDA.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

export PATH := $(BIN):$(PATH)
# Nothing here asks a hub or phones home. A preset whose model comes from a hub needs HF_HUB_OFFLINE=0.
export HF_HUB_OFFLINE ?= 1
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := False
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help run nights shell study study-quick study-methods study-trials study-ablations bench check test lint types up down clean

help:  ## list the targets
	@sed -nE 's/^([a-z.-]+):[^#]*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

run: .venv  ## run what is not up to date, then print the figures and where the report is
	dvc repro
	@lpo summary

study-quick: .venv  ## compare LPO, SPO, GRPO and Diffusion-DPO with one seed, about 25 minutes, then write studies/results
	$(BIN)/python studies/run.py quick

study-methods: .venv  ## the same with three seeds of the tuning and two learning rates each
	$(BIN)/python studies/run.py methods

study-trials: .venv  ## learning rates and restraints of every method, one minute each; validation chooses
	$(BIN)/python studies/run.py trials

study-ablations: .venv  ## every change of parameters against the default, two seeds, as many prompts each
	$(BIN)/python studies/run.py ablations

study: .venv  ## both; takes hours, goes on where it was stopped, and past a cell that fails
	$(MAKE) --keep-going study-methods study-ablations

nights: .venv  ## three nights in small, in .nights: a simulated team votes on the page, the next night learns from it
	$(BIN)/python studies/nights.py $(NIGHTS)

shell: .venv  ## a shell in which `lpo`, `dvc` and `prefect` are on the PATH
	@echo 'lpo, dvc and prefect are on the PATH; leave with exit'; $${SHELL:-bash} -i

up: .venv  ## start Prefect here: server, pool, deployments, a worker; then print its address
	@$(BIN)/python -m flows.service up

down: .venv  ## stop what up started
	@$(BIN)/python -m flows.service down

check: .venv/.tools lint types  ## lint, types and the fast tests: under two minutes on two cores
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not slow and not prefect'

# Three processes on two cores: those of Prefect's tests wait a good part of their time.
test: .venv/.tools lint types  ## lint, types and all tests
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

bench: .venv  ## speed, memory and FLOPs beside the published recipe: benchmarks/README.md
	$(BIN)/python -m benchmarks

lint: .venv/.tools  ## ruff
	$(BIN)/ruff check .

types: .venv/.tools  ## mypy
	$(BIN)/mypy

.venv: .venv/.installed  ## make the environment (done by run and test when it is missing or out of date)

.venv/.installed: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3.11'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) setuptools
	$(PIP) --no-build-isolation --editable '.[operations]'
	@touch $@

.venv/.tools: .venv/.installed
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

clean:  ## remove caches and logs; data, checkpoints and the environment stay
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache .wandb dvclive build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
