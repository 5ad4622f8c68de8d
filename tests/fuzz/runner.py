"""The parent's side: inputs by the seed, children that read them, and what is wrong with how they were met."""

import random
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.archive_inputs import archive_input, image_input, label_input
from tests.fuzz.box_inputs import box_input, box_mask_input, voc_input
from tests.fuzz.children import OUTCOME, READ_BATCH, Batch, Outcome
from tests.fuzz.inputs import BASES, Input, Source
from tests.fuzz.mutations import mutation
from tests.fuzz.program_inputs import program_input
from tests.fuzz.pytorch_inputs import pytorch_input
from tests.fuzz.safetensors_inputs import safetensors_input
from tests.fuzz.task_inputs import attribute_input, mask_input, target_input
from wbar.errors import REJECTED
from wbar_training.uploads import limits as uploads
from wbar_worker import processes
from wbar_worker.children import ReaderLimits

HANG_SECONDS = 60.0  # for one input; the slowest that is meant takes a few
BATCH = 200
LONGEST_MESSAGE = 4000
# The worker's defaults, but for what an archive may unpack to: a bomb shall meet it in seconds.
LIMITS = ReaderLimits(memory=4 * 1024**3, seconds=3600, content=uploads.UploadLimits(bytes=256 * 1024**2))


@dataclass
class Row:
    """The counts of one kind of input."""

    inputs: int = 0
    accepted: int = 0
    codes: Counter[str] = field(default_factory=Counter)


@dataclass
class Report:
    """The result of a run. faults: sentences, each about one input that was met as none may be."""

    rows: dict[str, Row] = field(default_factory=dict)
    executions: int = 0
    crashes: int = 0
    hangs: int = 0
    left: int = 0
    unknown: int = 0
    wrongly_accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        return sum(row.inputs for row in self.rows.values())


def inputs(count: int, seed: int, canary: Path) -> Iterator[Input]:
    """Yield `count` inputs: two in five are mutations of valid files, the others are made by hand."""
    made: tuple[Callable[[Source], Input], ...] = (
        pytorch_input,
        pytorch_input,
        safetensors_input,
        program_input,
        archive_input,
        image_input,
        label_input,
        target_input,
        attribute_input,
        mask_input,
        box_input,
        box_mask_input,
        voc_input,
    )
    for number in range(count):
        source = Source(random.Random(f"{seed}-{number}"), canary)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # zipfile's, of names that are there twice
            mutated = number % 5 < 2
            one = mutation(source, source.draws.choice(sorted(BASES))) if mutated else made[number % len(made)](source)
        yield one


