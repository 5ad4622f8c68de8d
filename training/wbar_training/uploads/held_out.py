"""Images to score by, for a dataset without `val/`: a share of `train/`, drawn with a fixed seed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HELD_OUT, HELD_OUT_SEED = 0.2, 0
SHARE = f"{100 * HELD_OUT:g} %"


@dataclass(frozen=True)
class Division:
    """The indices of the images that are trained on, and of those that are held out.

    held_out: of the latter, their numbers among the images of `train/`; None where there is a `val/`.
    """

    train: list[int]
    val: list[int]
    held_out: list[int] | None

    def warnings(self, how: str = SHARE) -> list[str]:
        """Say that images were held out, where they were. how: what was drawn."""
        if self.held_out is None:
            return []
        return [
            f"there is no val/: {len(self.val)} of the images in train/ were held out ({how}, fixed seed). The start may have "
            "been trained on them, which flatters it in the comparison"
        ]


def divided(splits: Sequence[str], draw: Callable[[list[int]], list[int]] | None = None) -> Division:
    """Divide images into those that are trained on and those that are held out.

    splits: `train` or `val` of each. draw: returns which are held out, as numbers among the indices that it is given; by
    default HELD_OUT of them.
    """
    train, val = ([index for index, one in enumerate(splits) if one == split] for split in ("train", "val"))
    if val:
        return Division(train, val, None)
    held_out = draw(train) if draw else stratified([""] * len(train))
    drawn = set(held_out)
    return Division(
        [index for number, index in enumerate(train) if number not in drawn], [train[n] for n in held_out], held_out
    )


def stratified(labels: Sequence[int | str], fraction: float = HELD_OUT, seed: int = HELD_OUT_SEED) -> list[int]:
    """Draw `fraction` of every class, at least one image of each, with a fixed seed. Returns sorted indices."""
    by_label: dict[int | str, list[int]] = {}
    for index, label in enumerate(labels):
        by_label.setdefault(label, []).append(index)
    drawn: list[int] = []
    draws = random.Random(seed)
    for label in sorted(by_label, key=str):
        members = by_label[label]
        drawn += draws.sample(members, min(len(members) - 1, max(1, round(fraction * len(members)))))
    return sorted(drawn)
