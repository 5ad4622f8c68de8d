"""A class for every pixel: loss and score by hand, crops of images and masks alike, and whole jobs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision import models

from benchmarks.shapes import CLASSES
from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, run
from tests.training.segmentation_jobs import make_segmentation_job
from wbar.method import METHODS, Soup
from wbar.recipe import Recipe
from wbar.spec import Network, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training import state_files
from wbar_training.data.augment import Preparer
from wbar_training.data.examples import Request
from wbar_training.data.feed import One
from wbar_training.data.masks import VOID, MaskFeed, MaskSplit, MaskStore, RandomCrops, load_masks
from wbar_training.losses import Target
from wbar_training.mlflow_model import AveragedModel
from wbar_training.networks.architectures import initialized
from wbar_training.tasks.mask_picture import palette
from wbar_training.tasks.segmentation import Segmentation, SegmentationLoss, dice_losses

CPU = torch.device("cpu")
NAMES = ["a", "b", "c"]
TASK = Segmentation(Network("lraspp_mobilenet_v3_large", 3), NAMES)


def batch(images: int = 4) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Outputs with an auxiliary head, and labels with void pixels; the last image is all void."""
    torch.manual_seed(0)
    labels = torch.randint(3, (images, 5, 6))
    labels[:, 0, :2] = VOID
    labels[-1] = VOID
    return {"out": torch.randn(images, 3, 5, 6), "aux": torch.randn(images, 3, 5, 6)}, labels


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_the_loss_is_torchs_of_the_labelled_pixels_and_half_the_auxiliary_heads(weights: list[float] | None) -> None:
    outputs, labels = batch()
    loss = SegmentationLoss(Recipe(class_weights=weights), 3, None, CPU)
    given = None if weights is None else torch.tensor(weights)
    out, aux = (F.cross_entropy(outputs[name], labels, weight=given, ignore_index=VOID) for name in ("out", "aux"))
    whole = loss.normed(Target(labels))
    torch.testing.assert_close(loss(outputs, whole, 4).float(), out + 0.5 * aux)
    parts = [slice(0, 1), slice(1, 4)]
    cut = [loss({name: one[p] for name, one in outputs.items()}, whole.part(p), 4) for p in parts]
    torch.testing.assert_close(cut[0] + cut[1], loss(outputs, whole, 4))
    right = ((outputs["out"].argmax(1) == labels) & (labels != VOID)).sum() / (labels != VOID).sum()
    torch.testing.assert_close(loss.correct(outputs, whole).float(), 4 * right.float())


def test_a_batch_of_void_alone_has_no_loss() -> None:
    outputs, labels = batch()
    labels[:] = VOID
    loss = SegmentationLoss(Recipe(class_weights=[1.0, 2.0, 3.0], dice=1.0), 3, None, CPU)
    assert loss(outputs, loss.normed(Target(labels)), 4).item() == 0.0


def test_balanced_weights_follow_the_pixels() -> None:
    counts = torch.tensor([100, 300, 0])
    loss = SegmentationLoss(Recipe(class_weights="balanced"), 3, counts, CPU)
    assert loss.weights is not None
    torch.testing.assert_close(loss.weights, torch.tensor([400 / 200, 400 / 600, 0.0]))


def test_dice_is_its_formula_over_the_classes_that_an_image_has() -> None:
    outputs, labels = batch()
    labels[0][labels[0] == 2] = 1
    found = dice_losses(outputs["out"], labels)
    p = outputs["out"].softmax(dim=1)
    for i, classes in ((0, (0, 1)), (1, (0, 1, 2))):
        known = labels[i] != VOID
        each = [2 * p[i, k][labels[i] == k].sum() / (p[i, k][known].sum() + (labels[i] == k).sum()) for k in classes]
        torch.testing.assert_close(found[i], 1 - torch.stack(each).mean())
    assert found[3].item() == 0.0
    recipe = Recipe(dice=0.5)
    plain, with_dice = (SegmentationLoss(one, 3, None, CPU) for one in (Recipe(), recipe))
    whole = plain.normed(Target(labels))
    torch.testing.assert_close(with_dice(outputs, whole, 4), plain(outputs, whole, 4) + 0.5 * found.sum() / 4)


