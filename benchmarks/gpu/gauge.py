"""Speeds on demand: a loop that is asked after its steps when to measure, when to wait, and when to end.

An arm is a process that keeps its network warm and waits between its turns, so that arms alternate A B A B on one GPU
without a start, a compilation or a capture in between. It reads what to do from stdin, a JSON line for each turn, and
answers on stdout. Between two synchronisations of the device lies everything that the loop does between steps.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

WARM_STEPS, WARM_AGAIN, LEAST_STEPS = 30, 10, 20
QUICK_STEPS = 2  # each of them, where only the code is tried


@dataclass(frozen=True)
class Turn:
    """What is asked of an arm. seconds: how long it measures; 0: it only gets ready."""

    case: str
    seconds: float


class Talk:
    """The arm's side of the conversation. What libraries print goes to stderr meanwhile."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def next(self) -> Turn | None:
        """Wait for the next turn; None: there are no more."""
        line = sys.stdin.readline()
        return Turn(**json.loads(line)) if line.strip() else None

    def answer(self, **figures: Any) -> None:
        print(json.dumps(figures), file=self._answers, flush=True)


class Gauge:
    """Counts one network's steps and answers its turns. turn: the first; images: of a step.

    After `tick` has returned True, `turn` is the next one, of another network, or None.
    """

    def __init__(self, talk: Talk, turn: Turn, images: int, device: torch.device, quick: bool) -> None:
        self.talk, self.images, self.device, self.quick = talk, images, device, quick
        self.case, self.turn = turn.case, turn
        self._warm = QUICK_STEPS if quick else WARM_STEPS
        self._base: int | None = None
        self._since: tuple[float, int] | None = None

    def tick(self, steps: int) -> bool:
        """Say how many steps have been taken so far; returns whether the loop is to end."""
        assert self.turn is not None
        if self._base is None:
            self._base = steps
        if self._since is None:
            if steps - self._base < self._warm:
                return False
            if self.turn.seconds == 0:
                synchronize(self.device)
                self.talk.answer(ready=True)
                return self._wait(steps)
            synchronize(self.device)
            self._since = time.perf_counter(), steps
            return False
        began, before = self._since
        least = QUICK_STEPS if self.quick else LEAST_STEPS
        if time.perf_counter() - began < self.turn.seconds or steps - before < least:
            return False
        synchronize(self.device)
        seconds, count = time.perf_counter() - began, steps - before
        self.talk.answer(images_per_second=self.images * count / seconds, steps=count, seconds=seconds)
        return self._wait(steps)

    def _wait(self, steps: int) -> bool:
        following = self.talk.next()
        self._base, self._since = steps, None
        self._warm = QUICK_STEPS if self.quick else WARM_AGAIN
        ends = following is None or following.case != self.case
        self.turn = following  # type: ignore[assignment]  # None only once the loop ends
        return ends


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
