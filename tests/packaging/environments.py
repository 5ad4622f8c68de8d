"""The wheel in an environment of its own, and a folder that shadows whatever Python would look for there first."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from functools import cached_property
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 120.0

GROUPS = ("checkpoints", "datasets", "keys", "export", "webhooks", "merges", "study")


class Environment:
    """`python -m venv` with wbar's wheel in it and nothing else: a `.pth` file lends it the dependencies of this Python.

    A `.pth` file lists folders and does not read the `.pth` files in them, so an editable wbar here is not seen there.
    """

    def __init__(self, folder: Path) -> None:
        _run(sys.executable, "-P", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
             "--disable-pip-version-check", "--wheel-dir", str(folder), str(ROOT))  # fmt: skip
        (self.wheel,) = folder.glob("*.whl")
        home = folder / "environment"
        _run(sys.executable, "-P", "-m", "venv", "--without-pip", str(home))
        self.bin = home / "bin"
        self.python, self.wbar = str(self.bin / "python"), str(self.bin / "wbar")
        _run(sys.executable, "-P", "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", self.python,
             "install", "--no-deps", "--no-index", str(self.wheel))  # fmt: skip
        self.site = Path(
            _run(self.python, "-P", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        )
        self.installed = {path.name for path in self.site.iterdir()}  # before the next line adds to it
        lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(lent)))

    @cached_property
    def files(self) -> set[str]:
        """What is in the wheel."""
        with zipfile.ZipFile(self.wheel) as wheel:
            return set(wheel.namelist())

    def running(self) -> list[str]:
        """The command lines of the processes that this environment's Python runs."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode().split("\0")
            except OSError:  # it has ended meanwhile
                continue
            if words[0] == self.python:
                found.append(" ".join(words))
        return found

    def variables(self, home: Path, **more: str) -> dict[str, str]:
        """The variables of a user whose own project uses Django and Celery, and who set nothing for Python or wbar."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WBAR_", "CELERY_"))
        }
        return kept | {
            "PATH": f"{self.bin}{os.pathsep}{kept['PATH']}",
            "HOME": str(home),
            "DJANGO_SETTINGS_MODULE": "settings",
            "CELERY_CONFIG_MODULE": "celeryconfig",
            "CELERY_LOADER": "loader",
            "CELERY_RESULT_BACKEND": "django-db",
            "CELERY_BROKER_URL": "redis://127.0.0.1:9/0",  # nothing listens on the discard port
            "OMP_NUM_THREADS": "1",
            **more,
        }


class Decoys:
    """A folder with a module for every name that could be imported; whichever is imported signs in a file."""

    # What a user's project may hold, and what Python, Celery and Django look for by themselves.
    FOLDERS = ("store", "training", "averaging", "django")
    FILES = ("service", "worker", "settings", "loader", "celeryconfig", "sitecustomize", "usercustomize")

    def __init__(self, folder: Path) -> None:
        self.folder, self._signed = folder / "project", folder / "imported"
        self.folder.mkdir()
        text = (
            f"with open({str(self._signed)!r}, 'a') as file:\n    file.write(__name__ + '\\n')\n"
            "raise ImportError('a decoy in the current folder was imported: ' + __file__)\n"
        )
        for name in self.FOLDERS:
            (self.folder / name).mkdir()
            (self.folder / name / "__init__.py").write_text(text)
        ours = {path.name for path in ROOT.glob("*/wbar_*")} | {"wbar"}
        everything = {*self.FILES, *sys.stdlib_module_names, *packages_distributions(), *ours} - {*self.FOLDERS}
        for name in everything:
            if name.isidentifier():
                (self.folder / f"{name}.py").write_text(text)

    def imported(self) -> list[str]:
        """The decoys that were imported, in order."""
        return self._signed.read_text().split() if self._signed.exists() else []


class Shell:
    """Someone who types `wbar …` in a folder, and what they have typed."""

    def __init__(self, environment: Environment, folder: Path, variables: dict[str, str]) -> None:
        self.environment, self.folder, self.variables = environment, folder, variables
        self.typed: set[str] = set()

    def wbar(self, *words: str, code: int = 0) -> str:
        """Run a command to its end and give back what it printed. Fails unless it ended with `code`."""
        self._note(words)
        done = subprocess.run(
            [self.environment.wbar, *words],
            cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == code, f"wbar {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if code else "")

    def start(self, *words: str, log: Path, fds: tuple[int, ...] = ()) -> "subprocess.Popen[bytes]":
        """Run a command that goes on until it is stopped."""
        self._note(words)
        with open(log, "ab") as out:
            return subprocess.Popen(
                [self.environment.wbar, *words],
                cwd=self.folder, env=self.variables, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

    def commands(self) -> set[str]:
        """Every command that `wbar --help` names; a group's as "group command"."""
        found = set()
        for name in _listed(self.wbar("--help")):
            within = _listed(self.wbar(name, "--help"))
            found |= {f"{name} {one}" for one in within} or {name}
        return found

    def _note(self, words: tuple[str, ...]) -> None:
        if "--help" not in words:
            self.typed.add(" ".join(words[:2]) if words[0] in GROUPS else words[0])


def _listed(help_text: str) -> list[str]:
    _, *commands = re.split(r"\n(?:Commands|Begin here):\n", help_text)
    return re.findall(r"^  (\w\S*)", "".join(commands), re.MULTILINE)


def _run(*command: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout
