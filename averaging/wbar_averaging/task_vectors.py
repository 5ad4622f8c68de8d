"""Task vectors τᵢ = wᵢ − w₀ added to a base w₀, in float64; the first checkpoint of the plan is the base.

    task arithmetic   w₀ + Σ λᵢτᵢ                                                         (Ilharco et al. 2023)
    DARE              w₀ + Σ λᵢ mᵢ∘τᵢ / (1 − p),  mᵢ = 1 with probability 1 − p, else 0      (Yu et al. 2024)
    TIES              w₀ + λτ̄, with τ̄ the mean of the trimmed τᵢ whose sign has the larger sum (Yadav et al. 2023)

Task arithmetic with one checkpoint and λ = α is WiSE-FT's line (1 − α)·w₀ + α·w₁ (Wortsman et al. 2022); above α = ½ it is
computed as w₁ − (1 − α)(w₁ − w₀), so that its ends are the two checkpoints, to the bit. Where a checkpoint equals the base
nothing is added, to the bit.

TIES trims each τᵢ, over all its tensors together, to the share `density` of largest magnitude; equal magnitudes at the border
all stay. Which magnitude that is, a few passes over two files find without holding either: magnitudes that are not negative
are ordered as their bits are, so the border's bits are found sixteen at a time, by counting. Then, number by number, the sign
whose magnitudes have the larger sum is elected, and τ̄ is the mean of those that have it; 0 where both sums are equal.

DARE's draws are a function of the seed, the checkpoint's place among the checkpoints, the tensor's name and the number's
place in it: the same however a checkpoint is cut into files and pieces. Tied tensors of a PyTorch file have the draws of the
first of them, so that they stay equal.
"""

import math
from collections.abc import Sequence

import numpy as np

from wbar_averaging import streamed_mean
from wbar_averaging.float_formats import Array, all_finite
from wbar_averaging.streamed_mean import FLOAT, Combination, NotFinite, Plan, Progress

WIDE = np.dtype(np.float64)
DIGITS = ((47, 16), (31, 16), (15, 16), (0, 15))  # shift and width of each, of the 63 bits of a magnitude
EPSILON = 2.0**-52
DRAWS_AT_ONCE = 4  # of Philox: its counter counts blocks of so many


def share_of(share: float, numbers: int) -> int:
    """Return the least whole number that is the share of `numbers` or more, at least 1; 0.07 of a hundred are 7.

    The float beside a decimal fraction must not make one more of it.
    """
    exact = share * numbers
    nearest = round(exact)
    return max(1, nearest if abs(exact - nearest) <= 4 * EPSILON * exact else math.ceil(exact))


class TaskArithmetic(Combination):
    """The base and all task vectors. scales: λ of each checkpoint but the base."""

    def __init__(self, plan: Plan, scales: Sequence[float], progress: Progress | None) -> None:
        super().__init__(plan, WIDE, progress)
        self._scales = list(scales)

    def _combine(self, index: int, begin: int, total: Array) -> None:
        term, first = self._term[: len(total)], self._first[: len(total)]
        origin, others = self._origin_and_others()
        np.copyto(first, self._read(origin, index, begin, len(total)))
        total[:] = 0
        for number, scale in others:
            np.subtract(first, self._read(number, index, begin, len(total)), out=term)
            self._drop(number, index, begin, term)
            np.multiply(term, scale, out=term)
            np.add(total, term, out=total)
        np.subtract(first, total, out=total)  # -0 less nothing is -0; -0 and nothing would be 0

    def _origin_and_others(self) -> tuple[int, list[tuple[int, float]]]:
        """Return the number of the checkpoint that differences are taken from, and those of the others with their scales."""
        if len(self._scales) == 1 and self._scales[0] > 0.5:
            return 1, [(0, 1 - self._scales[0])]
        return 0, list(enumerate(self._scales, start=1))

    def _drop(self, number: int, index: int, begin: int, term: Array) -> None:
        """Nothing is dropped."""


