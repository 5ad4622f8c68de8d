"""Weights for checkpoints of one run in their order, shaped like the decay of the rate that their mean takes the place of.

Between checkpoint j − 1 and j the run moved by u_j. A mean Σ c_j·w_j with Σ c_j = 1 has moved by Σ_j (c_j + … + c_n−1)·u_j:
as if each u_j had been made smaller by the sum of the weights from j on. With n checkpoints and a decay f from f(0) = 1 to
f(1) = 0, the weights whose sums are f(j/n) are

    c_j = f(j/n) − f((j + 1)/n),  j = 0 … n − 1        (Tian et al. 2025, "WSM: decay-free learning rate schedule")

The updates that a smaller rate would have made from other places are not there: it is an approximation of first order.
An exponential mean over checkpoints, m ← d·m + (1 − d)·w, is c_j = (1 − d)·d^(n−1−j), and d^(n−1) for the first.
"""

from collections.abc import Callable, Sequence
from math import cos, fsum, pi, sqrt

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + cos(pi * t)) / 2,
    "1-sqrt": lambda t: 1 - sqrt(t),
}
EMA = "ema:"


def decay_weights(shape: str, count: int) -> list[float]:
    """Return one weight per checkpoint, oldest first; their sum is 1.

    shape: `linear`, which is the equal mean, `cosine`, `1-sqrt`, or `ema:D` with a decay D in [0, 1).
    count: of the checkpoints, at least 1.

    Raises ValueError, saying which shapes there are.
    """
    if count < 1:
        raise ValueError(f"there are {count} checkpoints to weigh: at least 1 is needed")
    if shape.startswith(EMA):
        return _exponential(shape.removeprefix(EMA), count)
    if shape not in DECAYS:
        raise ValueError(f"{shape!r} is no shape of weights: {', '.join(DECAYS)} or ema:D, as in ema:0.9, are")
    left = [DECAYS[shape](number / count) for number in range(count)] + [0.0]
    return [left[number] - left[number + 1] for number in range(count)]


def _exponential(text: str, count: int) -> list[float]:
    try:
        decay = float(text)
    except ValueError:
        decay = -1.0
    if not 0 <= decay < 1:
        raise ValueError(f"{EMA}{text}: a decay in [0, 1) was expected, as in ema:0.9")
    later = [(1 - decay) * decay ** (count - 1 - number) for number in range(1, count)]
    return [decay ** (count - 1), *later]


def weight_sum(weights: Sequence[float]) -> float:
    """Return the sum of finite weights. Raises ValueError where it is not above 0, or what floats leave of nothing."""
    largest = max(map(abs, weights), default=0.0) or 1.0
    parts = [weight / largest for weight in weights]  # whose sums are finite
    total = fsum(parts)
    if total <= 1e-12 * fsum(map(abs, parts)):
        raise ValueError(f"the weights must have a sum above 0, not {total * largest:g}")
    try:
        return fsum(weights)
    except OverflowError:  # on the way to it
        return total * largest
