"""Mask R-CNN: recognized, trained with the masks of boxes, and reported by mask AP; whole jobs of the small one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision import models

from benchmarks.shapes import CLASSES, write_boxes_archive
from tests.training.detection_jobs import FASTER, MASKED, SMALL, make_detection_job
from tests.training.jobs import KilledHere, LocalJob, Recorder, run
from tests.training.test_detection import GENTLE
from wbar.datasets import DatasetFacts, ImageShape
from wbar.errors import TaskUnsupported, ValidationFailed
from wbar.evaluation_sets import check_evaluation_set
from wbar.job_request import JobOptions
from wbar.method import METHODS, Soup
from wbar.recipe import Optimizer
from wbar.spec import Network, StoredDataset, StoredWeights
from wbar.task_checks import check_task
from wbar_averaging import write_safetensors
from wbar_training import state_files
from wbar_training.data.augment import Preparer
from wbar_training.data.boxes import load_boxes
from wbar_training.mlflow_model import AveragedModel
from wbar_training.networks.architectures import build, initialized, load, shapes_of
from wbar_training.networks.detectors import loss_of
from wbar_training.networks.recognition import recognize
from wbar_training.setup import make_deterministic
from wbar_training.tasks.detection import Detection
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack

NETWORK = Network(MASKED, len(CLASSES))
FACTS = DatasetFacts(
    task="detection",
    classes=CLASSES,
    train_images=4,
    shape=ImageShape(channels=3, height=48, width=48),
    many_sizes=False,
    mean=(0.5,) * 3,
    std=(0.2,) * 3,
)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", MASKED])
def test_it_is_told_by_its_tensors(name: str) -> None:
    found = recognize(shapes_of(Network(name, 7)))
    assert (found.network.name, found.network.num_classes, found.ambiguous_with) == (name, 7, [])
    assert found.network.architecture.finds_masks
    if name != MASKED:
        theirs = models.get_model(name, weights=None, weights_backbone=None, num_classes=7)
        assert {key: tuple(one.shape) for key, one in theirs.state_dict().items()} == shapes_of(Network(name, 7))
    frozen = recognize(shapes_of(Network("maskrcnn_resnet50_fpn", 7, frozen_norm=True))).network
    assert frozen.frozen_norm


def test_masks_are_needed_where_they_are_learned_and_nowhere_else() -> None:
    options = JobOptions()
    with pytest.raises(
        TaskUnsupported, match="which learns a mask for each box, and the dataset has boxes without masks"
    ):
        check_task(options, NETWORK, FACTS)
    with_masks = replace(FACTS, masks=True)
    check_task(options, NETWORK, with_masks)
    check_task(options, Network(SMALL, 4), with_masks)
    check_task(options, Network(SMALL, 4), FACTS)
    here, there = (StoredDataset(id=f"ds_{one}", sha256=one * 64, blob=one) for one in "ab")
    check_evaluation_set("far", there, with_masks, here, with_masks, NETWORK, None)
    with pytest.raises(ValidationFailed, match=r"evaluate.far: ds_b has boxes without masks"):
        check_evaluation_set("far", there, FACTS, here, with_masks, NETWORK, None)


def test_a_detector_without_masks_does_not_read_them(tmp_path: Path) -> None:
    write_boxes_archive(tmp_path / "shapes.zip", 3, 2, [(40, 48)], masks=True)
    assert pack(tmp_path / "shapes.zip", tmp_path / "packed", UploadLimits(), "detection").masks
    split = load_boxes(tmp_path / "packed", "train", None)
    assert split.runs == ()
    assert split.batch(slice(0, 2), Preparer((0.0,) * 3, (1.0,) * 3, "none", 0, torch.device("cpu"))).masks is None


def test_the_loss_of_masks_is_among_the_networks_own(tmp_path: Path) -> None:
    """With masks that are all of their boxes another loss than with none of them, and nothing else differs."""
    torch.manual_seed(0)
    model, images = initialized(NETWORK).train(), torch.rand(1, 3, 96, 96)
    box = {"boxes": torch.tensor([[10.0, 12, 70, 80]]), "labels": torch.tensor([2])}
    losses = []
    for inside in (1, 0):
        target = box | {"masks": torch.full((1, 96, 96), inside, dtype=torch.uint8)}
        torch.manual_seed(1)
        theirs = model(list(images), [target])
        torch.manual_seed(1)
        ours = loss_of(model, images, [target])
        assert ours.item() == pytest.approx(sum(one.item() for one in theirs.values()), rel=1e-6)
        losses.append({name: one.item() for name, one in theirs.items()})
    assert losses[0].pop("loss_mask") != losses[1].pop("loss_mask")
    assert losses[0] == losses[1]
    without = {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64), "masks": torch.empty(0, 96, 96)}
    assert torch.isfinite(loss_of(model, images, [without]))


def scores_of(job: LocalJob, tensors: dict[str, Tensor]) -> tuple[list[float], Tensor]:
    model, _ = load(NETWORK, tensors)
    split, task = load_boxes(job.dataset, "val", None, masks=True), Detection(NETWORK, list(CLASSES))
    prepare = Preparer((0.0,) * 3, (1.0,) * 3, "none", 0, torch.device("cpu"))
    with torch.no_grad():
        each = [task.answered(model.eval(), split.batch(slice(i, i + 1), prepare)) for i in range(len(split))]
    return [one.losses.item() for one in each], torch.cat([one.answers for one in each])


@pytest.mark.long
def test_a_job_reports_what_its_files_give(tmp_path: Path) -> None:
    job = make_detection_job(tmp_path, GENTLE, NETWORK, sizes=[(48, 48), (40, 60)])
    told = Recorder()
    outcome = run(job, told)
    result = outcome.result
    losses, answers = scores_of(job, load_file(outcome.weights))
    assert outcome.losses is not None
    assert json.loads(outcome.losses.read_text())["averaged"] == pytest.approx(losses, rel=1e-3)
    score = Detection(NETWORK, list(CLASSES)).score(answers, answers, torch.tensor(losses))
    assert score.masks is not None
    assert result.metrics.averaged.masks is not None
    assert result.metrics.averaged.masks.ap == pytest.approx(score.masks.ap, abs=1e-3)
    assert set(result.metrics.averaged.masks.by_class) == set(CLASSES[1:])
    assert result.metrics.averaged.accuracy == (result.metrics.averaged.boxes.ap or 0)  # type: ignore[union-attr]
    assert result.metrics.snapshots is not None
    assert result.metrics.snapshots.masks is not None
    assert [point.mask_ap for point in result.curve] == [one.masks.ap for one in told.curve.values() if one.masks]
    assert outcome.picture is not None
    assert AveragedModel(outcome.weights).predict(torch.rand(1, 3, 48, 48).numpy()).shape[2] == 6
    start, written = load_file(job.start), load_file(outcome.weights)
    assert all(torch.equal(start[name], written[name]) for name in start if "running_" in name)  # frozen, by default
    trained = "roi_heads.mask_predictor.mask_fcn_logits.weight"
    assert not torch.equal(start[trained], written[trained])
    build(NETWORK).load_state_dict(written, assign=True)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        (GENTLE.model_dump() | {"average": "window"}, {"augment": "scale_crop_flip_colour", "mixup": 0.5}),
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
        made = make_detection_job(tmp_path / name, METHODS.validate_python(method), NETWORK, **changes)  # type: ignore[arg-type]
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
def test_a_soup(tmp_path: Path) -> None:
    job = make_detection_job(tmp_path, Soup(type="soup", checkpoints=["ckpt_a", "ckpt_b"]), NETWORK)
    ingredients = []
    for name in "ab":
        torch.manual_seed(ord(name))
        write_safetensors(job.workspace.input(name), initialized(NETWORK).state_dict(), {})
        ingredients.append(StoredWeights(id=f"ckpt_{name}", sha256=name * 64, blob=name, prefix="", network=NETWORK))
    result = run(job.changed(ingredients=tuple(ingredients)), Recorder()).result
    assert result.metrics.averaged.masks is not None
    assert result.metrics.snapshots is not None
    assert result.metrics.snapshots.masks is not None
    assert result.curve[-1].mask_ap == result.metrics.averaged.masks.ap


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_it_learns_shapes(tmp_path: Path) -> None:
    """From its initialization at 96 pixels, in some minutes of two cores; such a network finds nothing at first."""
    method = METHODS.validate_python(
        {"type": "none", "epochs": 8, "lr": 1e-3, "final_lr": 0.0, "control_lr": 1e-3, "shape": "cosine"}
    )
    job = make_detection_job(
        tmp_path, method, NETWORK, train=160, val=20, sizes=[(96, 96)],
        recipe_image_size=(96, 96), recipe_batch_size=8, recipe_batch_norm="recompute",
        recipe_optimizer=Optimizer(name="adamw", weight_decay=0.01),
    )  # fmt: skip
    metrics = run(job, Recorder()).result.metrics
    assert metrics.averaged.masks is not None
    assert metrics.averaged.masks.ap is not None
    assert metrics.start.accuracy < 0.02
    assert metrics.averaged.masks.ap > 0.3
    assert (metrics.averaged.masks.ap50 or 0) > 0.6


@pytest.mark.parametrize(("network", "deterministic"), [(MASKED, False), (FASTER, False), (SMALL, True)])
def test_torchs_deterministic_mode_is_off_where_regions_are_pooled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, deterministic: bool
) -> None:
    """With it on, torchvision has inductor make another pooling in the place of its own kernel, and that fails."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    spec = make_detection_job(tmp_path, network=Network(network, len(CLASSES))).spec
    try:
        make_deterministic(spec, "cuda", None)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
    finally:
        torch.use_deterministic_algorithms(False)