class Dare(TaskArithmetic):
    """The base and all task vectors, a share `drop` of whose numbers is dropped at random, and the others made larger."""

    def __init__(self, plan: Plan, scales: Sequence[float], drop: float, seed: int, progress: Progress | None) -> None:
        super().__init__(plan, [scale / (1 - drop) for scale in scales], progress)
        self._bound, self._seed = np.uint64(int(drop * 2**64)), seed

    def _origin_and_others(self) -> tuple[int, list[tuple[int, float]]]:
        return 0, list(enumerate(self._scales, start=1))  # what is dropped of a checkpoint leaves the base

    def _drop(self, number: int, index: int, begin: int, term: Array) -> None:
        import hashlib  # with OpenSSL it is megabytes that nothing else needs

        name = self._plan.names[self._plan.checkpoints[number].tied.get(index, index)]
        key = hashlib.sha256(f"{self._seed}\0{number}\0{name}".encode()).digest()[:16]
        draws = np.random.Philox(key=int.from_bytes(key, "little"))
        draws.advance(begin // DRAWS_AT_ONCE)
        skip = begin % DRAWS_AT_ONCE
        kept = draws.random_raw(skip + len(term))[skip:] >= self._bound
        np.multiply(term, kept, out=term)  # NaN · 0 is NaN: what is not finite is still found


class Ties(Combination):
    """The base and the elected mean of trimmed task vectors. Making it reads all tensors up to five times.

    Raises NotFinite.
    """

    def __init__(self, plan: Plan, scale: float, density: float, progress: Progress | None) -> None:
        super().__init__(plan, WIDE, progress)
        self._scale = scale
        self._floats = [index for index in range(len(plan.names)) if plan.kind(index) == FLOAT]
        self._numbers = sum(map(plan.elements, self._floats))
        self._kept = share_of(density, self._numbers)
        self._positive, self._negative = (np.empty(streamed_mean.PIECE, np.float64) for _ in range(2))
        self._ups, self._downs = (np.empty(streamed_mean.PIECE, np.int16) for _ in range(2))
        self._borders = [0.0] * len(plan.checkpoints)
        if self._kept < self._numbers:
            # As if every border took all passes and read the base with each: the bar then only ever jumps ahead.
            once = self._all
            self._all += len(DIGITS) * 2 * once
            with np.errstate(all="ignore"):
                self._borders[1:] = [self._border(number) for number in range(1, len(plan.checkpoints))]
            self._done = self._all - once

    def _border(self, number: int) -> float:
        """The smallest magnitude that stays of a checkpoint's task vector."""
        above, known = self._kept, 0  # how many numbers are still to be found, and the leading bits of the last of them
        for shift, width in DIGITS:
            counts = np.zeros(2**width, np.int64)
            for index in self._floats:
                for begin in range(0, self._plan.elements(index), streamed_mean.PIECE):
                    bits = self._magnitude_bits(number, index, begin)
                    leading = np.right_shift(bits, shift + width, out=self._positive.view(np.int64)[: len(bits)])
                    digits = bits[leading == known]
                    np.right_shift(digits, shift, out=digits)
                    np.bitwise_and(digits, 2**width - 1, out=digits)
                    counts += np.bincount(digits, minlength=2**width)
            downward = np.cumsum(counts[::-1])
            place = int(np.searchsorted(downward, above))
            digit = 2**width - 1 - place
            above -= int(downward[place] - counts[digit])
            known = known << width | digit
            if above == counts[digit]:  # all that begin with these bits stay
                return float(np.array([known << shift], np.int64).view(np.float64)[0])
        return float(np.array([known], np.int64).view(np.float64)[0])

    def _magnitude_bits(self, number: int, index: int, begin: int) -> Array:
        count = min(streamed_mean.PIECE, self._plan.elements(index) - begin)
        term, first = self._term[:count], self._first[:count]
        np.copyto(first, self._read(0, index, begin, count))
        np.subtract(self._read(number, index, begin, count), first, out=term)
        np.abs(term, out=term)
        if not all_finite(term):
            raise NotFinite(self._culprit(index, begin, count))
        self._advance(2 * count * self._widest(index))
        return term.view(np.int64)

    def _combine(self, index: int, begin: int, total: Array) -> None:
        count = len(total)
        term, first = self._term[:count], self._first[:count]
        positive, negative, ups, downs = (
            buffer[:count] for buffer in (self._positive, self._negative, self._ups, self._downs)
        )
        for buffer in (positive, negative, ups, downs):
            buffer[:] = 0
        np.copyto(first, self._read(0, index, begin, count))
        for number, border in enumerate(self._borders[1:], start=1):
            np.subtract(self._read(number, index, begin, count), first, out=term)
            np.multiply(term, np.abs(term, out=total) >= border, out=term)
            np.add(ups, term > 0, out=ups)
            np.add(downs, term < 0, out=downs)
            np.add(positive, np.maximum(term, 0, out=total), out=positive)
            np.subtract(negative, np.minimum(term, 0, out=total), out=negative)
        if not all_finite(positive) or not all_finite(negative):
            total[:] = np.nan  # refused with its name, though a comparison below could hide it
            return
        np.divide(positive, np.maximum(ups, 1, out=ups), out=term)
        np.divide(negative, np.maximum(downs, 1, out=downs), out=total)
        np.negative(total, out=total)
        np.copyto(total, term, where=positive > negative)
        total[positive == negative] = 0
        np.multiply(total, self._scale, out=total)
        np.subtract(0.0, total, out=total)  # never -0, so that -0 less it is -0
        np.subtract(first, total, out=total)