def test_the_score_is_that_of_one_confusion_matrix() -> None:
    outputs, labels = batch()
    labels[-1] = 0
    kept = TASK.outputs(outputs, labels)
    score = TASK.score(kept.answers, labels, kept.losses)
    predicted, known = outputs["out"].argmax(1), labels != VOID
    assert score.accuracy == pytest.approx((predicted == labels)[known].double().mean().item())
    for k, name in enumerate(NAMES):
        both = ((predicted == k) & (labels == k)).sum().item()
        either = (((predicted == k) | (labels == k)) & known).sum().item()
        assert score.iou is not None
        assert score.iou[name] == pytest.approx(both / either)
    losses = [
        F.cross_entropy(outputs["out"][i : i + 1].double(), labels[i : i + 1], ignore_index=VOID) for i in range(4)
    ]
    assert kept.losses.tolist() == pytest.approx([one.item() for one in losses], rel=1e-5)
    assert score.loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert score.ece is None
    wrong = TASK.per_image(kept, labels, "accuracy")
    assert wrong[1].item() == pytest.approx((predicted[1] != labels[1])[known[1]].double().mean().item())
    same = TASK.outputs_of(outputs["out"].softmax(dim=1), labels)
    assert torch.equal(same.answers, kept.answers)
    torch.testing.assert_close(same.losses, kept.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(TASK.mean_loss(outputs, labels).double(), kept.losses.mean(), rtol=1e-5, atol=1e-6)


def test_an_image_that_is_all_void_counts_nowhere() -> None:
    outputs, labels = batch()  # the last one is
    kept, without = TASK.outputs(outputs, labels), TASK.outputs({"out": outputs["out"][:-1]}, labels[:-1])
    assert torch.equal(kept.answers.sum(dim=0), without.answers.sum(dim=0))
    assert kept.losses[-1].item() == 0.0


def test_a_class_that_nobody_has_has_no_iou() -> None:
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 1] = 5
    kept = TASK.outputs({"out": logits}, torch.ones(1, 4, 4, dtype=torch.int64))
    score = TASK.score(kept.answers, torch.empty(0), kept.losses)
    assert (score.iou, score.mean_iou) == ({"a": None, "b": 1.0, "c": None}, 1.0)


# Crops.


def split_of(height: int, width: int, images: int = 6) -> MaskSplit:
    """Images whose every pixel is 40 times its mask's value."""
    torch.manual_seed(1)
    masks = torch.randint(5, (images, height, width), dtype=torch.uint8)
    store = MaskStore((masks * 40)[:, None].expand(-1, 3, -1, -1).contiguous(), masks)
    rows = torch.stack([torch.zeros(images, dtype=torch.int64), torch.arange(images)], dim=1)
    classes = torch.arange(256, dtype=torch.uint8)
    return MaskSplit((store,), rows, torch.tensor([[height, width]] * images), classes, torch.ones(images, 5))


@pytest.mark.parametrize("size", [(8, 8), (20, 6), (40, 50)])
def test_the_centre_is_cut_out_or_laid_into_void(size: tuple[int, int]) -> None:
    split = split_of(12, 16)
    crops = RandomCrops(split, size, random=False, fill=(7, 8, 9), seed=0)
    image, mask = crops[One(2, 5)]
    assert (image.shape, mask.shape) == ((3, *size), size)
    known = mask != VOID
    assert int(known.sum()) == min(12, size[0]) * min(16, size[1])
    assert torch.equal(image[0][known], mask[known] * 40)
    assert image[:, ~known].unique(dim=1).tolist() in ([[7], [8], [9]], [[], [], []])


def test_image_and_mask_are_changed_alike() -> None:
    """Blocks of one class that survive the scaling: within one, the image has its colour."""
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, :, 32:], masks[:, 32:, :32] = 2, 1
    store = MaskStore((masks * 100)[:, None].expand(-1, 3, -1, -1).contiguous(), masks)
    one = MaskSplit(
        (store,), torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[64, 64]]), torch.arange(256, dtype=torch.uint8),
        torch.ones(1, 3),
    )  # fmt: skip
    crops = RandomCrops(one, (48, 48), random=True, fill=(255, 255, 255), seed=3)
    shares = []
    for seed in range(40):
        image, mask = crops[One(0, seed)]
        known = mask != VOID
        far = (image[0].int() - mask.int() * 100).abs() > 5
        assert (far & known).double().mean() < 0.08  # at the blocks' edges alone, where colours are blended
        shares.append(known.double().mean().item())
    assert min(shares) < 0.5 < max(shares)  # scaled down, void is around it; scaled up, the crop is full
    again = crops[One(0, 7)]
    assert all(torch.equal(a, b) for a, b in zip(again, crops[One(0, 7)], strict=True))


