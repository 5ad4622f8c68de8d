# Two commands for users (demo, test), the rest for developers. Everything lives in .venv; nothing is installed outside.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATASET ?= builtin:digits
PROCESSES ?= 2

GPU ?= --minutes 9 --out .gpu
FAULTS ?= --count 1000 --seed 0 --seconds 3600 --database both

.PHONY: demo test long models models-timm models-transformers gpu fuzz fuzz-guided faults clients lint client docs bench bench-load bench-gain-quick lock up clean

# One stamp per set of extras: reinstalled only when pyproject.toml changes.
$(VENV)/.embedded: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes, the first time …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded]'
	@touch $@

$(VENV)/.test: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes, the first time …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.embedded

demo: $(VENV)/.embedded ## upload, fine-tune, download, compare: the whole path on real images
	$(BIN)/wbar demo --dataset $(DATASET)

# Each process has a thread of its own: two that share a core's threads take many times as long. Each begins with one part of the
# suite, in its order, and so what a module or the tests of one database start is started once.
test: $(VENV)/.test ## the suite, with real servers, in two processes; `make long` and `make models` have the rest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal

long: $(VENV)/.test ## the tests that `make test` leaves out for their length, so that it stays under a quarter of an hour
	$(BIN)/python -m pytest -m long

models: $(VENV)/.test ## every architecture from upload to download, those that `make test` leaves out included
	$(BIN)/python -m pytest tests/training/test_every_architecture.py -m "models or not models"

models-timm: $(VENV)/.test ## 38 of timm's families from upload to download, beyond the three of `make test`; long
	$(BIN)/python -m pytest tests/training/test_timm_families.py -m "models or not models"

models-transformers: $(VENV)/.test ## eleven of transformers' families from upload to the folder that it loads, beyond the two of `make test`
	$(BIN)/python -m pytest tests/training/test_transformers_families.py -m "models or not models"

fuzz: $(VENV)/.test ## ten thousand hostile uploads against the readers, in the processes that the worker starts; minutes
	$(BIN)/python -m tests.fuzz --inputs 10000 --seed 0

fuzz-guided: $(VENV)/.test ## coverage-guided inputs against each reader in turn (installs atheris); minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=3'
	for reader in checkpoint dataset multilabel regression segmentation detection; do $(BIN)/python -m tests.fuzz.guided --reader $$reader --seconds 240 || exit 1; done

# openapi-python-client's upper bounds hold the command line's libraries back: it has an environment of its own.
$(VENV)/clients/bin/openapi-python-client: | $(VENV)/.test
	$(PYTHON) -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip install --quiet --disable-pip-version-check 'openapi-python-client>=0.29'

clients: $(VENV)/clients/bin/openapi-python-client ## four generators make clients of the schema: two of Python's, and with node and Java two more
	WBAR_TEST_OPENAPI_PYTHON_CLIENT=$(abspath $(VENV))/clients/bin/python $(BIN)/python -m pytest tests/clients
	$(BIN)/python -m tests.clients

# As root it does all of them (full disks, memory limits, a PostgreSQL of its own); otherwise it leaves out what it may not do.
faults: $(VENV)/.test ## seeded faults at every named point of the real service, within an hour; a rerun goes on where it stopped
	$(BIN)/python -m tests.faults --state $(VENV)/faults.jsonl $(FAULTS)

# On a machine without a network: `python tools/fetch_gpu_wheels.py` elsewhere, and .wheels/ carried there.
gpu: ## what only a GPU can show, in ten minutes at most; a rerun goes on where it stopped
	@if [ -d .wheels ]; then sh tools/gpu_machine.sh python3 -m benchmarks.gpu $(GPU); \
	else $(MAKE) $(VENV)/.test && $(BIN)/python -m benchmarks.gpu $(GPU); fi

client: $(VENV)/.test ## derive the blocking client from the asynchronous one
	$(BIN)/python tools/derive_client.py

$(VENV)/.docs: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes, the first time …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs ## the pages as a site in site/: a link that leads nowhere fails; nothing is asked of the network
	$(BIN)/zensical build --strict --clean

lint: $(VENV)/.test ## style, types, and the arrows between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.test ## ratios against peers and limits, measured in one run
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.averaging

bench-load: $(VENV)/.test ## many jobs, many streams, many uploads: bounded, on loopback, minutes
	$(BIN)/python -m benchmarks --only jobs --only streams --only uploads --only upload --only requests --only held

bench-gain-quick: $(VENV)/.test ## what averaging gives in three blocks, as a guard against regressions (Fashion-MNIST must be there); minutes
	rm -f $(VENV)/gain-quick.jsonl
	$(BIN)/python -m benchmarks.gain --part quick --results $(VENV)/gain-quick.jsonl --starts $(VENV)/gain-starts

lock: $(VENV)/.test ## pin what API and workers need, with digests; then audit it where the vulnerability service can be reached
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv pip-audit
	for part in service worker; do $(BIN)/uv pip compile pyproject.toml --extra $$part --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --upgrade --quiet --output-file locks/$$part.txt; done
	$(BIN)/pip-audit --disable-pip --requirement locks/service.txt --requirement locks/worker.txt

up: $(VENV)/.embedded ## the service on this machine, until Ctrl-C
	$(BIN)/wbar up

clean:
	rm -rf $(VENV) .demo site .cache .pytest_cache .mypy_cache .ruff_cache
