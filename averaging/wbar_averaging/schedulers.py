"""Schedules as torch's learning-rate schedulers; every rate comes from the schedule, a pure function of the step."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wbar_averaging.cyclic_lr import CyclicSchedule


class CyclicScheduleLR(LRScheduler):
    """Sets the rate of `schedule` for the step that comes next; call `step()` after every optimizer step.

    The first group has the schedule's rate; the others keep their ratio to it (of their `lr` when this is made, or of
    their `initial_lr` with last_epoch ≥ 0, as torch's schedulers do). After the end the last rate stays. All that must
    be kept to resume is one integer, `last_epoch`. Raises ValueError if the first group's rate is not above 0.
    """

    def __init__(self, optimizer: Optimizer, schedule: CyclicSchedule, last_epoch: int = -1) -> None:
        self.schedule = schedule
        first = optimizer.param_groups[0]
        if not first.get("initial_lr", first["lr"]) > 0:
            raise ValueError(f"the first group's rate must be above 0 to tell the others' ratios, not {first['lr']}")
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the rate of each group for the step `last_epoch`, or of the schedule's last step after its end."""
        rate = self.schedule.at(min(self.last_epoch, self.schedule.total_steps - 1)).lr
        return [rate * base / self.base_lrs[0] for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps taken, which is all the state there is."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the step that `state_dict` gave, and set its rates in the optimizer's groups."""
        self.last_epoch = int(state_dict["last_epoch"])
        self._step_count = self.last_epoch + 1
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates
