"""SWALR is torch's, and anneals as those who take it from here expect: by the count of its steps, from the rates it finds."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from wbar_averaging import SWALR


def optimizer_at(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def stepped(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
    """The first group's rate after each step."""
    rates = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(rates_of(optimizer)[0])
    return rates


def test_is_the_class_that_torchs_users_test_for() -> None:
    assert isinstance(SWALR(optimizer_at(0.1), 0.01), swa_utils.SWALR)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("epochs", [0, 1, 5])
def test_anneals_each_group_to_its_rate_and_stays(strategy: Any, epochs: int) -> None:
    optimizer = optimizer_at(0.3, 0.1)
    scheduler = SWALR(optimizer, [0.05, 0.02], epochs, strategy)  # type: ignore[arg-type]  # torch's hint has no list
    assert rates_of(optimizer) == ([0.3, 0.1] if epochs else [0.05, 0.02])
    for step in range(1, 9):
        optimizer.step()
        scheduler.step()
        share = min(1.0, step / epochs) if epochs else 1.0
        share = share if strategy == "linear" else (1 - math.cos(math.pi * share)) / 2
        expected = [goal * share + start * (1 - share) for start, goal in ((0.3, 0.05), (0.1, 0.02))]
        assert rates_of(optimizer) == pytest.approx(expected)


def test_anneals_from_where_another_scheduler_left_the_rate() -> None:
    optimizer = optimizer_at(1.0)
    before = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda _epoch: 0.9)
    scheduler = SWALR(optimizer, swa_lr=0.05, anneal_epochs=4, anneal_strategy="linear")
    stepped(optimizer, before, 5)
    start = 0.9**5
    expected = [start + (0.05 - start) * share for share in (0.25, 0.5, 0.75, 1.0, 1.0)]
    assert stepped(optimizer, scheduler, 5) == pytest.approx(expected)


def test_counts_its_own_steps_where_it_is_made_with_a_late_epoch() -> None:
    optimizer = optimizer_at(0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    scheduler = SWALR(optimizer, swa_lr=0.01, anneal_epochs=4, last_epoch=100)
    assert rates_of(optimizer) == [0.1]
    assert stepped(optimizer, scheduler, 4) == pytest.approx(
        [0.1 - 0.09 * (1 - math.cos(math.pi * u)) / 2 for u in (0.25, 0.5, 0.75, 1)]
    )


def test_keeps_a_change_that_was_made_by_hand() -> None:
    plain, changed = optimizer_at(0.1), optimizer_at(0.1)
    schedulers = [SWALR(each, 0.01, 10, "linear") for each in (plain, changed)]
    for optimizer, scheduler in zip((plain, changed), schedulers, strict=True):
        stepped(optimizer, scheduler, 3)
    changed.param_groups[0]["lr"] = 0.05
    assert stepped(plain, schedulers[0], 1) == pytest.approx([0.064])
    start = (0.05 - 0.3 * 0.01) / 0.7  # where a line through 0.05 after 3 of 10 steps begins
    assert stepped(changed, schedulers[1], 1) == pytest.approx([0.6 * start + 0.4 * 0.01])


def test_a_tensor_rate_is_copied() -> None:
    rate, goal = torch.tensor(0.1), torch.tensor(0.01)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = SWALR(optimizer, goal, anneal_epochs=2)  # type: ignore[arg-type]  # torch's hint has no tensor
    seen = [scheduler.get_last_lr()[0]]
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        seen.append(scheduler.get_last_lr()[0])
    assert [float(value) for value in seen] == pytest.approx([0.1, 0.055, 0.01, 0.01])
    optimizer.param_groups[0]["lr"].fill_(7.0)
    assert [float(value) for value in seen[:3]] == pytest.approx([0.1, 0.055, 0.01])
    assert float(goal) == pytest.approx(0.01)


def test_takes_a_saved_state_of_torchs() -> None:
    optimizer, again = optimizer_at(0.1), optimizer_at(1.0)
    scheduler = swa_utils.SWALR(optimizer, 0.01, 5)
    stepped(optimizer, scheduler, 2)
    state = pickle.loads(pickle.dumps(scheduler.state_dict()))
    resumed = SWALR(again, 0.5, 3, "linear")
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(state)
    assert stepped(again, resumed, 5) == stepped(optimizer, scheduler, 5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"swa_lr": [0.1, 0.2]}, "swa_lr must have the same length"),
        ({"anneal_strategy": "exponential"}, "anneal_strategy must b[ey] one of 'cos' or 'linear'"),
        ({"anneal_epochs": -1}, "anneal_epochs must be equal or greater than 0"),
        ({"anneal_epochs": 2.5}, "anneal_epochs must be equal or greater than 0"),
    ],
)
def test_refuses_what_makes_no_schedule(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SWALR(optimizer_at(0.1), **{"swa_lr": 0.1, **wrong})
