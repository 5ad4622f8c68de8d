"""Several attributes of every image: loss and score against a twin in Python's floats, whole jobs, and one that was killed."""

import json
from math import exp, log
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.training.attribute_jobs import ATTRIBUTES, CLASSES, make_attribute_job
from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, run
from wbar.method import METHODS, HighPhase, LowPhase, Soup
from wbar.recipe import Distillation, Optimizer, Recipe
from wbar.spec import Network, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training import state_files
from wbar_training.losses import Target
from wbar_training.mlflow_model import AveragedModel
from wbar_training.networks.architectures import initialized
from wbar_training.tasks.attributes import Attributes, AttributesLoss, Groups

CPU = torch.device("cpu")
# The outputs of an attribute need not lie side by side: `classes` of a job may have them in any order.
NAMES = ["size=large", "colour=red", "size=small", "size=medium", "colour=blue"]
OUTPUTS = {"size": [0, 2, 3], "colour": [1, 4]}
LABELS = torch.tensor(
    [[1, 1, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0]],
    dtype=torch.uint8,
)  # of the third image the colour is not known, of the fourth the size is not


def logits() -> Tensor:
    torch.manual_seed(0)
    return 2 * torch.randn(len(LABELS), len(NAMES))


def softmax(values: list[float]) -> list[float]:
    total = sum(exp(value) for value in values)
    return [exp(value) / total for value in values]


def twin(outputs: Tensor, labels: Tensor, smoothing: float = 0.0, weights: list[float] | None = None) -> list[float]:
    """The loss of each image, not divided yet."""
    losses = []
    for row, wanted in zip(outputs.double().tolist(), labels.tolist(), strict=True):
        cells = []
        for own in OUTPUTS.values():
            if not any(wanted[k] for k in own):
                continue
            p = softmax([row[k] for k in own])
            q = [(1 - smoothing) * wanted[k] + smoothing / len(own) for k in own]
            w = [1.0 if weights is None else weights[k] for k in own]
            cells.append(-sum(a * b * log(c) for a, b, c in zip(w, q, p, strict=True)))
        losses.append(sum(cells) / len(cells))
    return losses


def task() -> Attributes:
    return Attributes(Network("resnet20", len(NAMES)), NAMES)


def loss_of(recipe: Recipe) -> AttributesLoss:
    return AttributesLoss(recipe, Groups.of(NAMES), LABELS.sum(dim=0), CPU)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 3.0, 0.25]])
