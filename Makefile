# Two commands for users (demo, test), the rest for developers. Everything lives in .venv; nothing is installed outside.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATASET ?= builtin:digits

.PHONY: demo test models lint bench up clean

# One stamp per set of extras: reinstalled only when pyproject.toml changes.
$(VENV)/.embedded: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded]'
	@touch $@

$(VENV)/.test: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.embedded

demo: $(VENV)/.embedded ## upload, fine-tune, download, compare: the whole path on real images
	$(BIN)/python -m demo --dataset $(DATASET)

test: $(VENV)/.test ## the whole suite, with real servers
	$(BIN)/python -m pytest

models: $(VENV)/.test ## every architecture from upload to download, those that `make test` leaves out included
	$(BIN)/python -m pytest tests/training/test_every_architecture.py -m "models or not models"

lint: $(VENV)/.test ## style, types, and the arrows between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.test ## ratios against peers and limits, measured in one run
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.averaging

up: $(VENV)/.embedded ## the service on this machine, until Ctrl-C
	$(BIN)/wbar up

clean:
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache
