"""Alternatives take turns in one process, A B C A B C, so that a machine that slowly changes favours none of them.

Each turn is prepared (not timed) and then timed; the first round warms up and is thrown away, and every round begins with
another alternative. A ratio is a ratio of medians; beside it stand the quartiles of the ratios within each round.
"""

import ctypes
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from statistics import median, quantiles
from typing import Any

import torch

from benchmarks.table import Findings, Row, Sample, figure

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says on stderr when it starts and stops


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Turn:
    """What is timed, and what happens just before it without being timed."""

    work: Callable[[], object]
    prepare: Callable[[], object] = _nothing


Times = dict[str, list[float]]


def alternate(turns: dict[str, Turn], rounds: int) -> Times:
    """Seconds of every turn, by name and in the order of the rounds."""
    times: Times = {name: [] for name in turns}
    order = list(turns)
    for number in range(rounds + 1):
        first = number % len(order)
        for name in order[first:] + order[:first]:
            turns[name].prepare()
            began = time.perf_counter()
            turns[name].work()
            seconds = time.perf_counter() - began
            if number:
                times[name].append(seconds)
    return times


def in_a_new_process(module: str, quick: bool) -> Findings:
    """The module's measure(quick). What an allocator gives and keeps depends on all that its process did before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, module, quick).result()


def _measure(module: str, quick: bool) -> Findings:
    findings: Findings = import_module(module).measure(quick)
    return findings


def ratio(times: Times, ours: str, peer: str) -> float:
    return median(times[ours]) / median(times[peer])


def ratio_text(times: Times, ours: str, peer: str) -> str:
    """The ratio of the medians, and the quartiles of the rounds' own ratios."""
    rounds = [mine / other for mine, other in zip(times[ours], times[peer], strict=True)]
    text = f"{ratio(times, ours, peer):.3f}"
    if len(rounds) < 4:
        return text
    low, _, high = quantiles(rounds, n=4)
    return f"{text} ({low:.3f}–{high:.3f})"


def timed_row(what: str, times: Times, ours: str, peer: str, goal: float | None = None) -> Row:
    """ours beside peer; the names of the turns are shown as they are. No row where one of them was not run: see `absent`."""
    found = ratio(times, ours, peer)
    return Row(
        f"{what}: {ours}",
        milliseconds(times[ours]),
        f"{peer}: {milliseconds(times[peer])}",
        ratio_text(times, ours, peer),
        "–" if goal is None else f"≤ {goal}",
        None if goal is None else found <= goal,
    )


def milliseconds(seconds: Iterable[float]) -> str:
    return str(Sample([value * 1e3 for value in seconds], "ms"))


def absent(what: str, why: str = "not installed") -> Row:
    return Row(what, why, "–", "–")


def part(value: float) -> str:
    """A relative error, with an exponent."""
    return f"{value:.1e}"


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Memory:
    """What a piece of work took from torch's allocator: its largest block, and the most that it held at once."""

    largest: int
    peak: int

    def beside(self, whole: int) -> str:
        return f"largest {_size(self.largest)}, at once {_size(self.peak)} ({self.peak / whole:.2%} of the model)"


def memory(work: Callable[[], object]) -> Memory:
    """Measured by the profiler, which sees what foreach operations allocate inside as well."""
    # Without this import the kinds of events cannot be told apart; there is no public way to each allocation.
    from torch._C._profiler import _EventType

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        work()
    events = _walk(profiler.profiler.kineto_results.experimental_event_tree())
    held, largest, peak = dict[int, int](), 0, 0
    for event in sorted(events, key=lambda event: event.start_time_ns):
        if event.tag != _EventType.Allocation:
            continue
        block = event.extra_fields
        if block.alloc_size > 0:
            held[block.ptr] = block.alloc_size
            largest, peak = max(largest, block.alloc_size), max(peak, sum(held.values()))
        else:
            held.pop(block.ptr, None)  # absent: it was taken before the work began
    return Memory(largest, peak)


def keep_freed_memory() -> bool:
    """From now on glibc gives nothing back to the system; False, and nothing is changed, where it is another allocator."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_MMAP_MAX, 0))


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _walk(event.children)


def _size(count: int) -> str:
    return f"{figure(count / 2**20)} MiB" if count >= 2**20 else f"{figure(count / 2**10)} KiB"


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
