"""Boxes with classes: boxes changed as their images are, COCO's scores, and whole jobs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from benchmarks.shapes import CLASSES
from tests.training.detection_jobs import FASTER, SMALL, make_detection_job
from tests.training.jobs import KilledHere, LocalJob, Recorder, run
from wbar.errors import PackageMissing
from wbar.method import METHODS, Soup
from wbar.recipe import Optimizer, Recipe
from wbar.spec import Network, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training import state_files
from wbar_training.data.augment import Preparer
from wbar_training.data.boxes import (
    CLASS,
    CORNERS,
    NO_BOX,
    BoxFeed,
    BoxSplit,
    FittedImages,
    cut_boxes,
    load_boxes,
    mirrored,
    targets_of,
)
from wbar_training.data.examples import Batch, Request
from wbar_training.data.feed import One
from wbar_training.losses import Target
from wbar_training.mlflow_model import AveragedModel
from wbar_training.networks.architectures import build, initialized, load, shapes_of
from wbar_training.networks.detectors import DETECTION, FROZEN, loss_of
from wbar_training.networks.fresh_layers import prepared
from wbar_training.networks.recognition import recognize
from wbar_training.tasks.coco_scores import box_score, evaluators
from wbar_training.tasks.detection import DRAWS, MOST, Detection, DetectionLoss

CPU = torch.device("cpu")
NAMES = list(CLASSES)
GENTLE = METHODS.validate_python(
    {
        "cycles": 2,
        "high": {"lr": 0.002, "epochs": 1},
        "low": {"lr": 0.0002, "epochs": 1},
        "pull": 0.01,
        "control_lr": 0.01,
    }
    | {"type": "cyclic_swa"}
)


# Boxes that are changed with their images.


def box(label: float, *corners: float, crowd: float = 0) -> list[float]:
    left, top, right, bottom = corners
    return [label, *corners, (right - left) * (bottom - top), crowd]


def split_of(size: tuple[int, int], *boxes: list[float]) -> BoxSplit:
    """One image that is white inside its boxes and black elsewhere."""
    image = torch.zeros(1, 3, *size, dtype=torch.uint8)
    for one in boxes:
        left, top, right, bottom = map(int, one[1:5])
        image[:, :, top:bottom, left:right] = 255
    return BoxSplit(
        (image,), torch.zeros(1, 2, dtype=torch.int64), torch.tensor([size]), torch.tensor([list(boxes)]).float()
    )


def test_boxes_are_cut_and_left_out_by_what_is_seen() -> None:
    boxes = torch.tensor(
        [box(1, 0, 0, 10, 10), box(2, -6, 2, 4, 8), box(3, -8, 0, 2, 10), box(1, 39.5, 0, 42, 10), [NO_BOX, *[0] * 6]]
    )
    found = cut_boxes(boxes, boxes[:, CORNERS], (8, 40))
    torch.testing.assert_close(found[0], torch.tensor([1, 0, 0, 10, 8, 80, 0.0]))
    torch.testing.assert_close(found[1], torch.tensor([2, 0, 2, 4, 8, 24, 0.0]))  # 40 % of it are seen
    assert found[2:, CLASS].tolist() == [NO_BOX] * 3  # a fifth; half a pixel; none
    image, turned = mirrored(torch.arange(40).expand(3, 8, 40), found)
    torch.testing.assert_close(turned[1], torch.tensor([2, 36, 2, 40, 8, 24, 0.0]))
    assert (turned[4].tolist(), image[0, 0, 0].item()) == ([NO_BOX, *[0] * 6], 39)


def test_boxes_follow_what_is_seen_of_them() -> None:
    one = box(2, 20, 10, 60, 34)
    split = split_of((60, 100), one)
    scaled = FittedImages(split, (50, 50), "scale_crop_flip", (0.5, 0.5, 0.5), seed=3)
    shares, left_out = set(), 0
    for seed in range(40):
        image, boxes = scaled[One(0, seed)]
        assert image.shape == (3, 50, 50)
        if boxes[0, CLASS] == NO_BOX:
            left_out += 1
            continue
        rows, columns = (image[0] > 200).any(dim=1).nonzero(), (image[0] > 200).any(dim=0).nonzero()
        seen = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
        assert boxes[0, CORNERS].tolist() == pytest.approx(seen, abs=1.6)  # the edges are blended
        assert boxes[0, 0] == 2
        shares.add(round(boxes[0, 5].item()))
    assert len(shares) > 20
    assert left_out < 20
    plain = FittedImages(split, (60, 60), "none", (0.5, 0.5, 0.5), seed=3)
    image, boxes = plain[One(0, 5)]
    torch.testing.assert_close(boxes[0], torch.tensor([2, 12, 12 + 6, 36, 12 + 20.4, 24 * 14.4, 0.0]))
    assert image[:, :12].unique().tolist() == [128]  # the mean colour, above and below the image
    flipped = {FittedImages(split, (60, 60), "flip", (0, 0, 0), 3)[One(0, seed)][1][0, 1].item() for seed in range(9)}
    assert flipped == {12.0, 24.0}


@pytest.mark.long  # a process of its own imports torch
def test_loaders_change_nothing() -> None:
    split, made = split_of((30, 40), box(1, 3, 4, 20, 20), box(2, 8, 8, 30, 30)), []
    for loaders in (0, 1):
        prepare = Preparer((0.0,) * 3, (1.0,) * 3, "scale_crop_flip_colour", 5, CPU)
        feed = BoxFeed(split, prepare, (24, 24), (0.5,) * 3, loaders)
        requests = [Request(torch.tensor([0, 0]), "augment", index) for index in range(2)]
        made.append([(one.inputs, one.labels) for one, _ in feed.stream(requests)])
    for here, there in zip(*made, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_mixed_images_have_the_boxes_of_both() -> None:
    task = Detection(Network(SMALL, 4), NAMES)
    images = torch.stack([torch.full((3, 8, 8), value) for value in (0.0, 1.0, 0.5)])
    labels = torch.tensor([[box(1, 0, 0, 4, 4)], [box(2, 1, 1, 6, 6)], [[NO_BOX, *[0] * 6]]])
    masks = torch.tensor([[[1]], [[2]], [[3]]], dtype=torch.uint8)
    batch, seen = Batch(images, labels, masks), set()
    for step in range(12):
        inputs, target = task.target(Recipe(mixup=1.5), batch, 7, step)
        again = task.target(Recipe(mixup=1.5), batch, 7, step)
        assert torch.equal(inputs, again[0])
        assert torch.equal(target.labels, again[1].labels)
        assert torch.equal(target.labels[:, :1], labels)
        assert target.masks is not None
        for index in range(3):
            other = int(target.masks[index, 1]) - 1
            seen.add((index, other))
            value, own, its = (float(one.mean()) for one in (inputs[index], images[index], images[other]))
            assert min(own, its) <= value <= max(own, its)
            expected = labels[other, 0] if other != index else torch.tensor([NO_BOX, *labels[other, 0, 1:].tolist()])
            assert torch.equal(target.labels[index, 1], expected)
    assert len(seen) == 9
    assert task.target(Recipe(), batch, 7, 0)[0] is images


# COCO's scores.


def drawn_boxes(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labels, crowds among them, and detections near them, far from them, and of other classes."""
    torch.manual_seed(seed)
    corner = torch.rand(images, 6, 2) * 100
    sides = 4 + torch.rand(images, 6, 2) ** 2 * 150
    labels = torch.zeros(images, 6, 7)
    labels[..., CLASS] = torch.randint(1, 4, (images, 6)).float()
    labels[..., CORNERS] = torch.cat([corner, corner + sides], dim=2)
    labels[..., 5] = sides.prod(dim=2)
    labels[..., 6] = (torch.rand(images, 6) < 0.15).float()
    labels[torch.rand(images, 6) < 0.3] = torch.tensor([NO_BOX, *[0.0] * 6])
    near = labels.repeat(1, 2, 1)
    near[..., CORNERS] += torch.randn(images, 12, 4) * 4
    near[..., CLASS] = torch.where(torch.rand(images, 12) < 0.2, near[..., CLASS].roll(1), near[..., CLASS])
    near[..., 5] = torch.rand(images, 12)
    detections = torch.zeros(images, MOST, 7)
    detections[..., CLASS] = NO_BOX
    detections[:, :12] = near
    return detections, labels