def test_the_loss_is_its_formula_however_the_batch_is_cut(smoothing: float, weights: list[float] | None) -> None:
    loss = loss_of(Recipe(label_smoothing=smoothing, class_weights=weights))
    whole, outputs = loss.normed(Target(LABELS)), logits()
    divisor = sum(sum((weights or [1.0] * 5)[k] for k in range(5) if row[k]) / sum(row) for row in LABELS.tolist())
    assert loss(outputs, whole, 6).item() == pytest.approx(sum(twin(outputs, LABELS, smoothing, weights)) / divisor)
    parts = [loss(outputs[p], whole.part(p), 6) for p in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(parts[0] + parts[1], loss(outputs, whole, 6))


def test_two_images_in_one_weigh_what_is_known_of_each() -> None:
    loss, outputs, other = loss_of(Recipe(mixup=0.2)), logits(), LABELS.flip(0)
    target = loss.normed(Target(LABELS, other, 0.7))
    expected = 0.7 * sum(twin(outputs, LABELS)) / 6 + 0.3 * sum(twin(outputs, other)) / 6
    assert loss(outputs, target, 6).item() == pytest.approx(expected)


def test_balanced_weights_are_of_each_attribute_by_itself() -> None:
    weights = loss_of(Recipe(class_weights="balanced")).weights
    assert weights is not None
    # Five sizes: one large, two small, two medium; five colours: three red, two blue.
    assert weights.tolist() == pytest.approx([5 / 3, 5 / 6, 5 / 6, 5 / 6, 5 / 4])


def test_a_teacher_has_an_answer_for_every_attribute() -> None:
    recipe = Recipe(distillation=Distillation(teacher="ckpt_t", temperature=2.0, weight=0.25))
    loss, outputs, teacher = loss_of(recipe), logits(), logits().flip(0)
    soft = task().softened(teacher / 2)
    for own in OUTPUTS.values():
        torch.testing.assert_close(soft[:, own].sum(dim=1), torch.ones(6))
    divergence = 0.0
    for student, known in zip(outputs.double().tolist(), teacher.double().tolist(), strict=True):
        for own in OUTPUTS.values():
            p, q = softmax([known[k] / 2 for k in own]), softmax([student[k] / 2 for k in own])
            divergence += sum(a * log(a / b) for a, b in zip(p, q, strict=True)) / len(OUTPUTS)
    expected = 0.75 * sum(twin(outputs, LABELS)) / 6 + 0.25 * 4 * divergence / 6
    assert loss(outputs, loss.normed(Target(LABELS, soft=soft)), 6).item() == pytest.approx(expected)


def test_gradients_reach_no_attribute_that_is_not_known() -> None:
    outputs = logits().requires_grad_()
    loss = loss_of(Recipe(label_smoothing=0.1))
    loss(outputs, loss.normed(Target(LABELS)), 6).backward()
    assert outputs.grad is not None
    assert bool(outputs.grad.isfinite().all())
    assert outputs.grad[2, OUTPUTS["colour"]].tolist() == [0.0, 0.0]
    assert outputs.grad[3, OUTPUTS["size"]].tolist() == [0.0, 0.0, 0.0]
    assert bool((outputs.grad[0] != 0).all())


def test_the_score_counts_what_is_known() -> None:
    made, outputs = task(), logits()
    kept = made.outputs(outputs, LABELS)
    assert kept.losses.tolist() == pytest.approx(twin(outputs, LABELS))
    score = made.score(kept.answers, LABELS)
    assert score.attributes is not None
    accuracies, rights = [], torch.zeros(6)
    for name, own in OUTPUTS.items():
        known = LABELS[:, own].bool().any(dim=1)
        right = outputs[:, own].argmax(dim=1) == LABELS[:, own].int().argmax(dim=1)
        one, p = score.attributes[name], outputs[:, own].double().softmax(dim=1)
        assert one.images == known.sum()
        assert one.accuracy == right[known].float().mean()
        assert one.loss == pytest.approx(-(p * LABELS[:, own]).sum(dim=1)[known].log().mean().item())
        accuracies.append(right[known].double().mean().item())
        rights += right * known / LABELS.sum(dim=1)
    assert score.accuracy == pytest.approx(sum(accuracies) / 2)
    assert score.loss == pytest.approx(sum(twin(outputs, LABELS)) / 6)
    assert score.loss == pytest.approx(made.score(kept.answers, LABELS, kept.losses).loss)
    assert made.mean_loss(outputs, LABELS).item() == pytest.approx(score.loss, rel=1e-5)
    assert loss_of(Recipe()).correct(outputs, Target(LABELS)).item() == pytest.approx(rights.sum().item())
    assert made.per_image(kept, LABELS, "accuracy").tolist() == pytest.approx((1 - rights).tolist())
    colour = kept.answers[3, OUTPUTS["colour"]]
    assert made.per_image(kept, LABELS, "brier")[3].item() == pytest.approx(2 * colour[0].item() ** 2)
    assert score.ece is not None
    assert score.temperature is None
    assert made.chance(LABELS) == pytest.approx((2 / 5 + 3 / 5) / 2)
    assert made.strata(LABELS).tolist() == [5, 2, 1, 0, 4, 3]


def test_an_attribute_that_is_known_of_no_image_counts_nowhere() -> None:
    made, labels = task(), LABELS.clone()
    labels[:, OUTPUTS["colour"]], labels[3, 0] = 0, 1
    score = made.score(made.outputs(logits(), labels).answers, labels)
    assert score.attributes is not None
    assert score.attributes["colour"].model_dump() == {"images": 0, "accuracy": None, "loss": None}
    assert score.accuracy == score.attributes["size"].accuracy
    assert made.chance(labels) == pytest.approx(2 / 6)


LEARNS = METHODS.validate_python(
    {"type": "cyclic_swa", "cycles": 2, "high": {"lr": 0.025, "epochs": 5}, "low": {"lr": 0.0025, "epochs": 2}}
    | {"pull": 0.0, "control_lr": 0.05, "probe_rate": False}
)


@pytest.mark.long
def test_a_job_learns_three_attributes_of_digits(tmp_path: Path) -> None:
    job = make_attribute_job(tmp_path, LEARNS, train=400, val=100)
    recorder = Recorder()
    outcome = run(job, recorder)
    scores = outcome.result.metrics
    assert outcome.result.verdict == "better"
    found = scores.averaged.attributes
    assert found is not None
    assert list(found) == list(ATTRIBUTES)
    assert found["parity"].images == 100 > found["size"].images > found["ink"].images > 0
    assert all(one.accuracy is not None and one.accuracy > 0.75 for one in found.values())
    assert all(point.accuracy is not None for point in recorder.points)
    with safe_open(outcome.weights, framework="pt") as file:
        header = file.metadata()
    assert json.loads(header["wbar.classes"]) == CLASSES
    assert json.loads(header["wbar.attributes"]) == {"parity": [0, 1], "size": [2, 3, 4], "ink": [5, 6]}
    model = AveragedModel(outcome.weights)
    with safe_open(job.dataset, framework="pt") as file:
        images, labels = file.get_tensor("val.images"), file.get_tensor("val.labels")
    predicted = torch.from_numpy(model.predict((images.float() / 255).expand(-1, 3, -1, -1).numpy()))
    for name, own in model.attributes.items():
        known = labels[:, own].bool().any(dim=1)
        right = predicted[:, own].argmax(dim=1) == labels[:, own].int().argmax(dim=1)
        assert right[known].float().mean().item() == pytest.approx(found[name].accuracy, abs=0.011)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        (
            METHOD.model_dump() | {"average": "window"},
            {"mixup": 0.5, "cutmix": 1.0, "label_smoothing": 0.1, "class_weights": "balanced"},
        ),
        ({"type": "auto", "epochs": 2, "lr": 0.05, "control_lr": 0.05, "control": True, "select_by": "accuracy"}, {}),
    ],
)
def test_a_death_after_any_step_changes_nothing(
    tmp_path: Path, method: dict[str, object], recipe: dict[str, object]
) -> None:
    def job(name: str) -> LocalJob:
        changes = {f"recipe_{option}": value for option, value in recipe.items()}
        made = make_attribute_job(tmp_path / name, METHODS.validate_python(method), **changes)  # type: ignore[arg-type]
        return made.changed(save_every_seconds=0.0)

    whole = run(job("whole"), Recorder())
    for step in (1, 5):
        again = job(f"killed-{step}")
        with pytest.raises(KilledHere):
            run(again, Recorder(die_at=step))
        resumed = run(again.changed(resume=state_files.latest(again.scratch)), Recorder())
        assert resumed.weights.read_bytes() == whole.weights.read_bytes()
        assert resumed.result == whole.result


