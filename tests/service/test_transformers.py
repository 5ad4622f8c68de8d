"""transformers' networks through the whole service: listed, uploaded as a folder, trained, given back as a folder in ranges."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from tests.training.test_transformers import edited
from tests.training.test_transformers_families import folder_of, zipped
from wbar.errors import NoWeights, WbarError

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'wbar[transformers]'"
)
BRIEF = {"method": {"type": "cyclic_swa", "cycles": 1, "high": {"epochs": 0.1}, "low": {"epochs": 0.1}}}


@pytest.mark.long
def test_a_network_of_transformers_comes_back_as_a_folder(breakable: Service, tmp_path: Path) -> None:
    breakable.environment |= {"WBAR_TRANSFORMERS": "true"}
    breakable.start("api", "train", "ingest", "sweep")
    folder = folder_of("vit", tmp_path / "mine")
    with breakable.client() as client, breakable.http() as http:
        checkpoint = client.checkpoints.create(zipped(folder))
        assert checkpoint.architecture is not None
        assert (checkpoint.format, checkpoint.architecture.name) == ("zip", "ViTForImageClassification")
        assert checkpoint.pretrained is not None
        assert checkpoint.pretrained.classes == ("class 0", "class 1", "class 2")
        edited(folder, "config.json", lambda config: config.update(auto_map={"AutoModel": "a.b"}))
        with pytest.raises(WbarError, match="names code to run"):
            client.checkpoints.create(zipped(folder))
        dataset = client.datasets.create(write_archive(tmp_path))
        inputs = {"checkpoint": checkpoint.id, "dataset": dataset.id}
        made = client.jobs.create(**inputs, **BRIEF, recipe={"head": "reset", "head_epochs": 0.2, "layer_decay": 0.8})
        assert made.id is not None
        assert (made.recipe.image_size, made.recipe.optimizer.name) == ((32, 32), "adamw")
        done = client.jobs.wait(made.id, timeout=240)
        assert done.result is not None, done.error
        (offered,) = done.result.formats
        out = tmp_path / "averaged.zip"
        client.jobs.download(made.id, out, "huggingface")
        content = out.read_bytes()
        assert (offered.format, offered.bytes, offered.sha256) == (
            "huggingface", len(content), hashlib.sha256(content).hexdigest(),
        )  # fmt: skip
        path = f"/v1/jobs/{made.id}/weights?format=huggingface"
        head = http.head(path)
        assert head.headers["etag"] == f'"{offered.sha256}"'
        assert head.headers["content-disposition"] == f'attachment; filename="{made.id}-huggingface.zip"'
        rest = http.get(path, headers={"Range": "bytes=100-", "If-Range": head.headers["etag"]})
        assert (rest.status_code, rest.content) == (206, content[100:])
        with zipfile.ZipFile(out) as file:
            assert file.namelist() == ["README.md", "config.json", "preprocessor_config.json", "model.safetensors"]
            assert file.read("README.md").decode() == client.jobs.card(made.id)
            assert "library_name: transformers" in file.read("README.md").decode()
            file.extractall(tmp_path / "averaged")
        model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "averaged")
        assert list(model.config.id2label.values()) == dataset.classes
        # Of another library's there is none, and a request that asks for it is told so.
        plain = client.checkpoints.create(write_start(tmp_path))
        digits = client.datasets.create(source="builtin:digits", max_train_images=96)
        inputs = {"checkpoint": plain.id, "dataset": digits.id}
        with pytest.raises(WbarError, match="only transformers and timm load such a folder"):
            client.jobs.create(**inputs, **BRIEF, formats=["huggingface"])
        other = client.jobs.wait(client.jobs.create(**inputs, **BRIEF).id or "", timeout=240)
        with pytest.raises(
            NoWeights, match=r"no huggingface file: only transformers and timm load .*, and resnet20 is"
        ):
            client.jobs.download(other.id or "", tmp_path / "none.zip", "huggingface")
        asked = {"q": "vitforimage"}
        wait_until(
            lambda: http.get("/v1/architectures", params=asked).json()["data"], 240, "the list of transformers' classes"
        )
        found = http.get("/v1/architectures", params=asked).json()["data"]
        assert ("ViTForImageClassification", "transformers") in [(one["name"], one["library"]) for one in found]


@pytest.mark.long
def test_without_room_for_the_folder_the_result_stays(breakable: Service, tmp_path: Path) -> None:
    breakable.start("api", "ingest")
    with breakable.client() as client:
        checkpoint = client.checkpoints.create(zipped(folder_of("vit", tmp_path / "mine")))
        dataset = client.datasets.create(write_archive(tmp_path))
        brief = BRIEF | {"recipe": {"head": "reset", "head_epochs": 0.2}}
        made = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, **brief)
        assert made.id is not None
        scratch = breakable.folder / "scratch" / "jobs" / made.id
        scratch.mkdir(parents=True)
        (scratch / "huggingface.zip").symlink_to("/dev/full")  # a disk that takes no byte
        breakable.start("train", "sweep")
        done = client.jobs.wait(made.id, timeout=240)
        assert done.result is not None, done.error
        (offered,) = done.result.formats
        assert (offered.format, offered.sha256) == ("huggingface", None)
        assert offered.reason == "the worker could not pack the folder (No space left on device)"
        with pytest.raises(NoWeights, match=r"no huggingface file: .*No space left on device.*there are: safetensors"):
            client.jobs.download(made.id, tmp_path / "none.zip", "huggingface")
        client.jobs.download(made.id, tmp_path / "averaged.safetensors")
        assert "format=huggingface" not in client.jobs.card(made.id)
        assert any("there is no huggingface file" in str(event.data) for event in client.jobs.events(made.id))
