"""Every loss beside its formula, written out."""

import pytest
import torch
import torch.nn.functional as F

from wbar.recipe import Distillation, Recipe
from wbar_training.data.mixing import mix
from wbar_training.losses import Target
from wbar_training.tasks.classification import ClassLoss
from wbar_training.tasks.multilabel import LabelsLoss

CPU = torch.device("cpu")


def batch(classes: int = 5, images: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(images, classes), torch.randint(classes, (images,))


def value(recipe: Recipe, logits: torch.Tensor, target: Target, counts: torch.Tensor | None = None) -> torch.Tensor:
    kind = ClassLoss if target.labels.dim() == 1 else LabelsLoss
    loss = kind(recipe, logits.shape[1], counts, CPU)
    return loss(logits, loss.normed(target), len(logits))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 3.0, 1.0]])
def test_cross_entropy_is_torchs_smoothed_and_weighted(smoothing: float, weights: list[float] | None) -> None:
    logits, labels = batch()
    actual = value(Recipe(label_smoothing=smoothing, class_weights=weights), logits, Target(labels))
    given = None if weights is None else torch.tensor(weights)
    torch.testing.assert_close(actual, F.cross_entropy(logits, labels, weight=given, label_smoothing=smoothing))


def test_balanced_weights_are_images_over_classes_times_their_count() -> None:
    _logits, _labels = batch(classes=3)
    counts = torch.tensor([10, 30, 0])
    loss = ClassLoss(Recipe(class_weights="balanced"), 3, counts, CPU)
    assert loss.weights is not None
    torch.testing.assert_close(loss.weights, torch.tensor([40 / (2 * 10), 40 / (2 * 30), 0.0]))


def test_the_parts_of_a_batch_add_up_to_the_whole() -> None:
    logits, labels = batch()
    loss = ClassLoss(Recipe(class_weights=[1.0, 2.0, 0.5, 3.0, 1.0], label_smoothing=0.1), 5, None, CPU)
    target = loss.normed(Target(labels, labels.flip(0), 0.3))
    whole = loss(logits, target, 12)
    parts = sum(loss(logits[p], target.part(p), 12) for p in (slice(0, 5), slice(5, 6), slice(6, 12)))
    torch.testing.assert_close(whole, parts)


def test_several_labels_are_binary_cross_entropies() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.randint(2, (6, 4), dtype=torch.uint8)
    actual = value(Recipe(label_smoothing=0.2), logits, Target(labels))
    p, y = logits.sigmoid(), labels * 0.8 + 0.1
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(actual, expected)


def test_mixed_labels_weigh_both_losses_and_both_answers() -> None:
    logits, labels = batch()
    other = labels.roll(1)
    actual = value(Recipe(), logits, Target(labels, other, 0.7))
    torch.testing.assert_close(actual, 0.7 * F.cross_entropy(logits, labels) + 0.3 * F.cross_entropy(logits, other))
    right = (logits.argmax(1) == labels).float() * 0.7 + (logits.argmax(1) == other).float() * 0.3
    actual = ClassLoss(Recipe(), 5, None, CPU).correct(logits, Target(labels, other, 0.7))
    torch.testing.assert_close(actual, right.sum())


def test_distillation_is_hintons() -> None:
    logits, labels = batch()
    teacher = torch.randn(12, 5)
    recipe = Recipe(distillation=Distillation(teacher="ckpt_x", temperature=3.0, weight=0.25))
    soft = (teacher / 3).softmax(1)
    actual = value(recipe, logits, Target(labels, soft=soft))
    divergence = (soft * (soft.log() - (logits / 3).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(actual, 0.75 * F.cross_entropy(logits, labels) + 0.25 * 9 * divergence)
    same = value(recipe, teacher, Target(labels, soft=soft))
    torch.testing.assert_close(same, 0.75 * F.cross_entropy(teacher, labels))  # nothing to learn from oneself


def test_the_gradient_penalty_is_the_mean_squared_norm_of_each_images_gradient() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 5).double()
    inputs, labels = torch.randn(6, 7, dtype=torch.float64), torch.randint(5, (6,))
    given = inputs.clone().requires_grad_(True)
    loss = ClassLoss(Recipe(gradient_penalty=0.5), 5, None, CPU)
    actual = loss.with_penalty(layer(given), loss.normed(Target(labels)), 6, given)
    norms = []
    for x, y in zip(inputs, labels, strict=True):
        one = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(layer(one)[None].float(), y[None]), one)
        norms.append(gradient.square().sum())
    expected = F.cross_entropy(layer(inputs).float(), labels) + 0.5 * torch.stack(norms).mean()
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=1e-6)
    actual.backward()
    assert layer.weight.grad is not None  # the penalty has a gradient of its own


def test_mixup_blends_by_a_beta_draw_that_depends_on_the_step_alone() -> None:
    inputs, labels = torch.randn(8, 3, 6, 6), torch.arange(8)
    mixed, target = mix(Recipe(mixup=0.4), inputs, labels, seed=1, step=5)
    again, same = mix(Recipe(mixup=0.4), inputs, labels, seed=1, step=5)
    assert torch.equal(mixed, again)
    assert target.share == same.share
    assert target.other is not None
    torch.testing.assert_close(mixed, target.share * inputs + (1 - target.share) * inputs[target.other])
    shares = [mix(Recipe(mixup=0.4), inputs, labels, 1, step)[1].share for step in range(400)]
    mean, variance = torch.tensor(shares).mean().item(), torch.tensor(shares).var().item()
    assert mean == pytest.approx(0.5, abs=0.06)
    assert variance == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.15)  # of Beta(α, α)


def test_cutmix_pastes_one_box_and_weighs_by_what_is_left() -> None:
    inputs, labels = torch.randn(8, 3, 10, 12), torch.arange(8)
    seen = set()
    for step in range(40):
        mixed, target = mix(Recipe(cutmix=1.0), inputs, labels, 0, step)
        assert target.other is not None
        pasted = (mixed == inputs[target.other]) & (mixed != inputs)
        assert torch.equal(torch.where(pasted, inputs, mixed), inputs)
        image = next(i for i in range(8) if target.other[i] != i)
        assert pasted[image, 0].double().mean().item() == pytest.approx(1 - target.share)
        seen.add(round(target.share, 3))
    assert len(seen) >= 10


def test_both_take_turns() -> None:
    inputs, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    blended = 0
    for step in range(60):
        mixed, target = mix(Recipe(mixup=1.0, cutmix=1.0), inputs, labels, 0, step)
        assert target.other is not None
        blended += bool(torch.allclose(mixed, target.share * inputs + (1 - target.share) * inputs[target.other]))
    assert 15 < blended < 45
