"""The blocks that no test runs, each with its reason. Their commands are looked up all the same (`test_commands`)."""

DOCKER = "needs a Docker daemon and minutes of building images; tests/test_compose.py reads the file, its commands and its variables"
GRAMMAR = "a diagram"
HOURS = "hours of training"

# (page, first line) -> why
NOT_RUN = {
    ("README.md", "make demo    # the whole path on real images: upload, fine-tune, download, compare (minutes; installs into .venv)"):
        "installs the whole stack, and runs this very suite; tests/journey runs the demo",
    ("README.md", "client ──HTTP──▶ service ──row──▶ store ◀──claim, heartbeat── worker ──fresh process──▶ training ──▶ averaging"): GRAMMAR,
    ("docs/architecture.md", "service  -> store, wbar          worker -> training, averaging, store, wbar"): GRAMMAR,
    ("docs/architecture.md", """python -c 'from wbar_store.database import Database; from wbar_store.migrate import new_revision; new_revision(Database("sqlite:///before.db"), "what changes")'"""):
        "writes a migration into the source tree",
    ("docs/operations.md", "pip install --require-hashes -r locks/worker.txt && pip install --no-deps wbar"):
        "installs gigabytes from the registry; tests/packaging/test_locks.py reads the locks",
    ("docs/operations.md", 'echo "POSTGRES_PASSWORD=$(openssl rand -hex 24)" > .env      # letters and digits: it becomes part of a URL'): DOCKER,
    ("docs/operations.md", r"printf 'COMPOSE_PROFILES=gpu\nTRAIN_WORKERS=0\n' >> .env      # needs NVIDIA's driver and container toolkit"): DOCKER,
    ("docs/operations.md", "docker compose exec -T postgres pg_dump -U wbar -Fc wbar > wbar.dump"): DOCKER,
    ("docs/results.md", "python -m benchmarks.gain --part training --results training.jsonl --markdown training.md    # hours on two cores; finished arms are kept and not run again"): HOURS,
    ("docs/tutorials/checkpoint.md", "pip install 'wbar[embedded]'"): "installs torch, and runs until Ctrl-C; tests/packaging installs, and the backup of docs/operations.md is of a real `wbar up`",
    ("docs/tutorials/team.md", 'echo "POSTGRES_PASSWORD=$(openssl rand -hex 24)" > .env'): DOCKER,
    ("docs/tutorials/team.md", "docker compose exec -T postgres pg_dump -U wbar -Fc wbar > wbar.dump"): DOCKER,
}  # fmt: skip