def test_the_ensemble_is_the_mean_of_probabilities_in_the_order_of_the_outputs(tmp_path: Path) -> None:
    order = list(reversed(CLASSES))
    job, told = make_attribute_job(tmp_path, train=40, val=20).changed(classes=tuple(order)), Recorder()
    metrics = run(job, told).result.metrics
    with safe_open(job.dataset, framework="pt") as file:
        images, labels = file.get_tensor("val.images"), file.get_tensor("val.labels").flip(1)
    pixels = (images.float() / 255).expand(-1, 3, -1, -1).numpy()
    made = Attributes(job.spec.network, order)
    members = [
        made.softened(torch.from_numpy(AveragedModel(path).predict(pixels)).double())
        for path in told.snapshots.values()
    ]
    assert metrics.ensemble is not None
    assert metrics.ensemble.loss == pytest.approx(made.score(torch.stack(members).mean(dim=0), labels).loss, rel=1e-3)
    assert metrics.averaged.attributes is not None
    assert list(metrics.averaged.attributes) == list(reversed(ATTRIBUTES))


def test_a_soup_of_attributes(tmp_path: Path) -> None:
    job = make_attribute_job(tmp_path, Soup(type="soup", checkpoints=["ckpt_a", "ckpt_b"]), train=40, val=20)
    ingredients = []
    for name in "ab":
        torch.manual_seed(ord(name))
        write_safetensors(job.workspace.input(name), initialized(job.spec.network).state_dict(), {})
        ingredients.append(
            StoredWeights(id=f"ckpt_{name}", sha256=name * 64, blob=name, prefix="", network=job.spec.network)
        )
    result = run(job.changed(ingredients=tuple(ingredients)), Recorder()).result
    assert result.metrics.averaged.attributes is not None
    assert set(result.metrics.averaged.attributes) == set(ATTRIBUTES)


