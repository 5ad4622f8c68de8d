"""A checkpoint that needs more memory than an upload may use is told that, whatever it came in."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from wbar_averaging import write_safetensors

MEBIBYTES = 96
# In a process of its own: the limit is of all that it has. It is set when everything is loaded.
CHECK = """
import resource, sys
from pathlib import Path
import torch
from wbar.errors import ContentTooLarge
from wbar_training.uploads.checkpoint_files import check
from wbar_training.uploads.limits import UploadLimits
used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 40 * 2**20, resource.RLIM_INFINITY))
try:
    check(Path(sys.argv[1]), None, None, Path(sys.argv[1] + ".unpacked"), UploadLimits())
except ContentTooLarge as error:
    print(error.detail)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
@pytest.mark.parametrize("form", ["safetensors", "zip of a folder", "torch.save"])
def test_a_checkpoint_larger_than_the_memory(tmp_path: Path, form: str) -> None:
    path = tmp_path / "upload"
    state = {"weight": torch.zeros(MEBIBYTES, 1024, 256)}
    if form == "torch.save":
        torch.save(state, path)
    else:
        write_safetensors(path, state, {})
    if form == "zip of a folder":
        path.rename(tmp_path / "weights")
        with ZipFile(path, "w") as archive:
            archive.write(tmp_path / "weights", "model.safetensors")
    command = [sys.executable, "-P", "-c", CHECK, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout == "the file needs more memory than an upload may use\n", ran.stderr
    assert not list(tmp_path.glob("*.unpacked*"))
