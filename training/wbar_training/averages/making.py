"""Which average a method has."""

from torch import nn

from wbar.method import AutoMethod, CyclicSwa, Ema, Lawa, Plain, Swa, Training
from wbar.schedule import Schedule
from wbar_averaging import ExponentialMean, WindowMean
from wbar_training.averages.average import Average, UniformAverage, empty_like
from wbar_training.averages.choice import ALPHAS
from wbar_training.averages.dense import DenseAverage
from wbar_training.averages.selecting import GreedyAverage, WindowAverage
from wbar_training.averages.walk import WalkAverage

SEGMENTS = 6  # of a `window` over snapshots


def make_average(method: Training, schedule: Schedule, model: nn.Module) -> Average:
    """Make the average of a method.

    model: fixes names and shapes; it is the start if the start is to be counted.
    """
    if isinstance(method, Ema):
        # Every step: in float32, and not searched for NaN, which the loss would show.
        return UniformAverage(ExponentialMean(model, method.decay, method.decay_warmup, check_finite=False))
    if isinstance(method, Lawa | Plain):
        return UniformAverage(WindowMean(model, method.window if isinstance(method, Lawa) else 1))
    count = len(schedule.snapshots)
    if isinstance(method, AutoMethod):
        visits = sum(map(schedule.visits, range(schedule.total_steps)))
        return WalkAverage(model, count, visits, lines=method.interpolate is None)
    assert isinstance(method, CyclicSwa | Swa)
    if isinstance(method, Swa) and method.average == "swad":
        return DenseAverage(model, method.swad, count)
    if method.average == "greedy":
        return GreedyAverage(model, count)
    if method.average == "window":
        segments = min(SEGMENTS, count)
        alphas = ALPHAS if method.interpolate is None else ()  # the job draws the line itself, to what is chosen here
        return WindowAverage(model, segments, lambda snapshot: (snapshot - 1) * segments // count, alphas)
    mean = empty_like(model)
    if isinstance(method, CyclicSwa) and method.include_start:
        mean.update(model)
    return UniformAverage(mean)
