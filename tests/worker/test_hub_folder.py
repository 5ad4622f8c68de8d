"""The folder of a result on a disk without room: it is absent with its reason, and what it is made of is there."""

from pathlib import Path

import torch

from tests.store.rows import result, spec
from wbar.card import ModelCard
from wbar_averaging import write_safetensors
from wbar_training.outcome import HubConfig
from wbar_worker.hub_folder import offered_folder


def test_a_full_disk_leaves_the_folder_out(tmp_path: Path) -> None:
    weights, out = tmp_path / "weights.safetensors", tmp_path / "huggingface.zip"
    write_safetensors(weights, {"w": torch.zeros(100_000)}, {})
    config = HubConfig("{}", "", None)
    out.symlink_to("/dev/full")  # which opens, and takes no byte
    offered = offered_folder(out, config, weights, "# card\n")
    assert (offered.format, offered.bytes, offered.sha256) == ("huggingface", None, None)
    assert offered.reason == "the worker could not pack the folder (No space left on device)"
    assert not out.is_symlink()
    whole = offered_folder(out, config, weights, "# card\n")
    assert (whole.reason, whole.bytes) == (None, out.stat().st_size)
    # The card does not speak of a folder that is not there.
    timms = spec(formats=("huggingface",))
    for one, expected in ((offered, False), (whole, True)):
        ended = result().model_copy(update={"formats": [one]})
        card = ModelCard("job_1", None, timms, ended, {"wbar": "1", "torch": "2"}).markdown()
        assert ("format=huggingface" in card) is expected
