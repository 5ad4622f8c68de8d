"""What is done to training images follows its formula, and the number of DataLoader workers changes nothing."""

import io
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, make_job, run
from tests.training.test_resume import STRAIGHT
from wbar.method import METHODS
from wbar_training import state_files
from wbar_training.data import colour, crops
from wbar_training.data.augment import Preparer
from wbar_training.data.examples import Request
from wbar_training.data.feed import ImageFeed, One, OneByOne
from wbar_training.data.packed import load_encoded, load_split
from wbar_training.draws import generator, key
from wbar_training.uploads.dataset_archives import pack_folder
from wbar_training.uploads.limits import UploadLimits


def test_boxes_lie_inside_and_have_the_areas_and_aspects_of_the_paper() -> None:
    boxes = crops.boxes(4000, 60, 80, generator(0, "test"))
    top, left, tall, wide = boxes.unbind(1)
    assert bool((top >= 0).all() and (left >= 0).all() and (top + tall <= 60).all() and (left + wide <= 80).all())
    share, aspect = tall * wide / 4800, wide / tall
    assert 0.07 < share.min() < 0.1
    assert share.max() > 0.9
    assert aspect.min() > 0.70
    assert aspect.max() < 1.40
    torch.manual_seed(0)  # torchvision's, from its own generator: large boxes that do not fit are drawn again
    torchvision_boxes = [
        v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(8), [torch.empty(3, 60, 80)]) for _ in range(3000)
    ]
    expected = sum(box["height"] * box["width"] for box in torchvision_boxes) / 4800 / len(torchvision_boxes)
    assert share.mean() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("height", "width", "expected"), [(10, 1000, (10, 13)), (1000, 9, (12, 9))])
def test_where_no_box_fits_the_largest_centred_one_is_taken(height: int, width: int, expected: tuple[int, int]) -> None:
    boxes = crops.boxes(5, height, width, generator(0, "test"))
    assert {tuple(box) for box in boxes[:, 2:].long().tolist()} == {expected}


def test_a_resized_crop_of_everything_is_the_image_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(256, (3, 2, 6, 5), dtype=torch.uint8)
    monkeypatch.setattr(crops, "boxes", lambda n, h, w, _: torch.tensor([[0.0, 0.0, h, w]]).repeat(n, 1).double())
    torch.testing.assert_close(
        crops.resized_crop(images, generator(0, "x"), flip=False), images.float(), atol=1e-3, rtol=0
    )


def test_colours_turn_around_grey_and_keep_their_brightness() -> None:
    grey = torch.full((1, 3, 2, 2), 100.0)
    turned = torch.einsum("bij,bjhw->bihw", colour._turns(torch.tensor([1.0])), grey)
    torch.testing.assert_close(turned, grey, atol=0.2, rtol=0)  # the published matrix has three digits
    one = colour.jitter(torch.full((200, 1, 1, 1), 100.0), generator(1, "x")).flatten()
    assert 60 <= one.min() < 65
    assert 135 < one.max() <= 140


def test_pca_noise_lies_along_the_principal_axes() -> None:
    torch.manual_seed(0)
    base = torch.rand(500, 1, 4, 4)
    images = (torch.cat([base, base, base * 0.5], dim=1) * 255).to(torch.uint8)
    axes = colour.principal_axes(images)
    covariance = torch.cov(images.transpose(0, 1).flatten(1).double() / 255)
    values, vectors = torch.linalg.eigh(covariance)
    torch.testing.assert_close(axes.double(), vectors * values, atol=1e-5, rtol=1e-3)
    shifts = colour.pca_noise(torch.full((4000, 3, 1, 1), 128.0), axes, generator(0, "x")).flatten(1) - 128
    along = shifts.double() @ vectors / 255
    torch.testing.assert_close(along.std(dim=0), 0.1 * values, atol=1e-5, rtol=0.1)


