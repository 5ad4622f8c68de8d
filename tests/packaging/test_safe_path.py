"""What training starts keeps off the current folder, even where Python was not started with a safe path."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.environments import Decoys
from wbar_training import loop, safe_path

# A user's own script, in a folder of its own: its path has that folder first and not the current one.
SCRIPT = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from wbar_training import safe_path
if __name__ == "__main__":
    images = TensorDataset(torch.zeros(4, 1))
    with safe_path.for_children():
        print(len(list(DataLoader(images, num_workers=1, multiprocessing_context="forkserver"))))
"""


@pytest.mark.long
def test_workers_below_a_script_of_the_users_start_with_a_safe_path(tmp_path: Path) -> None:
    decoys = Decoys(tmp_path)
    script = tmp_path / "scripts" / "train.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=decoys.folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert decoys.imported() == [], done.stderr
    assert done.stdout == "4\n", done.stderr


class Looked(Exception):
    """Says what a process started at this moment would be told."""


class Job:
    """Whatever a run looks at first."""

    def __getattr__(self, name: str) -> object:
        raise Looked(os.environ.get(safe_path.VARIABLE))


def test_a_run_starts_its_processes_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(safe_path.VARIABLE, raising=False)
    job: list[object] = [Job() for _ in inspect.signature(loop.run).parameters]
    with pytest.raises(Looked, match="1"):
        loop.run(*job)  # type: ignore[arg-type]  # it is looked at and not done
    assert safe_path.VARIABLE not in os.environ


@pytest.mark.parametrize("before", ["1", "", None])
def test_the_variable_is_as_before_afterwards(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if before is None:
        monkeypatch.delenv(safe_path.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(safe_path.VARIABLE, before)
    with safe_path.for_children():
        assert os.environ[safe_path.VARIABLE] == "1"
    assert os.environ.get(safe_path.VARIABLE) == before
