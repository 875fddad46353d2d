# resnet-serve: `make serve` and `make test` each do all their own set-up, from a fresh clone on.

SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help serve test check parity hostile load compare bench soak gpu format clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

serve: $(VENV)/.serve ## Serve on http://127.0.0.1:8000: your checkpoint in model_weights/, else ResNet-50 from torchvision
	@RESNET_WEIGHTS_FALLBACK=$${RESNET_WEIGHTS_FALLBACK:-offline-demo} exec $(BIN)/resnet-serve serve

test: $(VENV)/.dev ## Run the tests
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses=4 --dist loadfile

check: $(VENV)/.dev ## Check style, types and the import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

parity: $(VENV)/.dev ## Rebuild the stored fixtures with the real frameworks, and compare anew (GBs; Linux)
	@test -x .venv-parity/bin/python || "$(PYTHON)" -m venv .venv-parity
	@.venv-parity/bin/python -m pip install --quiet -r tests/parity/requirements.txt
	@for maker in tensorflow keras keras_variants objects; do CUDA_VISIBLE_DEVICES= .venv-parity/bin/python -m tests.parity.make_$$maker || exit 1; done
	@PYTHONPATH=.:$$(echo $(VENV)/lib/python3*/site-packages) CUDA_VISIBLE_DEVICES= .venv-parity/bin/python -m tests.parity.make_transformers
	@$(BIN)/python -m tests.parity.make_published
	@$(BIN)/pytest -q tests/test_parity_*.py tests/test_saved_model.py

hostile: $(VENV)/.dev ## Read 4,000 damaged checkpoints; decode hostile structures of 64 MB; send 10,000 damaged images beside good traffic, the largest bodies of every kind, and thousands of requests from the OpenAPI document (20 min)
	@$(BIN)/python -m tests.checkpoint_fuzz
	@$(BIN)/python -m tests.hostile_structures
	@$(BIN)/python -m tests.hostile_run
	@$(BIN)/python -m tests.large_bodies
	@HOSTILE_EXAMPLES=1000 $(BIN)/pytest -q tests/test_openapi_fuzz.py

load: $(VENV)/.dev ## Offer servers up to twenty times what they can answer, and storms of clients that retry at once; draw what they do; stop one under load 50 times (10 min)
	@$(BIN)/python -m benchmarks.load
	@SHUTDOWN_ROUNDS=50 $(BIN)/pytest -q tests/test_shutdown.py

compare: $(VENV)/.dev ## Measure this service and others (LitServe, Mosec, plain FastAPI) on the same work, in turn (5 min)
	@$(BIN)/python -m benchmarks.compare

bench: $(VENV)/.dev ## Measure the service, and how close it is to what this machine allows; BENCH='-- --backend null' (10 min)
	@$(BIN)/resnet-serve bench --output bench.json $(BENCH)

soak: $(VENV)/.dev ## Send 100,000 requests, and see whether memory or open files grow; SOAK='-- --backend null' (10 min or more)
	@$(BIN)/resnet-serve bench --requests 100000 --output soak.json $(SOAK)

gpu: $(VENV)/.dev ## On a machine with an NVIDIA GPU: run the tests that need one, then measure it (5 min)
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("PyTorch finds no CUDA device here (nvidia-smi shows what the driver sees).")'
	@$(BIN)/pytest -m gpu
	@$(BIN)/python -m benchmarks.gpu

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what `make` made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build app/images/resample-*.so

$(VENV)/.pip: constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later was not found. Install it, or name it: make serve PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11. Name a newer one: make serve PYTHON=/path/to/python3"; exit 1; }
	@echo "[1/2] Making a virtual environment in $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)
	@$(INSTALL) --quiet pip
	@touch $@

$(VENV)/.serve: $(VENV)/.pip pyproject.toml hatch_build.py resnet_serve.py app/images/resample.c app/images/kernel_build.py
	@echo "[2/2] Installing what serving needs. PyTorch is the most of it (some GB on Linux): minutes, once"
	@$(INSTALL) -e '.[offline-demo,keras,pictures]'
	@touch $@

$(VENV)/.dev: $(VENV)/.serve pyproject.toml
	@echo "Installing what tests and checks need"
	@$(INSTALL) --quiet --group dev
	@touch $@
