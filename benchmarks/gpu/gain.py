"""What averaging gives at full size: all 60,000 images of Fashion-MNIST, ResNet-20 and WRN-16-4, on a GPU.

    python -m benchmarks.gpu.gain --device cuda --results gain.jsonl --minutes 5
    python -m benchmarks.gpu.gain --quick --device cpu

The arms are those of `benchmarks.gain`, in bfloat16 autocast on a GPU, in batches of 512 at linearly scaled rates. Several
processes share the GPU, since one network this small leaves most of it idle; the most valuable arms come first. Every finished
arm is a line of the results file and of stdout, and is not run again; trained starts are kept in a folder of their own. When
the time is over, what runs is ended and what is finished stays. The tables go beside the results file, as markdown.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from benchmarks.gain.arms import ALL_ARMS, Bench, Execution, Files, packed
from benchmarks.gain.blocks import FULL, START_EPOCHS, Block
from benchmarks.gain.networks import register
from benchmarks.gain.tables import read, tables
from wbar_training.uploads import builtin_images

QUICK = tuple(Block("digits", 400, network, "settled", 4) for network in ("resnet20", "wide_resnet16_4"))
QUICK_START_EPOCHS = 6
SMALLEST_SECONDS = 20.0  # with less time than this, an arm whose length is unknown is not begun
SLACK = 1.15  # an arm may take so many times what the longest of its kind took
START = "start"
Key = tuple[str, int, str]  # block, seed and arm, as a line of the results file has them


@dataclass(frozen=True)
class Task:
    """One start to train, or one arm to run from it."""

    block: Block
    seed: int
    arm: str
    epochs: int

    @property
    def key(self) -> Key:
        """What names it in the results file."""
        return self.block.name, self.seed, self.arm

    @property
    def start(self) -> str:
        """The file of the start that it makes or goes on from, which blocks of other lengths share."""
        block = self.block
        return f"{block.images}-{block.size}-{block.network}-{block.start}-{self.seed}.safetensors"


@dataclass(frozen=True)
class Place:
    """What every task is given: the block's files by its images and size, the folder of starts, the device."""

    files: dict[tuple[str, int], Files]
    starts: Path
    execution: Execution


@dataclass(frozen=True)
class Done:
    """A task's result: the lines of the results file; or what went wrong."""

    task: Task
    lines: list[dict[str, Any]]
    seconds: float
    error: str = ""


# A process that runs tasks.


