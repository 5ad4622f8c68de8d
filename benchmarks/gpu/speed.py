"""`python -m benchmarks.gpu.speed`: images/s of `training` beside the loops of `benchmarks.gpu.arms`, A B A B on one GPU.

Every arm is a process that stays, ready, until its group of comparisons is over; while one measures, the others wait.
What compiles does so first, all networks at once, and is measured when the last one is ready.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.lines import done, say
from benchmarks.running import ROOT

MAIN = ("resnet18_32", "wrn28_10_32", "resnet50_224", "vit_s_224")
SECONDS, QUICK_SECONDS = 1.6, 0.05
READY_SECONDS, COMPILED_SECONDS, TURN_SECONDS = 60.0, 150.0, 30.0
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # as an attempt of a job has it


@dataclass(frozen=True)
class Group:
    """Arms that take turns on each of the networks. apart: a process for each network, all made ready together."""

    arms: tuple[str, ...]
    cases: tuple[str, ...]
    rounds: int
    apart: bool = False


# What matters most comes first.
GROUPS = (
    Group(("wbar", "bare", "graph"), (*MAIN, "resnet20_28"), 2),
    Group(("compiled", "wbar_compiled"), MAIN, 1, apart=True),
    Group(("lightning",), MAIN, 1),
    Group(("wbar", "bare", "graph"), ("resnet18_32_tf32",), 2),
)
QUICK_GROUPS = (
    Group(("wbar", "bare", "graph"), ("resnet18_32",), 1),
    Group(("compiled", "wbar_compiled"), ("resnet18_32",), 1, apart=True),
    Group(("lightning",), ("resnet18_32",), 1),
)


class Arm:
    """One arm's process, as the driver sees it."""

    def __init__(self, name: str, device: str, quick: bool) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        command = [sys.executable, "-P", "-m", "benchmarks.gpu.arms", "--arm", name, "--device", device]
        self.process = subprocess.Popen(
            command + (["--quick"] if quick else []),
            cwd=ROOT, env=_environment() | (DETERMINISTIC if name.startswith("wbar") else {}), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        assert self.process.stdout is not None
        threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()

    def _listen(self, answers: IO[str]) -> None:
        for line in answers:
            self._lines.put(line)
        self._lines.put(None)

    def ask(self, case: str, seconds: float) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the answer says so
            self.process.stdin.write(json.dumps({"case": case, "seconds": seconds}) + "\n")
            self.process.stdin.flush()

    def answer(self, deadline: float) -> dict[str, Any]:
        """Wait for the answer; an arm that gives none until `deadline` (on the monotonic clock) is ended."""
        try:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self.process.kill()
            return {"error": "no answer in time"}
        if line is None:
            self._log.seek(0)
            last = (self._log.read().strip().splitlines() or ["no words"])[-1]
            return {"error": f"the process ended with {self.process.wait()}: {last}"[:600]}
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._log):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def _environment() -> dict[str, str]:
    """This process's, with the repository's root among what can be imported, which -P would leave out."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


class Driver:
    """Runs groups. finished: names of lines that need not be measured again."""

    def __init__(self, device: str, quick: bool, finished: set[str]) -> None:
        self.device, self.quick, self.finished = device, quick, finished

    def run(self, group: Group) -> None:
        wanted = {(case, arm): self._rounds(group, case, arm) for case in group.cases for arm in group.arms}
        wanted = {key: rounds for key, rounds in wanted.items() if rounds}
        with self._arms() as started:
            if group.apart:
                self._together(wanted, started)
                return
            for case in group.cases:
                self._together({key: rounds for key, rounds in wanted.items() if key[0] == case}, started)

    def _rounds(self, group: Group, case: str, arm: str) -> list[int]:
        return [n for n in range(1, group.rounds + 1) if _name(case, arm, n) not in self.finished]

    @contextmanager
    def _arms(self) -> Iterator[dict[Any, Arm]]:
        started: dict[Any, Arm] = {}
        try:
            yield started
        finally:
            for arm in started.values():
                arm.end()

    def _together(self, wanted: dict[tuple[str, str], list[int]], started: dict[Any, Arm]) -> None:
        """Make all ready at once, then measure one after the other, round by round.

        Processes are shared by the networks of `started`, one for each arm, unless several networks are wanted at once.
        """
        several = len({case for case, _ in wanted}) > 1
        ready: dict[tuple[str, str], Arm] = {}
        for case, name in wanted:
            key = (case, name) if several else name
            if key not in started or started[key].process.poll() is not None:
                started[key] = Arm(name, self.device, self.quick)
            started[key].ask(case, 0)
            ready[case, name] = started[key]
        slow = self.quick or any("compiled" in name for _, name in wanted)
        deadline = time.monotonic() + (COMPILED_SECONDS if slow else READY_SECONDS)
        for key, arm in list(ready.items()):
            answer = arm.answer(deadline)
            if "error" in answer:
                self._say(*key, wanted[key][0], answer)
                del ready[key]
        for number in sorted({number for rounds in wanted.values() for number in rounds}):
            for (case, name), arm in list(ready.items()):
                if number in wanted[case, name]:
                    arm.ask(case, QUICK_SECONDS if self.quick else SECONDS)
                    answer = arm.answer(time.monotonic() + TURN_SECONDS)
                    self._say(case, name, number, answer)
                    if "error" in answer:
                        del ready[case, name]

    def _say(self, case: str, arm: str, number: int, answer: dict[str, Any]) -> None:
        from benchmarks.gpu.cases import CASES  # takes seconds, which the arms' starts need no waiting for

        made = CASES[case].quick() if self.quick else CASES[case]
        figures = {"network": case, "arm": arm, "round": number, "batch": made.batch, "precision": made.precision}
        say(_name(case, arm, number), **figures, **answer)


def _name(case: str, arm: str, number: int) -> str:
    return f"speed/{case}/{arm}/{number}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.speed", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that everything works")
    parser.add_argument("--done", type=Path, help="a file of results: what it has is not measured again")
    parser.add_argument("--groups", type=int, nargs="+", help="of the comparisons, by number from 1; all, otherwise")
    parser.add_argument("--networks", nargs="+", help="of each comparison; all, otherwise")
    options = parser.parse_args(arguments)
    # The arms are ended however this process is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    driver = Driver(options.device, options.quick, done(options.done))
    groups = QUICK_GROUPS if options.quick else GROUPS
    for number in options.groups or range(1, len(groups) + 1):
        group = groups[number - 1]
        cases = tuple(case for case in group.cases if not options.networks or case in options.networks)
        driver.run(replace(group, cases=cases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
