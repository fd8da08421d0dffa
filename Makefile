# `make demo` and `make test` need nothing but Python 3.11+, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch lives in PyTorch's own index, e.g. TORCH_INDEX=<that index>; empty takes the default build.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
INSTALLED := $(VENV)/.installed
PACKAGES := scapre validation infra flows tests

.DEFAULT_GOAL := help
.PHONY: help install mlflow prefect demo test test-services test-slow bench-engine bench-memory bench-quality simulate-verdicts sabotage chaos bench-render lint format types imports check clean browser

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,postgres]'
	touch $@

install: $(INSTALLED) ## make the virtual environment

demo: $(INSTALLED) ## forget ten concepts, judge, register, promote (minutes, CPU)
	$(BIN)/scapre demo

test: $(INSTALLED) ## the fast tests (CPU, offline)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-services: $(INSTALLED) ## the tests that need headless Chromium, PostgreSQL or 8 GB of disk
	$(BIN)/python -m pytest -m "(browser or postgres or disk) and not slow"

bench-quality: $(INSTALLED) ## every method and strength on the reference world, five seeds (hours, CPU; goes on where it was)
	$(BIN)/scapre benchmark --ablation

bench-engine: $(INSTALLED) ## time every method on SD 1.5's shapes against its bars (minutes, CPU)
	$(BIN)/python -m tests.benchmarks.engine --out var/bench-engine

simulate-verdicts: $(INSTALLED) ## 10,000 simulated judgements: how often the judge errs, how many pictures it takes (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.verdicts --out var/simulate-verdicts

bench-render: $(INSTALLED) ## pictures a second, side by side with plain diffusers loops (a minute, CPU)
	$(BIN)/python -m tests.benchmarks.rendering --out var/bench-render

chaos: $(INSTALLED) ## kill commands at 54 points and run them again; ten at once; 30 faults of the store (minutes, CPU)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --out var/chaos
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --crowd
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --faults

sabotage: $(INSTALLED) ## break model and set-up on purpose in thirty ways: nothing may pass (minutes, CPU)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.sabotage --out var/sabotage

test-slow: $(INSTALLED) ## the reference model's figures and the judge on it, at length
	$(BIN)/python -m pytest -m "slow"

browser: $(INSTALLED) ## only the tests that need headless Chromium
	$(BIN)/python -m pytest -m browser

bench-memory: $(INSTALLED) ## memory and time on a checkpoint of Stable Diffusion 1.5's size (8 GB of disk, minutes)
	$(BIN)/python -m tests.benchmarks.memory

lint: $(INSTALLED) ## ruff
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)

format: $(INSTALLED) ## rewrite with ruff
	$(BIN)/ruff check --fix $(PACKAGES)
	$(BIN)/ruff format $(PACKAGES)

types: $(INSTALLED) ## ty
	$(BIN)/ty check scapre validation infra flows

imports: $(INSTALLED) ## the direction of imports
	$(BIN)/lint-imports

check: lint types imports test ## all of the above

clean: ## remove what the demo made; the environment stays
	rm -rf var

mlflow: $(INSTALLED) ## open MLflow on what the demo made (http://127.0.0.1:5000)
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --workers 1 --backend-store-uri sqlite:///var/mlflow.db --port 5000

prefect: $(INSTALLED) ## open Prefect on what the demo ran (http://127.0.0.1:4200)
	PREFECT_HOME=$(CURDIR)/var/prefect PREFECT_SERVER_ANALYTICS_ENABLED=false $(BIN)/prefect server start --port 4200
