"""timm's networks through the whole service: listed by an API without a framework, uploaded as a folder, trained, loaded."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import Service, wait_until
from tests.material import write_archive
from tests.training.test_timm import CONFIG, folder_of
from wbar.errors import WbarError

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'wbar[timm]'")
NAME = "vit_tiny_patch16_224"


@pytest.mark.long
def test_a_network_of_timm_is_listed_recognized_and_trained(breakable: Service, tmp_path: Path) -> None:
    breakable.environment |= {"WBAR_TIMM": "true"}
    breakable.start("api", "train", "ingest", "sweep")
    with breakable.client() as client, breakable.http() as http:
        wait_until(lambda: http.get("/v1/architectures", params={"q": "tiny vit"}).json()["data"], 120, "timm's names")
        pages, after = [], {}
        while True:
            page = http.get("/v1/architectures", params={"limit": 500, **after}).json()
            pages += page["data"]
            after = {"after": page["last_id"]}
            if not page["has_more"]:
                break
        names = [one["name"] for one in pages]
        assert len(names) == len(set(names)) > 1000
        assert {"resnet18", "timm/resnet18", NAME} <= set(names)
        found = http.get("/v1/architectures", params={"q": "VIT tiny 224", "limit": 3}).json()
        assert all("vit" in one["id"] and "tiny" in one["id"] and one["library"] == "timm" for one in found["data"])
        assert found["has_more"]
        assert http.get("/v1/architectures", params={"q": "no such network"}).json()["data"] == []
        with pytest.raises(WbarError, match=f"similar names: .*{NAME}"):
            client.checkpoints.create(
                folder_of(CONFIG, "zip", tmp_path / "a.zip"), architecture="vit_tinny_patch16_224"
            )
        checkpoint = client.checkpoints.create(tmp_path / "a.zip")
        assert checkpoint.architecture is not None
        assert (checkpoint.format, checkpoint.architecture.name, checkpoint.architecture.image_size) == (
            "zip",
            NAME,
            32,
        )
        dataset = client.datasets.create(write_archive(tmp_path))
        made = client.jobs.create(
            checkpoint=checkpoint.id,
            dataset=dataset.id,
            method={"cycles": 1},
            recipe={"head": "reset", "head_epochs": 1, "layer_decay": 0.8, "drop_path": 0.1},
        )
        assert made.id is not None
        assert made.recipe.normalize.model_dump() == {"mean": [0.5] * 3, "std": [0.25, 0.5, 0.5]}
        assert (made.recipe.image_size, made.recipe.crop_ratio, made.recipe.interpolation) == ((32, 32), 0.9, "bicubic")
        assert made.recipe.optimizer.name == "adamw"
        assert made.recipe.head_lr == pytest.approx(10 * made.method.high.lr)
        done = client.jobs.wait(made.id, timeout=240)
        assert done.status == "succeeded", done.error
        client.jobs.download(made.id, tmp_path / "averaged")
    module = timm.create_model(NAME, num_classes=10, img_size=32)
    module.load_state_dict(load_file(tmp_path / "averaged"), strict=True)
