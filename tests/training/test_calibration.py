"""Temperatures beside those of a search over a grid, and what is reported with them."""

import pytest
import torch
from torch import Tensor

from wbar.scores import Score
from wbar_training.calibration import calibrated, fit_temperature, loss_at

PLAIN = Score(accuracy=0.5, loss=1.0, ece=0.1)


def overconfident(images: int, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs that are `scale` times surer than the labels drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(images, 5, dtype=torch.float64, generator=generator)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator).squeeze(1)
    return torch.softmax(scale * logits, 1).float(), labels


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0, 8.0])
def test_the_temperature_is_that_of_a_search(scale: float) -> None:
    probabilities, labels = overconfident(2000, scale)
    found = fit_temperature(probabilities, labels)
    places = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    logs = probabilities.double().log()
    losses = [
        -torch.log_softmax(logs / t, 1).gather(1, labels[:, None]).sum().item() + t.log().item() ** 2 / 2
        for t in places.exp()
    ]
    assert found == pytest.approx(places[losses.index(min(losses))].exp().item(), rel=2e-3)
    assert found == pytest.approx(scale, rel=0.1)
    assert loss_at(found, probabilities, labels) <= loss_at(1.0, probabilities, labels)


def test_the_loss_at_one_is_the_loss() -> None:
    probabilities, labels = overconfident(50, 1.0)
    expected = -probabilities.double().gather(1, labels[:, None]).log().mean().item()
    assert loss_at(1.0, probabilities, labels) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("images", [1, 3, 100])
def test_a_temperature_is_finite_where_every_image_is_right_or_wrong(images: int) -> None:
    sure = torch.tensor([[1.0, 0.0]]).repeat(images, 1)
    right, wrong = torch.zeros(images, dtype=torch.int64), torch.ones(images, dtype=torch.int64)
    assert 0.01 < fit_temperature(sure, right) <= 1.0
    assert 1.0 < fit_temperature(sure, wrong) < 1e6


def test_it_is_fitted_on_other_images_where_there_are_any() -> None:
    report, fitted_on = overconfident(300, 3.0), overconfident(500, 3.0, seed=1)
    score = calibrated(PLAIN, *report, fitted_on)
    assert score.temperature == fit_temperature(*fitted_on)
    assert score.nll_calibrated == loss_at(score.temperature, *report)
    assert (score.loss, score.accuracy, score.ece) == (PLAIN.loss, PLAIN.accuracy, PLAIN.ece)


def test_else_either_half_at_the_temperature_of_the_other() -> None:
    probabilities, labels = overconfident(301, 3.0)
    score = calibrated(PLAIN, probabilities, labels, None)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    t_even, t_odd = (fit_temperature(probabilities[half], labels[half]) for half in (even, odd))
    losses = [loss_at(t, probabilities[half], labels[half]) for t, half in ((t_odd, even), (t_even, odd))]
    assert score.nll_calibrated == pytest.approx((151 * losses[0] + 150 * losses[1]) / 301, rel=1e-12)
    assert score.temperature == fit_temperature(probabilities, labels)
    assert calibrated(PLAIN, probabilities[:1], labels[:1], None) == PLAIN


def test_several_labels_have_one_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(800, 3, dtype=torch.float64, generator=generator)
    labels = (torch.rand(800, 3, generator=generator) < logits.sigmoid()).long()
    probabilities = (4 * logits).sigmoid().float()
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(4.0, rel=0.15)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(4 * logits / found, labels.double()).item()
    assert loss_at(found, probabilities, labels) == pytest.approx(expected, rel=1e-5)
