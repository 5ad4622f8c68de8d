"""The blocks that no test runs, each with its reason. Their commands are looked up all the same (`test_commands`)."""

DOCKER = (
    "needs a Docker daemon, and minutes of building images; "
    "tests/test_compose.py reads the file, its commands and its variables"
)
DIAGRAM = "a diagram"
HOURS = "hours of training"

# The page and the beginning of the block's first line -> why.
NOT_RUN = {
    (
        "README.md",
        "make demo    # the whole path on real images: upload, fine-t",
    ): "installs the whole stack, and runs this very suite; tests/packaging/test_wheel.py runs the demo",
    ("README.md", "client ──HTTP──▶ service ──row──▶ store ◀──claim, heartbeat─"): DIAGRAM,
    ("docs/architecture.md", "service  -> store, wbar          worker -> training, averagi"): DIAGRAM,
    (
        "docs/architecture.md",
        "python -c 'from wbar_store.database import Database; from wb",
    ): "writes a migration into the source tree",
    (
        "docs/operations.md",
        "pip install --require-hashes -r locks/worker.txt && pip inst",
    ): "installs gigabytes from the registry; tests/packaging/test_locks.py reads the locks",
    ("docs/operations.md", 'echo "POSTGRES_PASSWORD=$(openssl rand -hex 24)" > .env     '): DOCKER,
    ("docs/operations.md", "printf 'COMPOSE_PROFILES=gpu\\nTRAIN_WORKERS=0\\n' >> .env    "): DOCKER,
    ("docs/operations.md", "docker compose exec -T postgres pg_dump -U wbar -Fc wbar > w"): DOCKER,
    ("docs/results.md", "python -m benchmarks.gain --part training --results training"): HOURS,
    ("docs/results.md", "python -m benchmarks.batch_study --dataset digits --seeds 1 "): HOURS,
    ("docs/results.md", "python -m benchmarks.batch_study --dataset fashion-mnist --m"): HOURS,
    (
        "docs/tutorials/checkpoint.md",
        "pip install 'wbar[embedded]'",
    ): "installs torch, and runs until Ctrl-C; tests/service/test_embedded.py runs `wbar up`",
    ("docs/tutorials/team.md", 'echo "POSTGRES_PASSWORD=$(openssl rand -hex 24)" > .env'): DOCKER,
    ("docs/tutorials/team.md", "docker compose exec -T postgres pg_dump -U wbar -Fc wbar > w"): DOCKER,
}