def serve(connection: Connection, place: Place) -> None:
    """Run the tasks that come, one after the other, until there are no more."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    torch.set_num_threads(1)
    register()
    while (task := connection.recv()) is not None:
        began = time.monotonic()
        try:
            lines, error = list(run_task(task, place)), ""
        except Exception as failure:  # one arm's failure ends no other
            lines, error = [], f"{type(failure).__name__}: {str(failure)[:500]}"
        connection.send(Done(task, lines, time.monotonic() - began, error))


def run_task(task: Task, place: Place) -> Iterator[dict[str, Any]]:
    block, kept = task.block, place.starts / task.start
    with tempfile.TemporaryDirectory(prefix="wbar-gain-") as folder:
        bench = Bench(block, task.seed, Path(folder), place.execution, place.files[block.images, block.size])
        began = time.monotonic()

        def line(arm: str, found: dict[str, Any]) -> dict[str, Any]:
            head = {"block": block.name, "seed": task.seed, "arm": arm}
            return head | found | {"seconds": round(time.monotonic() - began, 1)}

        if task.arm != START:
            shutil.copy(kept, bench.checkpoint)
            for arm, found in bench.arm(task.arm):
                yield line(arm, found)
            return
        if not kept.exists():
            bench.make_start(task.epochs)
            whole = kept.with_suffix(f".{os.getpid()}")  # so that a start that is there is a whole one
            shutil.copy(bench.checkpoint, whole)
            whole.rename(kept)
        else:
            shutil.copy(kept, bench.checkpoint)
        yield line(START, bench.start_score())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


# The one that hands them out.


class Pool:
    """Processes, the tasks that wait in their order, and the clock."""

    def __init__(self, tasks: Sequence[Task], place: Place, processes: int, until: float) -> None:
        self.waiting, self.place, self.until = list(tasks), place, until
        self.busy: dict[Connection, Task] = {}
        self.idle: list[Connection] = []
        self.longest: dict[tuple[str, bool], float] = {}  # seconds an epoch, by network and whether it is a start
        self.failed: set[str] = set()  # starts that could not be trained
        context = multiprocessing.get_context("spawn")
        self.processes = []
        for _ in range(min(processes, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, place), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.idle.append(ours)

    def run(self) -> Iterator[Done]:
        """Yield what is done, as it is done, until nothing is left or the time is over."""
        try:
            while True:
                while self.idle and (task := self._next()) is not None:
                    connection = self.idle.pop()
                    connection.send(task)
                    self.busy[connection] = task
                left = self.until - time.monotonic()
                if not self.busy or left <= 0:
                    return
                for ready in wait(list(self.busy), timeout=left):
                    assert isinstance(ready, Connection)
                    yield self._received(ready)
        finally:
            for process in self.processes:
                process.kill()
            for process in self.processes:
                process.join()

    def _received(self, connection: Connection) -> Done:
        task = self.busy.pop(connection)
        try:
            done: Done = connection.recv()
        except (EOFError, OSError):  # its process is gone: killed for its memory, say
            done = Done(task, [], 0.0, "the process ended without an answer")
        else:
            self.idle.append(connection)
        if done.error and task.arm == START:
            self.failed.add(task.start)
        if not done.error:
            kind = (task.block.network, task.arm == START)
            self.longest[kind] = max(self.longest.get(kind, 0.0), done.seconds / task.epochs)
        return done

    def _next(self) -> Task | None:
        """Take the first task that can begin: its start is there, and it would be finished in time."""
        training = {task.start for task in self.busy.values() if task.arm == START}
        for task in self.waiting:
            ready = (self.place.starts / task.start).exists()
            if task.arm == START:
                ready = ready or task.start not in training
            if task.start not in self.failed and ready and self._fits(task):
                self.waiting.remove(task)
                return task
        return None

    def _fits(self, task: Task) -> bool:
        known = [each for kind, each in self.longest.items() if kind[0] == task.block.network]
        seconds = SLACK * max(known) * task.epochs if known else SMALLEST_SECONDS
        return time.monotonic() + seconds < self.until


def tasks_of(
    blocks: Sequence[Block], seeds: int, start_epochs: int | None, there: set[Key], starts: Path
) -> list[Task]:
    """Return what is not there yet, the most valuable first: length, network, seed, arm; in them the blocks in their order.

    A start that was scored already is trained again, to the same bits, where an arm needs it and its file is gone.
    """
    tasks = []
    for epochs in sorted({block.epochs for block in blocks}):
        for network in dict.fromkeys(block.network for block in blocks):
            chosen = [block for block in blocks if (block.network, block.epochs) == (network, epochs)]
            for seed in range(seeds):
                for arm in (START, *ALL_ARMS):
                    for block in chosen:
                        length = (start_epochs or START_EPOCHS[block.size]) if arm == START else epochs
                        tasks.append(Task(block, seed, arm, length))
    missing = [task for task in tasks if task.key not in there]
    needed = {task.start for task in missing if not (starts / task.start).exists()}
    return [task for task in tasks if task.key not in there or (task.arm == START and task.start in needed)]


def main() -> int:
    options = arguments()
    until = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    if options.data is not None:
        builtin_images.FASHION_FOLDERS = (options.data, *builtin_images.FASHION_FOLDERS)
    blocks = [
        block for block in (QUICK if options.quick else FULL) if options.only is None or options.only in block.name
    ]
    execution = Execution(options.device, options.precision, None if options.quick else options.batch_size)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="wbar-gain-") as folder:
        starts = Path(folder) if options.quick else options.starts
        starts.mkdir(parents=True, exist_ok=True)
        there = {_key(line) for line in read(options.results)}
        tasks = tasks_of(blocks, options.seeds, QUICK_START_EPOCHS if options.quick else None, there, starts)
        place = Place(_files(tasks, Path(folder)), starts, execution)
        for done in Pool(tasks, place, options.processes, until).run():
            for line in done.lines:
                if _key(line) not in there:
                    there.add(_key(line))
                    with options.results.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    _say(f"{line['block']}, seed {line['seed']}, {line['arm']}", **_measures(line))
            if done.error:
                failures += 1
                _say(f"failed: {done.task.block.name}, seed {done.task.seed}, {done.task.arm}", error=done.error)
    batch = execution.batch_size or "auto"
    head = f"torch {torch.__version__}, {execution.device}, {execution.precision}, batches of {batch}.\n\n"
    options.results.with_suffix(".md").write_text(head + "\n".join(tables(read(options.results), blocks)) + "\n")
    _say("gain", arms_left=sum(task.key not in there for task in tasks), failures=failures)
    return 1 if failures else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.gain", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--data", type=Path, help="a folder with Fashion-MNIST's four files, gzipped or not")
    parser.add_argument("--results", type=Path, default=Path("gain-full.jsonl"), help="one line per finished arm")
    parser.add_argument("--starts", type=Path, default=Path(".cache/gain-starts"), help="where trained starts are kept")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument(
        "--processes", type=int, help="default: 4 on a GPU, which takes them in turns, else 2; one thread each"
    )
    parser.add_argument("--seeds", type=int, help="default: 3; 1 with --quick")
    parser.add_argument("--only", metavar="TEXT", help="blocks whose name has this in it: `resnet20`, `+12`")
    parser.add_argument("--quick", action="store_true", help="a few epochs on the digits: does it run?")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    options.precision = options.precision or ("bfloat16" if on_gpu else "float32")
    options.processes = options.processes or (4 if on_gpu else 2)
    options.seeds = options.seeds or (1 if options.quick else 3)
    return options


def _files(tasks: Sequence[Task], folder: Path) -> dict[tuple[str, int], Files]:
    """Pack the images of the tasks' blocks, once for all processes."""
    found: dict[tuple[str, int], Files] = {}
    for block in (task.block for task in tasks):
        if (block.images, block.size) not in found:
            own = folder / f"{block.images}-{block.size}"
            own.mkdir()
            found[block.images, block.size] = packed(block, own)
    return found


def _key(line: dict[str, Any]) -> Key:
    return line["block"], line["seed"], line["arm"]


def _measures(line: dict[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in ("accuracy", "loss", "nll_calibrated", "ece", "seconds")}


def _say(name: str, **figures: Any) -> None:
    print(json.dumps({"name": name} | figures), flush=True)


if __name__ == "__main__":
    sys.exit(main())
