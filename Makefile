# These commands do everything on a machine with python3 (3.10 to 3.12) and make:
#   make quickstart   sets up, trains BA-ResNet-50 on real handwritten digits, evaluates it
#   make test         sets up, runs the linter, the type checker and the tests
#   make results      trains two attentions with two seeds on digits and writes their table to runs/results (minutes)
#   make docs         builds the documentation site to build/site
#   make quick        the tests that take seconds: without killed runs, launchers, MMDetection and every pairing of networks
# They set up .venv only when pyproject.toml or constraints.txt have changed.
#   make .venv/.compiled   also compiles mmcv's operators (a C++ compiler; 6 to 12 minutes on 2 cores), which no config here needs

PYTHON ?= python3
BIN := .venv/bin
# One more than cores: launchers and killed runs spend a third of their tests' time waiting.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() + 1))')
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --compile-bytecode --editable

.PHONY: quickstart test quick lint docs results format clean
.DELETE_ON_ERROR:

quickstart: .venv/.core
	$(BIN)/python train.py attention=ba backbone=resnet50 data=digits schedule=quick channels_last=true
	$(BIN)/python eval.py checkpoint=runs/resnet50-ba-digits-quick/seed0/best.pt

quick: .venv/.core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m 'not slow' --ignore tests/faults --ignore tests/detection --ignore tests/models --ignore tests/backbones

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: .venv/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

docs: .venv/.core
	$(BIN)/python scripts/docs.py build
	$(BIN)/mkdocs build --strict --quiet -f build/mkdocs.yml
	@echo 'Built build/site/index.html.'

results: .venv/.core
	$(BIN)/python scripts/results.py run digits --methods none,se --seeds 0,1
	$(BIN)/python scripts/results.py table digits --out runs/results

format: .venv/.core
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), but 3.10 to 3.12 is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# First from uv's cache alone: if the registry cannot be asked whether anything has changed, uv would build mmcv again.
.venv/.core: pyproject.toml constraints.txt | $(BIN)/uv
	@echo 'Setting up .venv.'
	@$(INSTALL) '.[wandb,dev]' --offline 2>/dev/null || $(INSTALL) '.[wandb,dev]'
	@$(BIN)/python -m attn.build --optional
	@touch $@

.venv/.all: .venv/.core
	@echo 'Setting up MMDetection, MMSegmentation and MMPretrain.'
	@$(INSTALL) '.[wandb,dev,mmseg]' --offline 2>/dev/null || \
	  $(INSTALL) '.[wandb,dev,mmseg]'
	@touch $@

.venv/.compiled: .venv/.all
	@echo 'Compiling the operators of mmcv (6 to 12 minutes on 2 cores).'
	$(BIN)/uv pip install --quiet --python $(BIN)/python setuptools wheel ninja psutil
	MAX_JOBS=2 $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --compile-bytecode \
	  --no-deps --no-cache --no-build-isolation --no-binary onedl-mmcv --reinstall-package onedl-mmcv onedl-mmcv
	@touch $@
