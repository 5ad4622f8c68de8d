"""The blocks: a set, a size, a network, a kind of start and a length. Half were looked at while rules were made.

TRAINING          rules were made on these: the schedule, the rate probe, the order of preference, the gates
LOOKED_AT_ONCE    named before any of their arms was run, and looked at when the rules stood
QUICK             three of TRAINING, as a guard against regressions
FULL              all of Fashion-MNIST and two published networks at its own size: for a GPU (`benchmarks.gpu.gain`)
"""

from dataclasses import dataclass
from typing import Literal

from wbar.spec import Network

Start = Literal["memorised", "settled", "underfit"]
WHOLE = 60_000  # Fashion-MNIST's training images
HELD_OUT = {400: 500, 2000: 1000, 8000: 2000, WHOLE: 5000}
START_EPOCHS = {
    400: 42,
    2000: 24,
    8000: 18,
    WHOLE: 24,
}  # multiples of six: an underfit start is the second of six snapshots
SEEDS = {400: 5, 2000: 5, 8000: 3, WHOLE: 3}  # five where an arm takes less than a minute


@dataclass(frozen=True)
class Block:
    """One block. images: the set's name. size: the training images. epochs: the extra ones of every arm."""

    images: str
    size: int
    network: str
    start: Start
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.images} {self.size}, {self.network}, {self.start}, +{self.epochs}"

    @property
    def held_out(self) -> int:
        """Images that jobs hold out. Of digits there are fewer."""
        return 400 if self.images.startswith("digits") else HELD_OUT[self.size]

    @property
    def side(self) -> int:
        """Pixels that images are resized to: ResNet-20 at half of Fashion-MNIST's side, but for the whole of it."""
        if self.images == "digits" or self.images.startswith("digits-"):
            return 8
        if self.images.endswith("collage"):
            return 27
        return 14 if self.network == "resnet20" and self.size != WHOLE else 28

    @property
    def architecture(self) -> Network:
        name = f"small_vit_{self.side}" if self.network == "small_vit" else self.network
        return Network(name, 10, channels=1)

    @property
    def flips(self) -> bool:
        """Whether a mirrored image is still of its class."""
        return not self.images.startswith("digits")

    @property
    def seeds(self) -> int:
        return SEEDS[self.size]


TRAINING = (
    Block("fashion", 400, "resnet20", "memorised", 12),
    Block("digits", 400, "mobile_groupnorm", "settled", 12),
    Block("fashion", 400, "small_vit", "underfit", 12),
    Block("fashion", 400, "resnet20", "settled", 24),
    Block("fashion", 400, "small_vit", "memorised", 24),
    Block("digits", 400, "resnet20", "underfit", 24),
    Block("fashion", 2000, "resnet20", "underfit", 12),
    Block("fashion", 2000, "resnet20", "memorised", 12),
    Block("fashion-rotated", 2000, "mobile_groupnorm", "underfit", 12),
    Block("fashion-rotated", 2000, "mobile_groupnorm", "memorised", 12),
    Block("fashion-noisy", 2000, "mobile_groupnorm", "settled", 12),
    Block("fashion-collage", 2000, "small_vit", "settled", 12),
)
LOOKED_AT_ONCE = (
    Block("fashion-rotated", 400, "resnet20", "settled", 12),
    Block("fashion-noisy", 400, "resnet20", "memorised", 24),
    Block("digits", 400, "small_vit", "settled", 24),
    Block("digits-rotated", 400, "resnet20", "memorised", 12),
    Block("fashion-collage", 400, "mobile_groupnorm", "memorised", 12),
    Block("fashion", 2000, "mobile_groupnorm", "settled", 24),
    Block("fashion-collage", 2000, "mobile_groupnorm", "underfit", 12),
    Block("fashion-rotated", 2000, "small_vit", "memorised", 12),
    Block("fashion-noisy", 2000, "small_vit", "underfit", 12),
    Block("fashion-rotated", 2000, "resnet20", "underfit", 24),
    Block("fashion", 8000, "mobile_groupnorm", "underfit", 12),
    Block("fashion-collage", 8000, "mobile_groupnorm", "settled", 12),
)
QUICK = TRAINING[:3]
# The most valuable first: the smaller network at both lengths, then the larger one.
FULL = tuple(
    Block("fashion", WHOLE, network, start, epochs)
    for network in ("resnet20", "wide_resnet16_4")
    for epochs in (12, 24)
    for start in ("memorised", "settled")
)
PARTS = {"training": TRAINING, "once": LOOKED_AT_ONCE, "quick": QUICK, "full": FULL}
