"""A trial in progress: what a fault sees of the house, the job, and the process that waits at the named point."""

import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.faults.house import House
from tests.faults.plans import Plan
from tests.faults.work import Ended, Inputs
from wbar.states import TERMINAL

REACH_SECONDS = 45.0


@dataclass
class Trial:
    """A trial in progress, as faults see it.

    pid: the process that waits at the point.
    ready_at: when a worker was there again, where the fault took them all.
    """

    house: House
    plan: Plan
    inputs: Inputs
    references: dict[bool, Ended]
    body: dict[str, Any] = field(default_factory=dict)
    large: bool = False
    job: str = ""
    pid: int | None = None
    fault_at: float = 0.0
    ready_at: float = 0.0
    cancel_seconds: float | None = None
    expected: str = "succeeded"
    error: str | None = None
    undisturbed_weights: bool = True
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    claimed_by_fault: bool = False
    _went: bool = False

    def go(self) -> None:
        """Let the process at the point go on; the first call counts."""
        if not self._went:
            self._went = True
            self.house.go(self.plan)

    def wait_at_point(self, seconds: float = REACH_SECONDS) -> bool:
        """Wait until a process is at the plan's point; False if none comes, or the work has ended without."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.pid = self.house.at(self.plan)
            if self.pid is not None:
                return True
            if self.job and self.status() in TERMINAL:
                time.sleep(0.3)  # points after the end come at once
                self.pid = self.house.at(self.plan)
                return self.pid is not None
            time.sleep(0.01)
        return False

    def status(self) -> str:
        """Return the job's status, from its row."""
        rows = self.house.sql("SELECT status FROM jobs WHERE id = :job", job=self.job)
        return str(rows[0][0]) if rows else "missing"

    def attempts(self) -> int:
        """Return the number of claims so far, from the row."""
        return int(str(self.house.sql("SELECT attempts FROM jobs WHERE id = :job", job=self.job)[0][0]))

    def worker(self) -> str:
        """Return the part at the point, or the training worker whose job runs."""
        for pid in (self.pid, *self.house.trainers()):
            if pid is not None:
                try:
                    return self.house.part_of(pid)
                except LookupError:
                    continue
        return "train"

    def trainer(self, seconds: float = 5.0) -> int | None:
        """Return the training process, waiting a moment for one to start."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := self.house.trainers():
                return found[0]
            time.sleep(0.02)
        return None


class Post(threading.Thread):
    """A POST with an Idempotency-Key, sent again until it is answered; the API may die meanwhile."""

    def __init__(self, house: House, path: str, **options: Any) -> None:
        super().__init__(name="post", daemon=True)
        self._house, self._path, self._options = house, path, options
        self._key = uuid.uuid4().hex
        self.answers: list[httpx.Response] = []
        self._answered = threading.Event()

    def run(self) -> None:
        for _ in range(2):  # a second time, as a client does that never saw the answer
            headers = {"Idempotency-Key": self._key}
            self.answers.append(self._house.ask("POST", self._path, headers=headers, **self._options))
            self._answered.set()

    def first(self, seconds: float = 150.0) -> dict[str, Any]:
        """Return the object that the request made; it may be on its way for the second time."""
        assert self._answered.wait(seconds), "the POST was never answered"
        document: dict[str, Any] = self.answers[0].json()
        return document

    def problems(self) -> Iterator[str]:
        """Check that both requests were answered alike, with one object."""
        self.join(150.0)
        codes = [answer.status_code for answer in self.answers]
        if codes != [201, 201]:
            yield f"the POSTs were answered {codes}: {self.answers[-1].text[:300]}"
            return
        if self.answers[0].json()["id"] != self.answers[1].json()["id"]:
            yield "one Idempotency-Key made two objects"
