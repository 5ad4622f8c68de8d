"""PyTorch files are compared with their checksums before they are averaged."""

import zipfile
from pathlib import Path

import pytest
import torch

from wbar_averaging.pytorch_file import UnreadableCheckpoint, load_state_dict


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save({"w": torch.arange(100.0)}, path)
    assert torch.equal(load_state_dict(path)["w"], torch.arange(100.0))
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("c/data/0")
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(100.0).numpy().tobytes()) + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        UnreadableCheckpoint, match=rf"c/data/0'.*checksum.*{entry.CRC:08x}.*changed after they were written"
    ):
        load_state_dict(path)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(100)}, tmp_path / "c")
    with zipfile.ZipFile(tmp_path / "c") as old, zipfile.ZipFile(tmp_path / "d", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UnreadableCheckpoint, match="compressed"):
        load_state_dict(tmp_path / "d")
