"""Images with several labels: read from labels.csv, trained with binary cross-entropy, scored by average precision."""

import io
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.jobs import METHOD, Recorder, make_job, run
from wbar.errors import InvalidArchive, Rejected, TooFewClasses
from wbar.recipe import Recipe
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.data.packed import load_split
from wbar_training.networks.architectures import initialized
from wbar_training.tasks.classification import score
from wbar_training.tasks.multilabel import LabelsLoss, score_of_labels
from wbar_training.uploads.dataset_archives import pack_archive, pack_folder
from wbar_training.uploads.limits import UploadLimits

INDICATORS = "image,red,green\n" + "".join(f"train/{i}.png,{i % 2},{i // 2 % 2}\n" for i in range(16))
HELD_OUT = "".join(f"val/{i}.png,{i % 2},{i // 2 % 2}\n" for i in range(8))


def archive(table: str | None, folder: Path, val: int = 8, name: str = "labels.csv") -> Path:
    """Images whose red and green are what their number says."""
    path = folder / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for split, count in (("train", 16), ("val", val)):
            for i in range(count):
                pixels = torch.randint(60, (8, 8, 3), dtype=torch.uint8)
                pixels[..., 0] += 180 * (i % 2)
                pixels[..., 1] += 180 * (i // 2 % 2)
                data = io.BytesIO()
                Image.fromarray(pixels.numpy()).save(data, "PNG")
                file.writestr(f"{split}/{i}.png", data.getvalue())
        if table is not None:
            file.writestr(name, table)
    return path


def test_both_forms_of_the_table_say_the_same(tmp_path: Path) -> None:
    names = {0: "", 1: "red", 2: "green", 3: "red|green"}
    listed = "image,labels\n" + "".join(f"train/{i}.png,{names[i % 4]}\n" for i in range(16))
    listed += "".join(f"val/{i}.png,{names[i % 4]}\n" for i in range(8))
    one = pack_archive(archive(INDICATORS + HELD_OUT, tmp_path), tmp_path / "one", UploadLimits(), multilabel=True)
    two = pack_archive(archive(listed, tmp_path), tmp_path / "two", UploadLimits(), multilabel=True)
    assert one.classes == ["red", "green"]
    assert two.classes == ["green", "red"]  # sorted, where no header orders them
    first = load_split(tmp_path / "one", "train", (8, 8), None, outputs=2).labels
    second = load_split(tmp_path / "two", "train", (8, 8), [1, 0], outputs=2).labels
    assert torch.equal(first, second)
    assert one.images == {"train": 16, "val": 8}


def test_without_val_a_fifth_is_held_out(tmp_path: Path) -> None:
    packed = pack_archive(archive(INDICATORS, tmp_path, val=0), tmp_path / "out", UploadLimits(), multilabel=True)
    assert packed.images == {"train": 13, "val": 3}


@pytest.mark.parametrize(
    ("table", "error", "said"),
    [
        (None, InvalidArchive, "there is no labels.csv"),
        ("file,red,green\n", InvalidArchive, "must begin with `image`"),
        ("image,red\ntrain/0.png,1\n", TooFewClasses, "1 different classes"),
        (INDICATORS, InvalidArchive, "no line for 8 images, the first 'val/0.png'"),
        (INDICATORS + HELD_OUT + "train/99.png,1,1\n", InvalidArchive, "names 1 images that are not there"),
        (INDICATORS + HELD_OUT + "train/0.png,1,1\n", InvalidArchive, "line 26: 'train/0.png' is there twice"),
        (INDICATORS + HELD_OUT + "train/x.png,1,2\n", InvalidArchive, r"line 26: 2 values \['1', '2'\]"),
        ("image,labels\ntrain/0.png,red,green\n", InvalidArchive, r"line 2: 3 cells \['train/0.png', 'red', 'green'\]"),
        ("image,red,green\n\xff".encode("latin-1").decode("latin-1") + "\x00", Rejected, "labels.csv"),
    ],
)
def test_a_bad_table_is_said_with_its_place(
    tmp_path: Path, table: str | None, error: type[Rejected], said: str
) -> None:
    with pytest.raises(error, match=said):
        pack_archive(archive(table, tmp_path), tmp_path / "out", UploadLimits(), multilabel=True)


def test_a_job_learns_them_and_reports_average_precision(tmp_path: Path) -> None:
    job = make_job(
        tmp_path / "job", METHOD.model_copy(update={"cycles": 3}), recipe_batch_size=4, recipe_augment="none"
    )
    packed = tmp_path / "packed"
    pack_archive(archive(INDICATORS + HELD_OUT, tmp_path), packed, UploadLimits(), multilabel=True)
    network = Network("resnet20", 2)
    torch.manual_seed(1)
    write_safetensors(job.start, initialized(network).state_dict(), {})
    job.dataset.write_bytes(packed.read_bytes())
    outcome = run(job.changed(network=network), Recorder())
    averaged = outcome.result.metrics.averaged
    assert averaged.map is not None
    assert averaged.average_precision is not None
    assert len(averaged.average_precision) == 2
    assert averaged.map == pytest.approx(sum(averaged.average_precision) / 2)
    assert averaged.loss < outcome.result.metrics.start.loss
    assert averaged.map > 0.9


def test_the_score_of_labels_follows_its_definitions() -> None:
    p = torch.tensor([[0.9, 0.2, 0.5], [0.4, 0.6, 0.1], [0.8, 0.7, 0.3]])
    y = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.uint8)
    scores = score_of_labels(p, y)
    assert scores.accuracy == pytest.approx(7 / 9)
    # Ranked for class 0: 0.9 right, 0.8 wrong, 0.4 right: (1 + 2/3)/2. Class 1: 0.7, 0.6 right: 1. Class 2: none has it.
    assert scores.average_precision == [pytest.approx(5 / 6), pytest.approx(1.0), None]
    assert scores.map == pytest.approx((5 / 6 + 1) / 2)
    expected = -(torch.where(y > 0, p, 1 - p).double().log()).mean().item()
    assert scores.loss == pytest.approx(expected)


