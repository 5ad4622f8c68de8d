"""What training starts keeps off the current folder, even where nobody started Python with a safe path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.environments import Decoys
from wbar_training import safe_path

# A user's own script, in a folder of its own: its path has that folder first and not the current one.
SCRIPT = """
from pathlib import Path
from tests.training.work import METHOD, Recorder, make_work
from wbar_training.loop import run
if __name__ == "__main__":
    method = METHOD.model_copy(update={"cycles": 1})
    run(make_work(Path(__file__).parent, method, 32, recipe_augment="rand_augment", loaders=1), Recorder())
    print("done")
"""


def test_a_script_of_the_users_starts_workers_with_a_safe_path(tmp_path: Path) -> None:
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
    assert done.stdout == "done\n", done.stderr


def test_the_variable_is_as_before_after_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("1", "", None):
        if before is None:
            monkeypatch.delenv(safe_path.VARIABLE, raising=False)
        else:
            monkeypatch.setenv(safe_path.VARIABLE, before)
        with safe_path.for_children():
            assert os.environ[safe_path.VARIABLE] == "1"
        assert os.environ.get(safe_path.VARIABLE) == before
