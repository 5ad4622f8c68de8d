"""The API's process: what it looks like when it begins to serve."""

import subprocess
import sys
from pathlib import Path

import pytest

SERVES = """
import gc, uvicorn
uvicorn.Server.run = lambda *_, **__: print(gc.isenabled(), gc.get_freeze_count() > 10_000)
"""
WAYS = {
    "python -m wbar_service": "from wbar_service.__main__ import main; main()",
    "wbar serve": "import sys; sys.argv = ['wbar', 'serve']; from wbar.cli import main; main()",
}


@pytest.mark.parametrize("way", WAYS)
def test_garbage_is_collected_and_what_was_loaded_is_not_looked_through_again(way: str, tmp_path: Path) -> None:
    variables = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "WBAR_DATABASE_URL": f"sqlite:///{tmp_path / 'wbar.db'}",
        "WBAR_BLOBS_URL": f"file://{tmp_path / 'blobs'}",
        "WBAR_SCRATCH": str(tmp_path / "scratch"),
        "WBAR_PORT": "0",
    }
    migrated = [
        sys.executable,
        "-P",
        "-c",
        "import sys; sys.argv = ['wbar', 'migrate']; from wbar.cli import main; main()",
    ]
    subprocess.run(migrated, env=variables, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    command = [sys.executable, "-P", "-c", SERVES + WAYS[way]]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "True"], done.stderr
