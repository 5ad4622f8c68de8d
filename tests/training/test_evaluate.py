"""Scores against their formulas, and the verdict against its definition."""

import math

import pytest
import torch

from wbar_training.evaluate import calibration_error, even_slices, verdict
from wbar_training.tasks.classification import score


def test_score_by_hand() -> None:
    probabilities = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]])
    scores = score(probabilities, torch.tensor([0, 0, 0]))
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.loss == pytest.approx(-(math.log(0.7) + math.log(0.4) + math.log(0.9)) / 3, rel=1e-6)
    assert scores.ece == pytest.approx((0.3 + 0.6 + 0.1) / 3, rel=1e-6)


def test_calibration_error_of_one_bin_is_the_gap_of_its_means() -> None:
    confidence = torch.tensor([0.91, 0.92, 0.93, 0.92])
    correct = torch.tensor([True, True, False, False])
    assert calibration_error(confidence, correct) == pytest.approx(0.92 - 0.5, rel=1e-6)


def test_a_confidence_of_one_falls_into_the_last_bin() -> None:
    assert calibration_error(torch.ones(4), torch.ones(4, dtype=torch.bool)) == 0.0


@pytest.mark.parametrize(("shift", "expected"), [(-0.5, "better"), (0.5, "worse"), (0.0, "same")])
def test_verdict(shift: float, expected: str) -> None:
    torch.manual_seed(0)
    start = torch.rand(400, dtype=torch.float64)
    noise = torch.randn(400, dtype=torch.float64)
    assert verdict(start + (noise - noise.mean()) + shift, start) == expected


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (129, 128), (1000, 7)])
def test_even_slices_cover_everything_once_without_a_tiny_last_one(count: int, most: int) -> None:
    lengths = [part.stop - part.start for part in even_slices(count, most)]
    assert sum(lengths) == count
    assert max(lengths) <= most
    assert max(lengths) - min(lengths) <= 1


def test_one_image_tells_nothing() -> None:
    assert verdict(torch.tensor([0.1]), torch.tensor([5.0])) == "same"