@pytest.mark.long  # a process of its own imports torch
def test_loaders_change_nothing() -> None:
    split = split_of(12, 16)
    made = []
    for loaders in (0, 1):
        prepare = Preparer((0.4, 0.5, 0.6), (0.2, 0.2, 0.2), "scale_crop_flip_colour", 5, CPU)
        feed = MaskFeed(split, prepare, (10, 10), loaders)
        requests = [Request(torch.tensor([3, 0]), "augment", 0), Request(torch.tensor([1, 5]), "augment", 1)]
        made.append([(one.inputs, one.labels) for one, _ in feed.stream(requests)])
    for (here, labels), (there, others) in zip(*made, strict=True):
        assert torch.equal(here, there)
        assert torch.equal(labels, others)
        assert here.shape == (2, 3, 10, 10)
        assert labels.dtype == torch.int64


def test_the_palette_is_pascals() -> None:
    assert palette(21)[[0, 1, 2, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]


# Jobs.


def outputs_of(job: LocalJob, tensors: dict[str, torch.Tensor], split: str = "val") -> list[torch.Tensor]:
    """What a file's network gives for each image by itself, loaded into torchvision's own class."""
    model = models.get_model(job.spec.network.name, weights=None, weights_backbone=None, num_classes=len(CLASSES))
    model.load_state_dict(tensors)
    model.eval()
    images, found = load_masks(job.dataset, split, None, len(CLASSES)), []
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in (job.plan.mean, job.plan.std))
    for index in range(len(images)):
        image, _ = images.pair(index)
        with torch.no_grad():
            found.append(model(((image / 255 - mean) / std)[None])["out"][0])
    return found


def losses_of(job: LocalJob, outputs: list[torch.Tensor]) -> list[float]:
    images = load_masks(job.dataset, "val", None, len(CLASSES))
    return [
        F.cross_entropy(one[None].double(), images.pair(i)[1].long()[None], ignore_index=VOID).item()
        for i, one in enumerate(outputs)
    ]


def test_a_job_on_images_of_many_sizes_reports_what_its_files_give(tmp_path: Path) -> None:
    method = METHOD.model_copy(update={"include_start": True})
    job = make_segmentation_job(tmp_path, method, sizes=[(40, 32), (24, 36), (24, 36)], recipe_dice=0.5)
    told = Recorder()
    outcome = run(job, told)
    metrics, curve = outcome.result.metrics, outcome.result.curve
    averaged = losses_of(job, outputs_of(job, load_file(outcome.weights)))
    assert metrics.averaged.loss == pytest.approx(sum(averaged) / 4, rel=1e-4)
    assert outcome.losses is not None
    assert json.loads(outcome.losses.read_text())["averaged"] == pytest.approx(averaged, rel=1e-4)
    members = [outputs_of(job, load_file(path)) for path in (job.start, *told.snapshots.values())]
    mean = [torch.stack([one.softmax(0) for one in each]).mean(0).log() for each in zip(*members, strict=True)]
    assert metrics.ensemble.loss == pytest.approx(sum(losses_of(job, mean)) / 4, rel=1e-4)
    assert set(metrics.averaged.iou or {}) == set(CLASSES)
    assert metrics.averaged.ece is None
    assert [point.mean_iou for point in curve] == [told.curve[n].mean_iou for n in (1, 2, 3)]
    assert all(0 <= (point.accuracy or 0) <= 1 for point in told.points)
    with safe_open(outcome.weights, "pt") as file:
        metadata = file.metadata()
    assert (metadata["wbar.resize"], json.loads(metadata["wbar.classes"])) == ("none", list(CLASSES))
    served = AveragedModel(outcome.weights)
    image = load_masks(job.dataset, "val", None, len(CLASSES)).pair(1)[0]
    logits = torch.from_numpy(served.predict((image / 255).numpy()[None]))
    torch.testing.assert_close(logits[0], outputs_of(job, load_file(outcome.weights))[1], rtol=1e-4, atol=1e-4)
    assert outcome.picture is not None
    with Image.open(outcome.picture) as picture:
        assert picture.size[0] > 4 * 160
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 20


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        (METHOD.model_dump() | {"average": "window"}, {"augment": "scale_crop_flip_colour"}),
        (
            {"type": "ema", "epochs": 2, "lr": 0.02, "final_lr": 0.002, "control_lr": 0.02, "shape": "poly"},
            {"dice": 1.0, "class_weights": "balanced", "accumulate": 2, "precision": "bfloat16"},
        ),
    ],
)
def test_a_death_after_any_step_changes_nothing(
    tmp_path: Path, method: dict[str, object], recipe: dict[str, object]
) -> None:
    def job(name: str) -> LocalJob:
        changes = {f"recipe_{option}": value for option, value in recipe.items()}
        made = make_segmentation_job(tmp_path / name, METHODS.validate_python(method), **changes)  # type: ignore[arg-type]
        return made.changed(save_every_seconds=0.0)

    whole = run(job("whole"), Recorder())
    for step in (1, 3):
        again = job(f"killed-{step}")
        with pytest.raises(KilledHere):
            run(again, Recorder(die_at=step))
        resumed = run(again.changed(resume=state_files.latest(again.scratch)), Recorder())
        assert resumed.weights.read_bytes() == whole.weights.read_bytes()
        assert resumed.result == whole.result


