"""Linear probing, then fine-tuning: the classifier alone is trained first, and what that leads to is the start w_0.

    features in eval mode, everything but the classifier frozen;  rate  lr·(1 + cos(πt/T))/2  over T steps

A classifier that begins at random would send large gradients into a network that was good, and distort its features before
they are of use (Kumar et al. 2022, "Fine-tuning can distort pretrained features and underperform out-of-distribution").
It takes no state of its own: interrupted, it begins again, with the same bits.
"""

from math import cos, pi

import torch
from torch import Tensor

from wbar.errors import Diverged, NothingMatches
from wbar.schedule import Schedule
from wbar_averaging import Position
from wbar_training.averages.choice import TRAINING
from wbar_training.networks.fresh_layers import head_of
from wbar_training.setup import Setup
from wbar_training.step import Stepper


def steps_of(setup: Setup, schedule: Schedule) -> int:
    """Return the number of steps that the classifier is trained for; 0: none."""
    epochs = setup.plan.recipe.head_epochs
    return max(1, round(epochs * schedule.steps_per_epoch)) if epochs else 0


def probe_head(setup: Setup, schedule: Schedule) -> dict[str, Tensor]:
    """Train the classifier of the network that is trained, and return its parameters by name, on the CPU.

    schedule: of the job, for its steps per epoch.

    Raises NothingMatches where the recipe freezes the classifier, Diverged where its weights become NaN or infinite.
    """
    model, plan, names = setup.model, setup.plan, head_of(setup.spec.network)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not names & trained:
        raise NothingMatches(f"recipe.head_epochs trains {', '.join(sorted(names))}, which recipe.freeze freezes")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names & trained)
    stepper, batches = Stepper(model, plan, setup.loss(), setup.device, None), setup.batches()
    model.eval()
    total, lr = steps_of(setup, schedule), plan.recipe.head_lr
    assert lr is not None
    batches.start(_position(step, schedule.steps_per_epoch) for step in range(total))
    for step in range(total):
        batch = batches.next()
        stepper.take(batch.inputs, batch.target, step, lr * (1 + cos(pi * step / total)) / 2, 0.0, (), False)
        setup.evaluator.tick("evaluate", int(TRAINING * batch.images) // stepper.ranks.size)
    found = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if name in names & trained}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        parameter.grad = None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise Diverged(f"the classifier became NaN or infinite in recipe.head_epochs: lower recipe.head_lr ({lr:g})")
    return found


def _position(step: int, steps_per_epoch: int) -> Position:
    epoch, within = divmod(step, steps_per_epoch)
    return Position(
        step=step,
        cycle=1,
        phase="high",
        epoch=epoch + 1,
        step_in_epoch=within,
        lr=0.0,
        ends_phase=False,
        ends_cycle=False,
    )
