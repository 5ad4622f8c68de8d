"""One job in a process of its own: `python -P -m tests.gpu.job_process NAME PRECISION DEVICE FOLDER [DIE_AT]`.

It goes on from the latest state in FOLDER. With DIE_AT it kills itself by SIGKILL once a state of that step was saved.
Nothing is set in its environment: what a job needs to repeat its bits it sets itself.
"""

import os
import signal
import sys
from pathlib import Path

from tests.gpu.jobs import job_of
from tests.training.jobs import Recorder, run
from wbar_training import state_files

MOST_STATES = 20 * 10**6  # parameters' bytes up to which a state is saved after every step


class KillsItself(Recorder):
    """Ends this process as kill -9 does, once a state of step `at` or later was saved."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def saved(self, path: str, step: int, durable: bool) -> None:
        if step >= self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def main(name: str, precision: str, device: str, folder: Path, die_at: int | None) -> None:
    """Do the job, or its remaining part; its weights lie in FOLDER/weights."""
    latest = state_files.latest(folder)
    job = job_of(name, precision, device, folder)
    often = job.start.stat().st_size <= MOST_STATES and die_at is not None
    job = job.changed(resume=latest, save_every_seconds=0.0 if often else 1e9)
    outcome = run(job, Recorder() if die_at is None else KillsItself(die_at))
    os.replace(outcome.weights, folder / "weights")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0], words[1], words[2], Path(words[3]), int(words[4]) if len(words) > 4 else None)