@pytest.fixture(scope="module")
def many_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed dataset of JPEGs of many sizes."""
    folder = tmp_path_factory.mktemp("jpegs")
    torch.manual_seed(3)
    for split, count in (("train", 24), ("val", 8)):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                size = (20 + index, 30 + 2 * index)
                pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8)
                data = io.BytesIO()
                Image.fromarray(pixels.numpy()).save(data, "JPEG")
                (folder / split / label / f"{index}.jpg").write_bytes(data.getvalue())
    out = folder / "packed.safetensors"
    pack_folder(folder, out, UploadLimits())
    return out


def jpeg_job(folder: Path, packed: Path, **changes: object) -> LocalJob:
    method = METHODS.validate_python(STRAIGHT | {"type": "ema", "final_lr": 0.005})
    job = make_job(folder, method, **{"recipe_augment": "imagenet", **changes})
    job.dataset.write_bytes(packed.read_bytes())
    return job


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "augment", ["imagenet", pytest.param("rand_augment", marks=LONG), pytest.param("trivial_augment", marks=LONG)]
)
def test_workers_change_no_byte_and_neither_does_a_death(tmp_path: Path, many_sizes: Path, augment: str) -> None:
    alone = run(jpeg_job(tmp_path / "alone", many_sizes, recipe_augment=augment), Recorder())
    job = jpeg_job(tmp_path / "loaded", many_sizes, recipe_augment=augment, loaders=2, save_every_seconds=0.0)
    with pytest.raises(KilledHere):
        run(job, Recorder(die_at=4))
    loaded = run(job.changed(resume=state_files.latest(job.scratch)), Recorder())
    assert loaded.weights.read_bytes() == alone.weights.read_bytes()
    assert loaded.result.metrics == alone.result.metrics


def test_two_draws_differ_and_the_same_one_does_not(many_sizes: Path) -> None:
    split = load_split(many_sizes, "train", (16, 16), None, centre=True)
    prepare = Preparer((0.5,) * 3, (0.2,) * 3, "resized_crop_flip", 3, torch.device("cpu"))
    feed = ImageFeed(split, prepare, load_encoded(many_sizes, "train"), 0)
    chosen = torch.arange(8)
    first = feed.inputs(Request(chosen, "augment", 0))
    assert first.shape == (8, 3, 16, 16)
    assert torch.equal(first, feed.inputs(Request(chosen, "augment", 0)))
    assert not torch.equal(first, feed.inputs(Request(chosen, "augment", 1)))
    assert not torch.equal(first, feed.inputs(Request(chosen, "batchnorm-augment", 0)))


def test_held_out_images_are_the_centre_of_a_larger_one(many_sizes: Path) -> None:
    encoded = load_encoded(many_sizes, "val")
    assert encoded is not None
    image = encoded.decoded(0)  # 30 x 20
    split = load_split(many_sizes, "val", (14, 14), None, centre=True)
    from torchvision.transforms.v2 import functional

    short = functional.resize(image, [16], antialias=True)
    expected = functional.center_crop(short, [14, 14])
    assert (split.images[0].int() - expected.int()).abs().max() <= 1


def test_the_file_says_how_held_out_images_were_fitted(tmp_path: Path, many_sizes: Path) -> None:
    from safetensors import safe_open

    outcome = run(jpeg_job(tmp_path / "centre", many_sizes), Recorder())
    with safe_open(outcome.weights, "pt") as file:
        assert file.metadata()["wbar.resize"] == "centre"
    plain = run(make_job(tmp_path / "both", METHOD), Recorder())
    with safe_open(plain.weights, "pt") as file:
        assert file.metadata()["wbar.resize"] == "both"
    assert load_file(plain.weights)


def test_a_policy_draws_apart_from_the_crop_and_the_mirror() -> None:
    """As TrivialAugment draws: an operation, a magnitude, a sign; and what was done to the image before."""
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[..., 14, 10] = 255  # where it is says how it was moved, and whether it was mirrored
    images = OneByOne(image, None, "trivial_augment", 0, (28, 28))
    drawn: list[tuple[int, bool]] = []

    def policy(changed: torch.Tensor) -> torch.Tensor:
        operation, _, sign = torch.randint(14, ()), torch.randint(31, ()), torch.rand(())
        drawn.append((int(operation), bool(sign < 0.5)))
        return changed

    images.policy = policy  # type: ignore[assignment]
    found = [images[One(0, key(0, "train/0", place))] for place in range(400)]
    rows = [int(one[0].max(dim=1).values.argmax()) for one in found]
    columns = [int(one[0].max(dim=0).values.argmax()) for one in found]
    mirrored = [column > 13 for column in columns]  # 10 ± 3, or 17 ± 3
    table = Counter(zip(mirrored, (sign for _, sign in drawn), strict=True))
    assert min(table[a, b] for a in (False, True) for b in (False, True)) > 60
    assert all(len({row for row, (at, _) in zip(rows, drawn, strict=True) if at == one}) > 2 for one in range(14))