@pytest.mark.parametrize("seed", range(4))
def test_both_packages_give_the_same_scores(seed: int) -> None:
    if len(evaluators()) < 2:
        pytest.skip("one of faster-coco-eval and pycocotools is not installed")
    detections, labels = drawn_boxes(30, seed)
    one, other = (box_score(detections, labels, NAMES, package) for package in evaluators())
    assert one.ap is not None
    assert 0.1 < one.ap < 0.9
    for name, value in one.model_dump().items():
        assert getattr(other, name) == pytest.approx(value, abs=1e-9), name


def test_scores_by_hand() -> None:
    labels = torch.tensor(
        [[box(1, 0, 0, 20, 20), box(2, 50, 50, 150, 150)], [box(1, 5, 5, 45, 45), [NO_BOX, *[0] * 6]]]
    )
    right = labels.clone()
    right[..., 5] = 0.9
    perfect = box_score(right, labels, NAMES)
    assert (perfect.ap, perfect.ap50, perfect.ap_small, perfect.ap_medium, perfect.ap_large) == (1, 1, 1, 1, 1)
    assert perfect.by_class == {"disc": 1.0, "square": 1.0, "triangle": None}
    shifted = right.clone()
    shifted[0, 1, [1, 3]] += 25  # IoU 75/125 = 0.6: right at 0.5, 0.55 and 0.6
    assert box_score(shifted, labels, NAMES).by_class["square"] == pytest.approx(0.3)
    nothing = box_score(torch.full_like(right, NO_BOX), labels, NAMES)
    assert (nothing.ap, nothing.ap_small, nothing.by_class["triangle"]) == (0, 0, None)
    assert box_score(right, torch.full_like(labels, NO_BOX), NAMES).ap is None
    crowd = labels.clone()
    crowd[0, 1, 6] = 1
    assert box_score(right, crowd, NAMES).by_class == {"disc": 1.0, "square": None, "triangle": None}