def test_the_auxiliary_head_is_trained_averaged_and_written(tmp_path: Path) -> None:
    network = Network("deeplabv3_mobilenet_v3_large", len(CLASSES), auxiliary=True)
    job = make_segmentation_job(tmp_path, METHOD.model_copy(update={"cycles": 1}), network, train=4, val=2)
    start, outcome = load_file(job.start), run(job, Recorder())
    written = load_file(outcome.weights)
    assert written.keys() == start.keys()
    head = "aux_classifier.4.weight"
    assert not torch.equal(written[head], start[head])
    user = models.get_model(network.name, weights=None, weights_backbone=None, num_classes=4, aux_loss=True)
    user.load_state_dict(torch.load(outcome.pytorch, weights_only=True), strict=True)


def test_a_soup_of_masks(tmp_path: Path) -> None:
    job = make_segmentation_job(tmp_path, Soup(type="soup", checkpoints=["ckpt_a", "ckpt_b"]))
    ingredients = []
    for name in "ab":
        torch.manual_seed(ord(name))
        write_safetensors(job.workspace.input(name), initialized(job.spec.network).state_dict(), {})
        ingredients.append(
            StoredWeights(id=f"ckpt_{name}", sha256=name * 64, blob=name, prefix="", network=job.spec.network)
        )
    outcome = run(job.changed(ingredients=tuple(ingredients)), Recorder())
    result, written = outcome.result, load_file(outcome.weights)
    members = [outputs_of(job, load_file(job.workspace.input(name))) for name in "ab"]
    mean = [torch.stack([one.softmax(0) for one in each]).mean(0).log() for each in zip(*members, strict=True)]
    assert result.metrics.ensemble.loss == pytest.approx(sum(losses_of(job, mean)) / 4, rel=1e-4)
    assert result.curve[-1].mean_iou == result.metrics.averaged.mean_iou
    averaged = result.metrics.averaged.loss
    assert sum(losses_of(job, outputs_of(job, written))) / 4 == pytest.approx(averaged, rel=1e-4)
    first, second = (load_file(job.workspace.input(name)) for name in "ab")
    convolution = next(name for name in first if name.endswith("weight") and first[name].dim() == 4)
    assert torch.allclose(written[convolution], (first[convolution] + second[convolution]) / 2, atol=1e-7)


@pytest.mark.long
def test_it_learns_shapes(tmp_path: Path) -> None:
    """From its initialization, in a minute or two of two cores; calling everything background has a mean IoU of 0.2."""
    method = METHODS.validate_python(
        {"type": "ema", "epochs": 5, "lr": 0.05, "final_lr": 0.0, "control_lr": 0.05, "decay": 0.98, "shape": "poly"}
    )
    job = make_segmentation_job(
        tmp_path, method, train=200, val=40, sizes=[(64, 64)],
        recipe_image_size=(64, 64), recipe_batch_size=16, recipe_augment="none",
    )  # fmt: skip
    averaged = run(job, Recorder()).result.metrics.averaged
    assert averaged.mean_iou is not None
    assert averaged.mean_iou > 0.5
    assert averaged.accuracy > 0.85
