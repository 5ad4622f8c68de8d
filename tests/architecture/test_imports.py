"""The rooms keep to their arrows; the API and the worker's supervisor load no torch; the command line starts light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("averaging", "training", "store", "worker", "service")  # folders; in each stands the package wbar_<room>
PACKAGES = ("wbar", *(f"{room}/wbar_{room}" for room in ROOMS))


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import wbar_service.app",
        "import wbar_service.embedded",
        "import wbar_store.store",
        "import wbar_worker.app",
        "import wbar_worker.sweep",
        "import wbar.cli",
        "import wbar_averaging",
        "import wbar_averaging.safetensors_file",
    ],
)
def test_torch_is_not_loaded(statement: str) -> None:
    assert "torch" not in modules_after(statement)


def test_the_command_line_imports_no_other_room() -> None:
    loaded = modules_after("import wbar.cli")
    assert not {name.split(".")[0] for name in loaded} & {f"wbar_{room}" for room in ROOMS}
    assert not {"sqlalchemy", "fastapi", "celery"} & loaded


def test_what_is_exported_to_is_loaded_when_it_is_used() -> None:
    loaded = modules_after("import wbar.cli, wbar.exports.commands")
    assert not {"tensorboard", "mlflow", "pyarrow", "numpy", "google", "httpx", "pydantic"} & loaded


def test_without_an_endpoint_nothing_that_traces_is_loaded() -> None:
    # FastAPI loads OpenTelemetry's interface by itself, and redis its metrics where they are installed.
    loaded = modules_after(
        "import wbar_service.app, wbar_worker.app\nfrom wbar_store.tracing import Tracing\nTracing('api', None)"
    )
    assert not {name for name in loaded if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))}


def test_averaging_and_training_need_only_their_own_libraries() -> None:
    loaded = modules_after("import wbar_training.loop, wbar_averaging.batch_norm")
    assert not {"sqlalchemy", "fastapi", "celery", "httpx", "redis", "obstore"} & loaded


def test_the_arrows_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_environment_is_read_in_the_settings_only() -> None:
    allowed = {
        "wbar/config.py",
        "worker/wbar_worker/attempt.py",
        "worker/wbar_worker/processes.py",
        "training/wbar_training/demo/__main__.py",
        "training/wbar_training/safe_path.py",
        "training/wbar_training/networks/transformers_models.py",
        "training/wbar_training/setup.py",
        "service/wbar_service/embedded.py",
    }  # all but the first only write it, for children or for libraries
    readers = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                    readers.add(path.relative_to(ROOT).as_posix())
    assert readers <= allowed


# Python puts the current folder first on the path of `-c` and `-m`: a user's own torch.py would be imported from there.
UNSAFE_START = re.compile(
    r"""sys\.executable
    (?! ,\s*"-[PI]" )                # [sys.executable, "-P", …]: the safe path; -I has it too
    (?! \)\("-P" )                   # elastic_launch(config, sys.executable)("-P", …)
    (?! ,\ \[sys\.executable,\ "-P" ) # os.execv(sys.executable, [sys.executable, "-P", …])
    (?! \)\.with_name\( )            # Path(sys.executable).with_name(…): where it lies, not what it runs""",
    re.VERBOSE,
)
MAY_START_UNSAFE = {
    "benchmarks/averaging/soup.py",  # names the Python of its peers beside ours; both get -P where they are started
    "tests/packaging/test_safe_path.py",  # a user's own script, as the user starts it
}


def test_python_starts_python_with_a_safe_path() -> None:
    unsafe = {
        path.relative_to(ROOT).as_posix()
        for folder in (*PACKAGES, "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if UNSAFE_START.search(path.read_text())
    }
    assert unsafe == MAY_START_UNSAFE


def test_no_module_is_called_utils_and_every_one_opens_with_its_idea() -> None:
    for folder in (*PACKAGES, "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.name not in ("utils.py", "helpers.py")
            assert ast.get_docstring(ast.parse(path.read_text())), path