@pytest.mark.long
def test_what_is_measured_of_every_task_is_measured_of_attributes(tmp_path: Path) -> None:
    job = make_attribute_job(tmp_path, train=40, val=20, recipe_gradient_penalty=0.01, recipe_precision="bfloat16")
    result = run(job.changed(flatness=True, swag=2), Recorder()).result
    assert result.metrics.swag is not None
    assert result.metrics.swag.attributes is not None
    assert result.flatness is not None
    assert all(value > 0 for value in result.flatness.sharpness.values())
    assert all(loss is not None for loss in result.flatness.interpolation.val_loss)


SLOW = METHOD.model_copy(update={"high": HighPhase(lr=0.002), "low": LowPhase(lr=0.0002), "cycles": 1})


@pytest.mark.long
def test_two_ranks_train_and_score_as_one(tmp_path: Path) -> None:
    """Weights of categories, so that the divisor is the whole batch's; a network without BatchNorm and without dropout."""

    def job(name: str, **changes: object) -> LocalJob:
        sizes = {"recipe_image_size": (24, 24), "recipe_batch_size": 10, "recipe_dropout": 0.0}
        made = make_attribute_job(
            tmp_path / name,
            SLOW,
            train=50,
            val=30,
            recipe_class_weights="balanced",
            recipe_mixup=0.5,
            **sizes,
            **changes,
        )
        network = Network("squeezenet1_1", len(CLASSES))
        torch.manual_seed(5)
        write_safetensors(made.start, initialized(network).state_dict(), {})
        start = made.spec.start.model_copy(update={"network": network})
        return made.changed(network=network, start=start, threads=2)

    alone, together = Recorder(), Recorder()
    one = run(job("one"), alone)
    two = run(job("two", recipe_devices=2, recipe_accumulate=2), together)
    for shared, single in zip(together.points, alone.points, strict=True):
        assert shared.loss == pytest.approx(single.loss, rel=1e-5)
        assert shared.accuracy == pytest.approx(single.accuracy, rel=1e-5)
        assert shared.grad_norm == pytest.approx(single.grad_norm, rel=1e-4)
    # The start's evaluation is the same work in shares: the same numbers.
    assert two.result.metrics.start.attributes == one.result.metrics.start.attributes
    assert two.result.metrics.averaged.loss == pytest.approx(one.result.metrics.averaged.loss, rel=1e-4)


def test_a_teacher_of_attributes(tmp_path: Path) -> None:
    method = METHOD.model_copy(update={"cycles": 1, "pull": 0.0})
    distilled = Distillation(teacher="ckpt_start", temperature=2.0, weight=1.0)
    still = Optimizer(name="sgd", weight_decay=0)
    changes = {"recipe_distillation": distilled, "recipe_batch_norm": "frozen", "recipe_optimizer": still}
    job, told = make_attribute_job(tmp_path, method, train=40, val=20, **changes), Recorder()  # type: ignore[arg-type]
    result = run(job.changed(teachers=(job.spec.start,)), told).result
    # The start is its own teacher, and with frozen statistics the same network: there is nothing to learn.
    assert told.points[0].loss == pytest.approx(0, abs=1e-6)
    assert result.metrics.averaged.loss == pytest.approx(result.metrics.start.loss, rel=1e-3)