def test_without_a_package_there_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("faster_coco_eval", "pycocotools"):
        monkeypatch.setitem(sys.modules, package, None)
    evaluators.cache_clear()
    try:
        with pytest.raises(PackageMissing, match=r"wbar\[detection\]"):
            Detection(Network(SMALL, 4), NAMES)
    finally:
        evaluators.cache_clear()


# Networks.


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_a_checkpoint_without_counters_has_frozen_layers(name: str) -> None:
    """As torchvision builds its own from published weights: four buffers for each, which no training changes."""
    network = Network(name, 3, frozen_norm=True)
    shapes = shapes_of(network)
    assert not any(key.endswith("num_batches_tracked") for key in shapes)
    found = recognize(shapes).network
    assert (found.frozen_norm, found.num_classes) == (True, 3)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in build(network).get_submodule("backbone.body").modules())


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_a_fresh_head_begins_with_rare_boxes(name: str) -> None:
    network = Network(name, 3, frozen_norm=True)
    tensors = initialized(network).state_dict()
    bias = "head.classification_head.cls_logits.bias"
    model = prepared(network, tensors, Recipe(head="reset"), 5)
    assert model.state_dict()[bias].unique().tolist() == pytest.approx([-4.595], abs=1e-3)


@pytest.mark.models
@pytest.mark.parametrize("name", DETECTION)
def test_every_detector_learns_from_boxes_and_finds_some(name: str) -> None:
    """One image has boxes and one has none; every parameter has a gradient."""
    torch.manual_seed(0)
    network = Network(name, len(CLASSES), frozen_norm=name in FROZEN)
    model, loss = initialized(network).train(), DetectionLoss(Recipe(), len(CLASSES), None, CPU)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images, labels = torch.rand(2, 3, 96, 96), torch.full((2, 2, 7), NO_BOX)
    labels[0] = torch.tensor([box(1, 2, 3, 60, 60), box(2, 5, 5, 90, 80)])
    masks = None
    if network.architecture.finds_masks:
        masks = torch.zeros(2, 2, 96 * 96 // 8, dtype=torch.uint8)
        masks[0, :, 96 : 96 * 5] = 255
    target = loss.normed(Target(labels, masks=masks))
    loss(loss.forward(model, images, target), target, 2).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        found = Detection(network, NAMES).answered(model.eval(), _batch(images, labels, masks))
        for index, target_of_one in enumerate(targets_of(labels, masks, (96, 96))):
            torch.manual_seed(DRAWS)
            alone = loss_of(model, images[index : index + 1], [target_of_one]).item()
            assert found.losses[index].item() == pytest.approx(alone, rel=1e-4), "from the same features"
    assert bool(torch.isfinite(found.losses).all())
    assert found.losses[0] > found.losses[1]
    assert found.answers.shape == (2, MOST + 2, 7 if masks is None else 8 + 2)


def test_the_loss_of_an_image_is_the_same_in_any_batch_and_mode() -> None:
    torch.manual_seed(0)
    network = Network(SMALL, len(CLASSES))
    model, task = initialized(network).eval(), Detection(network, NAMES)
    images, labels = (
        torch.rand(3, 3, 40, 48),
        torch.tensor([[box(1, 2, 3, 30, 30)], [box(2, 5, 5, 45, 35)], [[-1.0] * 7]]),
    )
    passes = list[int]()
    first = next(module for module in model.backbone.modules() if isinstance(module, nn.Conv2d))
    counted = first.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        together = task.answered(model, _batch(images, labels))
        counted.remove()
        alone = task.answered(model, _batch(images[1:2], labels[1:2]))
        torch.manual_seed(DRAWS)
        own = loss_of(model, images[:1], targets_of(labels[:1]))
    assert alone.losses[0].item() == pytest.approx(together.losses[1].item(), rel=1e-5)
    assert own.item() == pytest.approx(together.losses[0].item(), rel=1e-6)
    assert not any(module.training for module in model.modules())
    assert len(passes) == 1, "boxes and losses are from one pass of the backbone"
    assert torch.equal(together.answers[:, MOST:], labels)


def _batch(images: Tensor, labels: Tensor, masks: Tensor | None = None) -> Batch:
    return Batch(images, labels, masks)


# Jobs.


def scores_of(job: LocalJob, tensors: dict[str, Tensor]) -> tuple[list[float], Tensor]:
    """The loss of each held-out image by torchvision's own class, and its detections as the task keeps them."""
    network = job.spec.network
    model, _ = load(network, tensors)
    if not network.frozen_norm:
        model = models.get_model(network.name, weights=None, weights_backbone=None, num_classes=len(CLASSES))
        model.load_state_dict(tensors)
    images, task = load_boxes(job.dataset, "val", None), Detection(network, NAMES)
    model.eval()
    losses, answers = [], []
    with torch.no_grad():
        for index in range(len(images)):
            image = images.image(index)[None] / 255
            answers.append(task.answered(model, _batch(image, images.labels[index : index + 1])).answers)
            torch.manual_seed(DRAWS)
            losses.append(loss_of(model, image, targets_of(images.labels[index : index + 1])).item())
    return losses, torch.cat(answers)


@pytest.mark.long
def test_a_job_on_images_of_many_sizes_reports_what_its_files_give(tmp_path: Path) -> None:
    job = make_detection_job(tmp_path, GENTLE, sizes=[(48, 48), (40, 60)])
    told = Recorder()
    outcome = run(job, told)
    metrics, curve = outcome.result.metrics, outcome.result.curve
    losses, answers = scores_of(job, load_file(outcome.weights))
    assert metrics.averaged.loss == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert outcome.losses is not None
    assert json.loads(outcome.losses.read_text())["averaged"] == pytest.approx(losses, rel=1e-4)
    boxes = box_score(answers[:, :MOST], answers[:, MOST:], NAMES)
    assert metrics.averaged.boxes is not None
    again, told_boxes = boxes.model_dump(), metrics.averaged.boxes.model_dump()
    assert told_boxes.pop("by_class") == pytest.approx(again.pop("by_class"), abs=1e-3)
    assert told_boxes == pytest.approx(again, abs=1e-3)
    assert metrics.averaged.accuracy == (metrics.averaged.boxes.ap or 0)
    assert metrics.ensemble is None
    assert metrics.snapshots is not None
    members = [scores_of(job, load_file(path))[0] for path in told.snapshots.values()]
    assert metrics.snapshots.loss == pytest.approx(sum(map(sum, members)) / 6, rel=1e-4)
    assert metrics.start_recomputed == metrics.start
    assert [point.ap50 for point in curve] == [one.boxes.ap50 for one in told.curve.values() if one.boxes]
    with safe_open(outcome.weights, "pt") as file:
        metadata = file.metadata()
    assert (metadata["wbar.resize"], json.loads(metadata["wbar.classes"])) == ("none", NAMES)
    assert json.loads(metadata["wbar.normalize"]) == {"mean": [0, 0, 0], "std": [1, 1, 1]}
    assert outcome.picture is not None
    served = AveragedModel(outcome.weights).predict((load_boxes(job.dataset, "val", None).image(1) / 255).numpy()[None])
    torch.testing.assert_close(torch.from_numpy(served)[0, :5, 1], answers[1, :5, 5], rtol=1e-3, atol=1e-4)
    assert served.shape[2] == 6
    start, written = load_file(job.start), load_file(outcome.weights)
    statistics = [name for name in start if "running_" in name]
    assert all(torch.equal(start[name], written[name]) for name in statistics)
    assert not torch.equal(
        start["head.classification_head.module_list.0.1.bias"], written["head.classification_head.module_list.0.1.bias"]
    )


@pytest.mark.long
def test_frozen_layers_stay_as_they_are_and_nothing_is_recomputed(tmp_path: Path) -> None:
    """Also where statistics are asked to be recomputed: there are none."""
    network = Network(FASTER, len(CLASSES), frozen_norm=True)
    method = GENTLE.model_copy(update={"cycles": 1})
    job = make_detection_job(tmp_path, method, network, train=2, val=2, recipe_batch_norm="recompute")
    outcome = run(job, Recorder())
    start, written = load_file(job.start), load_file(outcome.weights)
    assert written.keys() == start.keys()
    frozen = [name for name in start if ".bn" in name or (name.startswith("backbone.body") and "running" in name)]
    assert frozen
    assert all(torch.equal(start[name], written[name]) for name in frozen)
    trained = "roi_heads.box_predictor.cls_score.weight"
    assert not torch.equal(start[trained], written[trained])
    assert outcome.result.metrics.start_recomputed == outcome.result.metrics.start
    losses, _ = scores_of(job, written)
    # An anchor more or less above a threshold, by a rounding, and others are drawn.
    assert outcome.result.metrics.averaged.loss == pytest.approx(sum(losses) / 2, rel=0.03)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        (GENTLE.model_dump() | {"average": "window"}, {"augment": "scale_crop_flip_colour"}),
        (
            {"type": "ema", "epochs": 2, "lr": 0.002, "final_lr": 0.0002, "control_lr": 0.002},
            {"batch_norm": "recompute", "accumulate": 2, "batch_size": 4},
        ),
    ],
)
def test_a_death_after_any_step_changes_nothing(
    tmp_path: Path, method: dict[str, object], recipe: dict[str, object]
) -> None:
    def job(name: str) -> LocalJob:
        changes = {f"recipe_{option}": value for option, value in recipe.items()}
        made = make_detection_job(tmp_path / name, METHODS.validate_python(method), **changes)  # type: ignore[arg-type]
        return made.changed(save_every_seconds=0.0)

    whole = run(job("whole"), Recorder())
    for step in (1, 2):
        again = job(f"killed-{step}")
        with pytest.raises(KilledHere):
            run(again, Recorder(die_at=step))
        resumed = run(again.changed(resume=state_files.latest(again.scratch)), Recorder())
        assert resumed.weights.read_bytes() == whole.weights.read_bytes()
        assert resumed.result == whole.result


