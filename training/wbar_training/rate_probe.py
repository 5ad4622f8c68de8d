"""How high a rate a start bears: its training loss may rise to its held-out loss, and hardly further.

    from w_0, for f = 2 and then 3:  w ← STEPS optimizer steps at f·lr;  L_f ← loss(w) on training images
    the highest f with L_f ≤ TOLERANCE · (held-out loss of w_0); 1 if there is none

Up to its held-out loss a network unlearns what it has memorised; beyond it, what it can. A memorised start, whose gradients
are almost zero, bears a high rate, and one that is in balance only its customary one.
"""

from typing import Any

from wbar.choices import RateProbe, TriedRate
from wbar.errors import Diverged
from wbar.schedule import Schedule
from wbar_training.averages.choice import TRAINING
from wbar_training.setup import Setup
from wbar_training.step import Stepper

STEPS = 10
IMAGES = 256
FACTORS = (2.0, 3.0)
TOLERANCE = 1.05  # of the held-out loss: the loss on a few images is not known better


class RateProber:
    """Tries rates on the network that is trained, and leaves it as it was.

    schedule: whose first steps are taken, at constant rates.
    lr: the customary rate.
    """

    def __init__(self, setup: Setup, stepper: Stepper, schedule: Schedule, lr: float) -> None:
        self.setup, self.stepper, self.schedule, self.lr = setup, stepper, schedule, lr
        self._scaler: dict[str, Any] = {}

    def find(self, held_out_loss: float, augmented: bool = True) -> RateProbe:
        """Return the rate that the start bears.

        held_out_loss: of the start, in nats.
        augmented: whether the training images that tell are augmented as they are trained on.
        """
        chosen, tried = 1.0, list[TriedRate]()
        self._scaler = self.stepper.scaler.state_dict()
        for factor in FACTORS:
            loss = self._loss_after(factor * self.lr, augmented)
            tried.append(TriedRate(factor=factor, lr=factor * self.lr, loss=loss))
            if loss is None or loss > TOLERANCE * held_out_loss:
                break
            chosen = factor
        self._reset()
        return RateProbe(factor=chosen, lr=chosen * self.lr, held_out_loss=held_out_loss, tried=tried)

    def _reset(self) -> None:
        self.setup.model.load_state_dict(self.setup.start())
        self.stepper.renew()
        if self._scaler:
            self.stepper.scaler.load_state_dict(self._scaler)

    def _loss_after(self, lr: float, augmented: bool) -> float | None:
        """Return the loss on training images after STEPS steps from the start; None where it is not finite."""
        self._reset()
        self.setup.train_mode()
        setup, batches = self.setup, self.setup.batches()
        steps = min(STEPS, self.schedule.total_steps)
        batches.start(self.schedule.at(step) for step in range(steps))
        for step in range(steps):
            batch = batches.next()
            self.stepper.take(batch.inputs, batch.target, step, lr, 0.0, (), False)
            setup.evaluator.tick("evaluate", int(TRAINING * batch.images) // self.stepper.ranks.size)
        try:
            return setup.evaluator.settled_train_score(setup.model, IMAGES, augmented).loss
        except Diverged:
            return None
