"""The compose file, the Dockerfile and the operations page against the code they describe: nothing is built or started.

Where `docker-compose` (or the `docker compose` plugin) is installed it reads the file too; everything else needs no binary.
"""

import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import typer
import yaml
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings
from sqlalchemy import update

import wbar_service.commands
import wbar_worker.commands
from tests.store.rows import insert_inputs, spec
from wbar_service.settings import ServiceSettings
from wbar_store.database import Tenant, now
from wbar_store.migrate import upgrade
from wbar_store.settings import StoreSettings
from wbar_store.store import Store
from wbar_store.tables import jobs
from wbar_store.workers import WorkerRecord
from wbar_worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
SECRET = {"POSTGRES_PASSWORD": "abc123"}

# Which image each service runs, which settings its process reads; None: an official image, configured by itself.
API, WORKER = ("api", ServiceSettings), ("worker", WorkerSettings)
SERVICES: dict[str, tuple[str, type[StoreSettings]] | None] = {
    "api": API,
    "migrate": API,
    "worker": WORKER,
    "worker-gpu": WORKER,
    "ingest": WORKER,
    "sweeper": WORKER,
    "postgres": None,
    "valkey": None,
}
ONE_SHOT = {"migrate"}
OURS = sorted(name for name, image in SERVICES.items() if image is not None)
LONG_RUNNING = sorted(set(SERVICES) - ONE_SHOT)

# The part of the Compose specification that the file uses; a misspelt key is refused, as Compose itself does.
DURATION = {"type": "string", "pattern": r"^(\d+(h|m|s|ms))+$"}
STRINGS = {"type": "array", "items": {"type": "string"}}
COMMAND = {"anyOf": [STRINGS, {"type": "string"}]}
MAP = {"type": "object", "additionalProperties": {"type": ["string", "number", "null"]}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["services", "volumes"],
    "additionalProperties": False,
    "patternProperties": {"^x-": {}},
    "properties": {
        "volumes": {"type": "object", "additionalProperties": {"type": ["object", "null"]}},
        "services": {"type": "object", "additionalProperties": {"$ref": "#/$defs/service"}},
    },
    "$defs": {
        "service": {
            "type": "object",
            "additionalProperties": False,
            "oneOf": [{"required": ["image"]}, {"required": ["build"]}],
            "properties": {
                "image": {"type": "string"},
                "build": {
                    "type": "object",
                    "required": ["context", "target"],
                    "additionalProperties": False,
                    "properties": {"context": {"type": "string"}, "target": {"type": "string"}, "args": MAP},
                },
                "command": COMMAND,
                "environment": MAP,
                "depends_on": {
                    "type": "object",
                    "additionalProperties": {
                        "type": "object",
                        "required": ["condition"],
                        "additionalProperties": False,
                        "properties": {
                            "condition": {
                                "enum": ["service_started", "service_healthy", "service_completed_successfully"]
                            }
                        },
                    },
                },
                "healthcheck": {
                    "type": "object",
                    "required": ["test", "interval", "timeout", "retries"],
                    "additionalProperties": False,
                    "properties": {
                        "test": {"type": "array", "minItems": 2, "items": {"type": "string"}},
                        "interval": DURATION,
                        "timeout": DURATION,
                        "start_period": DURATION,
                        "retries": {"type": "integer", "minimum": 1},
                    },
                },
                "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
                "stop_grace_period": DURATION,
                "init": {"type": "boolean"},
                "cap_drop": STRINGS,
                "security_opt": STRINGS,
                "profiles": STRINGS,
                "ports": STRINGS,
                "volumes": STRINGS,
                "deploy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "replicas": {"type": "string", "pattern": r"^\d+$"},
                        "resources": {"type": "object"},
                    },
                },
            },
        },
    },
}


class Missing(ValueError):
    """A variable that must be set is not."""


