# Two commands do everything on a machine with python3 (3.10 to 3.12), make and a C compiler:
#   make quickstart   sets up, trains BA-ResNet-50 on real handwritten digits, evaluates it
#   make test         sets up, runs the linter, the type checker and the tests
# Both set up .venv only when pyproject.toml or constraints.txt have changed.

PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --compile-bytecode --editable

.PHONY: quickstart test lint format clean
.DELETE_ON_ERROR:

quickstart: .venv/.core
	$(BIN)/python train.py attention=ba backbone=resnet50 data=digits schedule=quick channels_last=true
	$(BIN)/python eval.py checkpoint=runs/resnet50-ba-digits/seed0/best.pt

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: .venv/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

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

# First from uv's cache alone: where the registry cannot say that nothing has changed, uv would compile mmcv once more.
.venv/.core: pyproject.toml constraints.txt | $(BIN)/uv
	@echo 'Setting up .venv.'
	@$(INSTALL) '.[wandb,dev]' --offline 2>/dev/null || $(INSTALL) '.[wandb,dev]'
	@$(BIN)/python -m attn.kernels.build --optional
	@touch $@

.venv/.all: .venv/.core
	@echo 'Setting up MMDetection: its operators are compiled once (6 to 12 minutes on 2 cores) and cached from then on.'
	@$(INSTALL) '.[wandb,dev,detection]' --offline 2>/dev/null || \
	  $(INSTALL) '.[wandb,dev,detection]'
	@touch $@