@pytest.mark.long
def test_a_death_of_a_network_that_draws_changes_nothing(tmp_path: Path) -> None:
    """Faster R-CNN draws anchors and proposals in each step, and its frozen layers are in the state, too."""

    def job(name: str) -> LocalJob:
        network = Network(FASTER, len(CLASSES), frozen_norm=True)
        made = make_detection_job(tmp_path / name, GENTLE.model_copy(update={"cycles": 1}), network, train=2, val=2)
        return made.changed(save_every_seconds=0.0)

    whole, again = run(job("whole"), Recorder()), job("killed")
    with pytest.raises(KilledHere):
        run(again, Recorder(die_at=1))
    resumed = run(again.changed(resume=state_files.latest(again.scratch)), Recorder())
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert resumed.result == whole.result


@pytest.mark.long
def test_a_soup_of_detectors(tmp_path: Path) -> None:
    job = make_detection_job(tmp_path, Soup(type="soup", checkpoints=["ckpt_a", "ckpt_b"]))
    ingredients = []
    for name in "ab":
        torch.manual_seed(ord(name))
        write_safetensors(job.workspace.input(name), initialized(job.spec.network).state_dict(), {})
        ingredients.append(
            StoredWeights(id=f"ckpt_{name}", sha256=name * 64, blob=name, prefix="", network=job.spec.network)
        )
    result = run(job.changed(ingredients=tuple(ingredients)), Recorder()).result
    each = [scores_of(job, load_file(job.workspace.input(name)))[0] for name in "ab"]
    assert result.metrics.ensemble is None
    assert result.metrics.snapshots is not None
    assert result.metrics.snapshots.loss == pytest.approx(sum(map(sum, each)) / 6, rel=1e-4)
    assert result.metrics.averaged.boxes is not None
    assert result.curve[-1].ap50 == result.metrics.averaged.boxes.ap50


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_it_learns_shapes(tmp_path: Path) -> None:
    """From its initialization, in some minutes of two cores; such a network finds nothing at first."""
    method = METHODS.validate_python(
        {"type": "ema", "epochs": 9, "lr": 1e-3, "final_lr": 0.0, "control_lr": 1e-3, "decay": 0.95, "shape": "cosine"}
    )
    job = make_detection_job(
        tmp_path, method, train=160, val=30, sizes=[(96, 96)],
        recipe_image_size=(96, 96), recipe_batch_size=8, recipe_batch_norm="recompute",
        recipe_optimizer=Optimizer(name="adamw", weight_decay=0.01),
    )  # fmt: skip
    metrics = run(job, Recorder()).result.metrics
    assert metrics.averaged.boxes is not None
    assert metrics.averaged.boxes.ap is not None
    assert metrics.start.accuracy < 0.02
    assert metrics.averaged.boxes.ap > 0.3
    assert (metrics.averaged.boxes.ap50 or 0) > 0.6
