"""What the pull λ‖w̄ − w‖² adds to a training step: by autograd, in place on the gradients, or folded into weight decay.

The step is a small one (ResNet-18, 8 images of 64 × 64), where what is paid per parameter weighs most: in a larger step the
share is smaller still. Every variant trains its own copy of the same network on the same batch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import models

from benchmarks.averaging.alternate import Turn, alternate, memory, nbytes, part, threads, timed_row
from benchmarks.table import Findings, Row
from wbar_averaging import add_folded_pull_gradient, add_pull_gradient, fold_pull

STRENGTH = 0.01
ALONE_GOAL, STEP_GOAL = 0.15, 1.03
NONE, IN_PLACE, FOLDED = "plain step", "step with the pull in place", "step with the pull folded"
AUTOGRAD = "step with the term in its loss"
PULLS = (NONE, IN_PLACE, FOLDED, AUTOGRAD)
ALONE = "add_pull_gradient"
ALONE_FOLDED = "add_folded_pull_gradient"
ALONE_AUTOGRAD = "the term's own forward and backward"


class Training:
    """One network in training, with one way to pull it toward a fixed mean near its start."""

    def __init__(self, pull: str, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.pull = pull
        self.model = models.resnet18(weights=None, num_classes=10).to(dtype)
        self.weights = list(self.model.parameters())
        self.mean = [weight.detach() + 0.01 * torch.randn_like(weight) for weight in self.weights]
        self.optimizer = torch.optim.SGD(self.weights, lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.images = torch.randn(8, 3, 64, 64, dtype=dtype)
        self.labels = torch.arange(8)

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.images), self.labels)
        if self.pull == AUTOGRAD:
            loss = loss + pull_term(self.weights, self.mean)
        loss.backward()
        if self.pull == IN_PLACE:
            add_pull_gradient(self.weights, self.mean, STRENGTH)
        elif self.pull == FOLDED:
            add_folded_pull_gradient(self.weights, self.mean, STRENGTH)
        self.optimizer.step()


def pull_term(weights: list[Tensor], mean: list[Tensor]) -> Tensor:
    """The term as it is written down: autograd keeps what it needs of every difference."""
    total = torch.zeros((), dtype=weights[0].dtype)
    for weight, anchor in zip(weights, mean, strict=True):
        total = total + (anchor - weight).square().sum()
    return STRENGTH * total


def trainings(dtype: torch.dtype = torch.float32) -> dict[str, Training]:
    """One of each; the folded one's optimizer decays its weights by the pull's share too."""
    found = {pull: Training(pull, dtype) for pull in PULLS}
    fold_pull(found[FOLDED].optimizer, STRENGTH)
    return found


def measure(quick: bool) -> Findings:
    found = Findings()
    with threads(1):
        found.rows += _alone(5 if quick else 60)
    for number in (1, 2):
        with threads(number):
            found.rows += _steps(number, 5 if quick else 150)
    found.rows += _temporaries()
    found.rows += _same_step()
    found.notes.append(
        "pull: ResNet-18, SGD with momentum 0.9 and weight decay 5e-4, as torch makes it (one loop over the parameters); "
        "alone: one thread, gradients are there already and are added to"
    )
    return found


def _alone(rounds: int) -> list[Row]:
    training = Training(NONE)
    training.step()
    weights, mean = training.weights, training.mean
    work: dict[str, Callable[[], object]] = {
        ALONE: lambda: add_pull_gradient(weights, mean, STRENGTH),
        ALONE_AUTOGRAD: lambda: pull_term(weights, mean).backward(),
    }
    work[ALONE_FOLDED] = lambda: add_folded_pull_gradient(weights, mean, STRENGTH)

    def clear() -> None:
        training.optimizer.zero_grad(set_to_none=False)

    times = alternate({name: Turn(one, clear) for name, one in work.items()}, rounds)
    ours = timed_row("pull alone", times, ALONE, ALONE_AUTOGRAD, ALONE_GOAL)
    return [ours, timed_row("pull alone", times, ALONE_FOLDED, ALONE_AUTOGRAD)]


def _steps(number: int, rounds: int) -> list[Row]:
    times = alternate({pull: Turn(training.step) for pull, training in trainings().items()}, rounds)
    what = f"{number} thread{'s' if number > 1 else ''}"
    rows = [timed_row(what, times, pull, NONE, STEP_GOAL) for pull in (IN_PLACE, FOLDED)]
    return [*rows, timed_row(what, times, AUTOGRAD, NONE)]


def _temporaries() -> list[Row]:
    training = Training(NONE)
    training.step()
    weights, mean = training.weights, training.mean
    whole = nbytes(weights)
    peer = memory(lambda: pull_term(weights, mean).backward())
    ways: dict[str, Callable[[], object]] = {ALONE: lambda: add_pull_gradient(weights, mean, STRENGTH)}
    ways[ALONE_FOLDED] = lambda: add_folded_pull_gradient(weights, mean, STRENGTH)
    rows = []
    for name, work in ways.items():
        taken = memory(work)
        rows.append(
            Row(
                f"temporaries of {name} ({whole / 2**20:.0f} MiB of weights)",
                f"{taken.peak} bytes",
                f"{ALONE_AUTOGRAD}: {peer.beside(whole)}",
                f"{taken.peak / whole:.4f} of the model",
                "0 bytes",
                taken.peak == 0,
            )
        )
    return rows


def _same_step() -> list[Row]:
    """One step in float64: how far a variant lands from autograd's, as a part of what the pull moved."""
    found = trainings(torch.float64)
    for training in found.values():
        training.step()
    ends = {pull: torch.cat([w.detach().flatten() for w in training.weights]) for pull, training in found.items()}
    moved = torch.linalg.vector_norm(ends[AUTOGRAD] - ends[NONE])
    rows = []
    for pull in (IN_PLACE, FOLDED):
        if pull in ends:
            off = float(torch.linalg.vector_norm(ends[pull] - ends[AUTOGRAD]) / moved)
            rows.append(Row(f"{pull}, float64", "lands where autograd's lands", "autograd", f"off by {part(off)}"))
    return rows