def test_a_folder_is_read_the_same(tmp_path: Path) -> None:
    with zipfile.ZipFile(archive(INDICATORS + HELD_OUT, tmp_path)) as file:
        file.extractall(tmp_path / "folder")
    assert pack_folder(tmp_path / "folder", tmp_path / "out", UploadLimits(), multilabel=True).classes == [
        "red",
        "green",
    ]


def test_weights_weigh_labels_against_each_other_and_not_the_loss_as_a_whole() -> None:
    counts = torch.tensor([20_000, 5_000, 200])
    plain, balanced = (
        LabelsLoss(Recipe(class_weights=weights), 3, counts, torch.device("cpu")) for weights in (None, "balanced")
    )
    labels = torch.tensor([[1, 0, 0], [0, 1, 1]])
    equal = torch.zeros(2, 3)
    assert torch.allclose(plain._hard(equal, labels), balanced._hard(equal, labels))
    wrong = torch.tensor([[3.0, 0, 0], [0, 0, 3.0]])
    of_common, of_rare = balanced._hard(wrong, 1 - labels)
    assert of_rare > 3 * of_common


def test_what_was_rounded_away_counts_as_no_less_than_it_can_have_been() -> None:
    """An ensemble's loss is no larger than its members', though its probabilities were rounded (Jensen)."""
    certain = torch.log_softmax(torch.tensor([[0.0, -110.0]]).double(), dim=1).exp().float()
    assert score(certain, torch.tensor([1])).loss == pytest.approx(103.28, abs=0.01)
    of_labels = score_of_labels(torch.tensor([[40.0]]).double().sigmoid(), torch.tensor([[0]]))
    assert 36 < of_labels.loss < 40