def interpolated(value: Any, variables: dict[str, str]) -> Any:
    """`$$`, `${NAME}`, `${NAME:-default}` and `${NAME:?message}` in every string, as Compose replaces them."""
    if isinstance(value, dict):
        return {key: interpolated(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def replace(found: re.Match[str]) -> str:
        if found["escape"]:
            return "$"
        assert found["name"], f"a $ that Compose would not understand in {value!r}"
        given = variables.get(found["name"], "")
        if not given and found["operator"] == ":?":
            raise Missing(f"{found['name']}: {found['rest']}")
        return given or (found["rest"] if found["operator"] == ":-" else "")

    return re.sub(r"\$(?:(?P<escape>\$)|\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<rest>[^}]*))?\}|)", replace, value)


def read(**variables: str) -> dict[str, Any]:
    """The file with its anchors and variables resolved."""
    found: dict[str, Any] = interpolated(yaml.safe_load(FILE.read_text()), variables)
    return found


SPEC = read(**SECRET)["services"]


def seconds(duration: str) -> float:
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)(ms|h|m|s)", duration))


def mounts(name: str) -> dict[str, str]:
    """Target folder -> volume."""
    return {target: volume for volume, target in (item.split(":") for item in SPEC[name].get("volumes", []))}


# The file as a whole.


def compose_binary() -> list[str] | None:
    for command in (["docker-compose"], ["docker", "compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            return command
    return None


def mentioned() -> set[str]:
    """Every variable that the file or Compose itself would take from the environment."""
    own = {name for name in os.environ if name.startswith("COMPOSE_")}
    return own | set(re.findall(r"\$\{(\w+)", FILE.read_text()))


def rendered(folder: Path, **variables: str) -> dict[str, Any]:
    """What Compose makes of the file; where it is not installed, what the schema above and our own reading make of it."""
    command = compose_binary()
    if command is None:
        found = read(**variables)
        jsonschema.validate(found, SCHEMA)
        return found
    nothing = folder / "empty.env"  # a developer's own .env must not count
    nothing.touch()
    done = subprocess.run(
        [*command, "--env-file", str(nothing), "--file", str(FILE), "--profile", "gpu", "config"],
        env={name: value for name, value in os.environ.items() if name not in mentioned()} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode != 0:
        raise (Missing if "POSTGRES_PASSWORD" in done.stderr else AssertionError)(done.stderr)
    resolved: dict[str, Any] = yaml.safe_load(done.stdout)
    return resolved


def test_the_file_fits_the_specification() -> None:
    jsonschema.validate(read(**SECRET), SCHEMA)


def test_compose_understands_it_as_this_test_does(tmp_path: Path) -> None:
    found = rendered(tmp_path, **SECRET)["services"]
    assert set(found) == set(SERVICES)
    for name in SERVICES:
        expected = {key: str(value) for key, value in SPEC[name].get("environment", {}).items()}
        assert {key: str(value) for key, value in found[name].get("environment", {}).items()} == expected
        assert set(found[name].get("depends_on", {})) == set(SPEC[name].get("depends_on", {}))
        assert found[name].get("healthcheck", {}).get("test") == SPEC[name].get("healthcheck", {}).get("test")


def test_it_is_refused_without_a_password(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="POSTGRES_PASSWORD"):
        rendered(tmp_path)
    with pytest.raises(Missing, match="POSTGRES_PASSWORD"):
        read()


def test_the_password_is_written_nowhere() -> None:
    uses = re.findall(r"\$\{POSTGRES_PASSWORD(..)", FILE.read_text())
    assert uses == [":?"] * len(uses), "a default password"
    for name, value in read(POSTGRES_PASSWORD="marker")["services"].items():
        for variable, content in value.get("environment", {}).items():
            if "PASSWORD" in variable:
                assert content == "marker", f"{name} has a {variable} of its own"


# Its services.


def test_every_part_of_the_service_is_there() -> None:
    assert set(SPEC) == set(SERVICES)
    commands = {name: " ".join(SPEC[name]["command"]) for name in OURS}
    assert commands == {
        "api": "wbar serve",
        "migrate": "wbar migrate",
        "worker": "wbar worker",
        "worker-gpu": "wbar worker",
        "ingest": "wbar worker --queue ingest",
        "sweeper": "wbar sweep",
    }


@pytest.mark.parametrize("name", OURS)
def test_a_command_is_one_that_wbar_has(name: str) -> None:
    app = typer.Typer()
    app.registered_commands += (
        wbar_service.commands.app.registered_commands + wbar_worker.commands.app.registered_commands
    )
    program, command, *arguments = SPEC[name]["command"]
    assert program == "wbar"
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    assert command in group.commands
    group.commands[command].make_context(command, list(arguments))  # raises on an unknown option


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_long_running_service_is_checked_restarted_and_given_time_to_stop(name: str) -> None:
    spec = SPEC[name]
    assert spec["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert seconds(spec["healthcheck"]["timeout"]) <= seconds(spec["healthcheck"]["interval"])
    assert spec["restart"] == "unless-stopped"
    assert "stop_grace_period" in spec


@pytest.mark.parametrize("name", sorted(ONE_SHOT))
def test_a_one_shot_service_is_not_restarted(name: str) -> None:
    assert SPEC[name]["restart"] == "no"
    assert "healthcheck" not in SPEC[name]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_a_service_waits_for_can_come_true(name: str) -> None:
    for other, how in SPEC[name].get("depends_on", {}).items():
        assert other in SPEC, f"{name} waits for {other}, which does not exist"
        assert "profiles" not in SPEC[other], f"{name} waits for {other}, which is not started by default"
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SPEC[other]
        if how["condition"] == "service_completed_successfully":
            assert other in ONE_SHOT
    if SERVICES[name] is not None and name not in ONE_SHOT:
        assert SPEC[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_nothing_waits_in_a_circle() -> None:
    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        for other in SPEC[name].get("depends_on", {}):
            visit(other, (*above, name))

    for name in SPEC:
        visit(name, ())


@pytest.mark.parametrize("name", OURS)
def test_its_image_is_the_right_target(name: str) -> None:
    image = SERVICES[name]
    assert image is not None
    assert SPEC[name]["build"]["target"] == image[0]
    assert (ROOT / SPEC[name]["build"]["context"]).resolve() == ROOT


@pytest.mark.parametrize("name", sorted(name for name, image in SERVICES.items() if image is None))
def test_an_official_image_is_pinned_to_its_major_version(name: str) -> None:
    assert re.fullmatch(r"[a-z]+(/[a-z]+)?:\d+(\.\d+)*(-[a-z]+)?", SPEC[name]["image"])


@pytest.mark.parametrize("name", OURS)
def test_its_variables_are_fields_of_its_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = SERVICES[name]
    assert image is not None
    settings = image[1]
    for variable in [found for found in os.environ if found.startswith("WBAR_")]:
        monkeypatch.delenv(variable)
    given = {key: str(value) for key, value in SPEC[name]["environment"].items() if key.startswith("WBAR_")}
    unknown = set(given) - variables_of(settings)
    assert not unknown, f"{settings.__name__} has no field for them"
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    read_back = settings()  # raises on a value that does not fit
    assert read_back.database_url == "postgresql://wbar:abc123@postgres:5432/wbar"
    assert read_back.broker_url.startswith("redis://valkey:")


def test_only_the_api_is_published_and_on_the_loopback_address_unless_told_otherwise() -> None:
    assert {name for name in SPEC if "ports" in SPEC[name]} == {"api"}
    assert SPEC["api"]["ports"] == ["127.0.0.1:8000:8000"]
    assert str(SPEC["api"]["environment"]["WBAR_PORT"]) == "8000"
    assert SPEC["api"]["environment"]["WBAR_HOST"] == "0.0.0.0"


@pytest.mark.parametrize("name", sorted(set(OURS) - ONE_SHOT))
def test_blobs_and_scratch_lie_on_volumes(name: str) -> None:
    environment = SPEC[name]["environment"]
    assert mounts(name)[environment["WBAR_BLOBS_URL"].removeprefix("file://")] == "blobs"
    if SERVICES[name] == WORKER:
        assert mounts(name)[environment["WBAR_SCRATCH"]] == "scratch"


def test_every_volume_is_declared_and_used() -> None:
    used = {volume for name in SPEC for volume in mounts(name).values()}
    assert used == set(read(**SECRET)["volumes"]) == {"broker", "database", "blobs", "scratch"}


def test_workers_have_time_to_drain() -> None:
    drain = WorkerSettings.model_fields["drain_seconds"].default
    for name in ("worker", "worker-gpu", "ingest"):
        assert seconds(SPEC[name]["stop_grace_period"]) >= drain + 15


def test_a_gpu_is_asked_for_only_by_the_profile() -> None:
    asking = {name for name, spec in SPEC.items() if "resources" in spec.get("deploy", {})}
    assert asking == {name for name, spec in SPEC.items() if "profiles" in spec} == {"worker-gpu"}
    assert all("WBAR_DEVICE" not in SPEC[name]["environment"] for name in OURS if name != "worker-gpu")


# The health checks, run as they stand in the file.


def run_check(name: str, environment: dict[str, str], **replaced: str) -> subprocess.CompletedProcess[str]:
    kind, program, flag, code = SPEC[name]["healthcheck"]["test"]
    assert (kind, program, flag) == ("CMD", "python", "-c")
    for old, new in replaced.items():
        assert old.removeprefix("_") in code
        code = code.replace(old.removeprefix("_"), new)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WBAR_")}
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**clean, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@dataclass
class Here:
    store: Store
    environment: dict[str, str]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    """An empty store on SQLite; `memory://` stands for a broker that answers."""
    settings = StoreSettings(
        database_url=f"sqlite:///{tmp_path / 'wbar.db'}",
        broker_url="memory://",
        blobs_url=f"file://{tmp_path / 'blobs'}",
    )
    store = Store.open(settings)
    upgrade(store.database)
    yield Here(store, {f"WBAR_{name.upper()}": str(value) for name, value in settings.model_dump().items()})
    store.close()


@pytest.mark.parametrize("name", ["worker", "ingest"])
def test_a_worker_is_healthy_while_it_is_seen(name: str, here: Here) -> None:
    here.store.workers.seen(WorkerRecord("train-7@another-host", "train", "cpu", 1))
    alone = run_check(name, here.environment)
    assert alone.returncode == 1
    assert "is not among ['train-7@another-host']" in alone.stderr
    here.store.workers.seen(WorkerRecord(f"{name}-7@{socket.gethostname()}", "train", "cpu", 1))
    seen = run_check(name, here.environment)
    assert (seen.returncode, seen.stderr) == (0, "")
    here.store.workers.gone(f"{name}-7@{socket.gethostname()}")
    assert run_check(name, here.environment).returncode == 1


def test_the_sweeper_is_healthy_while_no_lost_job_lies_about(here: Here) -> None:
    idle = run_check("sweeper", here.environment)
    assert (idle.returncode, idle.stderr) == (0, "")
    insert_inputs(here.store.database)
    job = here.store.jobs.create(Tenant("default"), spec(), None, {}).id
    here.store.attempts.claim(job, lease_seconds=-1)
    behind = run_check("sweeper", here.environment)
    assert behind.returncode == 1
    assert f"not swept: ['{job}']" in behind.stderr
    with here.store.database.write() as connection:
        connection.execute(update(jobs).values(lease_until=now() + 60))
    assert run_check("sweeper", here.environment).returncode == 0


def test_the_sweeper_is_not_healthy_without_a_broker(here: Here) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = run_check("sweeper", {**here.environment, "WBAR_BROKER_URL": f"redis://127.0.0.1:{port}/0"})
    assert found.returncode == 1
    assert "OperationalError" in found.stderr


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_api_is_healthy_while_healthz_answers(status: int, healthy: bool) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Silent."""

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = run_check("api", {}, _8000=str(server.server_port))
        server.shutdown()
    assert (found.returncode == 0) is healthy, found.stderr


# The Dockerfile.


@dataclass
class Stage:
    parent: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for found, rest in self.instructions if found == word]


def stages() -> dict[str, Stage]:
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            named = re.fullmatch(r"(\S+) AS (\S+)", rest)
            assert named, f"a stage without a name: {line}"
            found[named[2]] = current = Stage(named[1])
        else:
            assert current is not None, f"before the first stage: {line}"
            current.instructions.append((word, rest))
    return found


STAGES = stages()


def lineage(name: str) -> list[Stage]:
    """The stage and those it is built on, the oldest first."""
    stage = STAGES.get(name)
    return [] if stage is None else [*lineage(stage.parent), stage]


def contributing(name: str) -> list[Stage]:
    """Also the stages it copies from, and theirs."""
    found = lineage(name)
    for stage in lineage(name):
        for rest in stage.all("COPY"):
            source = re.search(r"--from=(\S+)", rest)
            if source:
                assert source[1] in STAGES, f"COPY from {source[1]}, which is no stage"
                found += contributing(source[1])
    return found


def requirements(extra: str) -> set[str]:
    """Names of everything that `wbar[extra]` asks for, through extras of extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = set()
    for requirement in [*project["dependencies"], *project["optional-dependencies"][extra]]:
        name, within = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()  # type: ignore[union-attr]
        if name == "wbar":
            names |= {found for part in within.split(",") for found in requirements(part)}
        else:
            names.add(name)
    return names


def installed(target: str) -> set[str]:
    runs = " && ".join(rest for stage in contributing(target) for rest in stage.all("RUN"))
    extras = {extra for group in re.findall(r"\.\[([\w,-]+)\]", runs) for extra in group.split(",")}
    extras |= set(re.findall(r"-r locks/(\w+)\.txt", runs))
    assert extras, f"the target {target} installs no extra"
    assert not re.findall(r"pip install[^&]*\b(torch|torchvision)\b", runs)
    return {name for extra in extras for name in requirements(extra)}


def test_the_api_image_has_the_service_and_no_torch() -> None:
    assert installed("api") >= {"fastapi", "uvicorn", "sqlalchemy", "celery"}
    assert not installed("api") & {"torch", "torchvision", "safetensors", "numpy"}


def test_the_worker_image_has_torch_and_no_web_server() -> None:
    assert installed("worker") >= {"torch", "torchvision", "sqlalchemy", "celery"}
    assert not installed("worker") & {"fastapi", "uvicorn"}


@pytest.mark.parametrize("target", ["api", "worker"])
def test_an_image_is_slim_and_does_not_run_as_root(target: str) -> None:
    line = lineage(target)
    assert line[0].parent == "python:3.12-slim"
    assert [user for stage in line for user in stage.all("USER")] == ["10001"]
    # What was needed to build stays behind: the final stages copy the installed tree and run nothing as root.
    assert STAGES[target].all("RUN") == []
    installs = [rest for stage in contributing(target) for rest in stage.all("RUN") if "pip install" in rest]
    assert installs
    assert all("--no-cache-dir" in rest for rest in installs)


@pytest.mark.parametrize("target", ["api", "worker"])
def test_the_volumes_belong_to_the_user_of_the_image(target: str) -> None:
    prepared = " ".join(rest for stage in lineage(target) for rest in stage.all("RUN"))
    made = re.search(r"install -d -o wbar -g wbar ([^&]*)", prepared)
    assert made
    assert {"blobs", "scratch"} == {mounts("worker")[folder] for folder in made[1].split()}


def test_a_build_argument_names_the_index_and_the_file_names_none() -> None:
    for target in ("build-api", "build-worker"):
        words = [word for word, _ in STAGES[target].instructions]
        assert {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"} == set(STAGES[target].all("ARG"))
        assert words.index("RUN") > max(place for place, word in enumerate(words) if word == "ARG")
    for name in ("Dockerfile", "docker-compose.yml"):
        assert set(re.findall(r"https?://([^/:]+)", (ROOT / name).read_text())) <= {"127.0.0.1"}, name


def test_the_build_sees_the_packages_and_what_describes_them_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    described = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {*packages, *described, "locks"}
    copied = {path for rest in STAGES["build"].all("COPY") for path in rest.split()[:-1]}
    assert copied == {*described, project["tool"]["hatch"]["version"]["path"]}


# The operations page.


def variables_of(settings: type[BaseSettings]) -> set[str]:
    return {variable_of(name, known) for name, known in settings.model_fields.items()}


def variable_of(name: str, known: FieldInfo) -> str:
    """Its own name, unless it has that of another program's variable."""
    return known.validation_alias if isinstance(known.validation_alias, str) else f"WBAR_{name.upper()}"


def documented() -> dict[str, str]:
    """Variable -> default, from the tables of docs/operations.md."""
    page = (ROOT / "docs" / "operations.md").read_text()
    return dict(re.findall(r"^\| `((?:WBAR|OTEL)_\w+)` \| (?:`([^`]*)`|unset)[^|]*\|", page, re.MULTILINE))


@pytest.mark.parametrize("settings", [StoreSettings, ServiceSettings, WorkerSettings])
def test_the_operations_page_has_every_setting_with_its_default(settings: type[BaseSettings]) -> None:
    table = documented()
    for name, known in settings.model_fields.items():
        variable = variable_of(name, known)
        assert variable in table, f"docs/operations.md has no row for {variable}"
        default = known.get_default(call_default_factory=True)
        assert table[variable] == ("" if default is None else str(default)), variable


def test_the_operations_page_has_no_setting_that_does_not_exist() -> None:
    known = variables_of(ServiceSettings) | variables_of(WorkerSettings)
    mentioned = set(re.findall(r"WBAR_[A-Z_]*[A-Z]", (ROOT / "docs" / "operations.md").read_text()))
    client = {"WBAR_URL", "WBAR_API_KEY", "WBAR_CONFIG"}
    assert mentioned <= known | client