def run(count: int, seed: int, progress: Callable[[int], None] = lambda _: None, batch: int = BATCH) -> Report:
    """Read `count` inputs in isolated children, and report."""
    report, begun = Report(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wbar-fuzz-") as name:
        root = Path(name)
        folders = {part: root / part for part in ("inputs", "scratch", "canary")}
        for folder in folders.values():
            folder.mkdir()
        expected = _expected(folders)
        waiting: list[Input] = []
        for number, one in enumerate(inputs(count, seed, folders["canary"]), start=1):
            waiting.append(one)
            if len(waiting) == batch or number == count:
                for made, outcome in _read(waiting, folders, report):
                    _note(report, made, outcome, expected)
                waiting = []
                progress(number)
    report.seconds = time.monotonic() - begun
    return report


def _expected(folders: dict[str, Path]) -> dict[str, Outcome]:
    """Return how each valid file is met: accepted, or there is nothing to compare with."""
    valid = [Input(name, reader, make()) for name, (reader, _, make) in BASES.items()]
    outcomes = dict(zip(BASES, (outcome for _, outcome in _read(valid, folders, Report())), strict=True))
    for name, outcome in outcomes.items():
        assert outcome is not None, f"the valid {name} ended its reader"
        assert not outcome.crashed and outcome.code is None, f"the valid {name} was met with {outcome}"  # noqa: PT018
    return {name: outcome for name, outcome in outcomes.items() if outcome}


def _read(made: list[Input], folders: dict[str, Path], report: Report) -> Iterator[tuple[Input, Outcome | None]]:
    """Yield inputs with their outcomes; None for one that ended its child or took too long, after which a new child begins."""
    for number, one in enumerate(made):
        (folders["inputs"] / str(number)).write_bytes(one.data)
    at = 0
    while at < len(made):
        readers = tuple((number, made[number].reader) for number in range(at, len(made)))
        child = processes.start(
            READ_BATCH, Batch(folders["inputs"], folders["scratch"], folders["canary"], readers, LIMITS)
        )
        try:
            while at < len(made):
                begun = time.monotonic()
                if not child.pipe.poll(HANG_SECONDS):
                    report.hangs += 1
                    outcome = None
                else:
                    outcome = child.receive(OUTCOME)
                report.slowest = max(report.slowest, time.monotonic() - begun)
                at += 1
                yield made[at - 1], outcome
                if outcome is None:
                    break
        except (EOFError, OSError, ValueError):
            report.crashes += 1
            at += 1
            yield made[at - 1], None
        finally:
            child.end()
    shutil.rmtree(folders["inputs"])
    folders["inputs"].mkdir()


def _note(report: Report, made: Input, outcome: Outcome | None, expected: dict[str, Outcome]) -> None:
    row = report.rows.setdefault(made.kind, Row())
    row.inputs += 1
    if outcome is None:
        report.faults.append(f"{made.kind}: the reader crashed or hung")
        return
    if outcome.ran > report.executions:
        report.faults.append(f"{made.kind}: a payload ran")
        report.executions = outcome.ran
    if outcome.left:
        report.left += 1
        report.faults.append(f"{made.kind}: {outcome.left} were left behind")
    if outcome.crashed or (outcome.code is not None and outcome.code not in REJECTED):
        report.unknown += 1
        report.faults.append(f"{made.kind}: {outcome.message[:200]}")
    elif outcome.code is not None:
        row.codes[outcome.code] += 1
        if not outcome.message.isprintable() or len(outcome.message) > LONGEST_MESSAGE or " at 0x" in outcome.message:
            report.faults.append(f"{made.kind}: the message is {outcome.message[:200]!r}")
    else:
        row.accepted += 1
        if not _may_be_accepted(made, outcome, expected):
            report.wrongly_accepted += 1
            report.faults.append(f"{made.kind}: was accepted, and is not what it was made from")


def _may_be_accepted(made: Input, outcome: Outcome, expected: dict[str, Outcome]) -> bool:
    if made.tolerance == "never":
        return False
    original = expected[made.base]
    match made.tolerance:
        case "numbers":
            within = outcome.structure == original.structure
        case "fewer":
            within = set(outcome.pictures) <= set(original.pictures)
        case "pictures":
            within = len(outcome.pictures) <= len(original.pictures)
        case _:
            within = False
    return within or outcome.sha256 == original.sha256


def table(report: Report) -> str:
    """Return the report as text."""
    width = max(map(len, report.rows), default=4)
    lines = [f"{'kind':<{width}}  inputs  accepted  refused by code"]
    for kind, row in sorted(report.rows.items()):
        codes = ", ".join(f"{code} {count}" for code, count in row.codes.most_common())
        lines.append(f"{kind:<{width}}  {row.inputs:6}  {row.accepted:8}  {codes}")
    accepted = sum(row.accepted for row in report.rows.values())
    lines.append(f"{'all':<{width}}  {report.inputs:6}  {accepted:8}  {report.inputs - accepted} refused")
    lines.append(
        f"executions {report.executions}, crashes {report.crashes}, hangs {report.hangs}, left behind {report.left}, "
        f"unknown codes {report.unknown}, wrongly accepted {report.wrongly_accepted}; "
        f"{report.seconds:.0f} s, the slowest input {report.slowest:.1f} s"
    )
    return "\n".join([*lines, *report.faults[:50]])
