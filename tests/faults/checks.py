"""What must be true after every fault. Each check returns the violations that it found, as sentences."""

import hashlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.faults import processes
from tests.faults.house import House, settled
from tests.faults.work import Ended, collect, events_of
from wbar.states import TERMINAL, sources
from wbar_store.tables import REFERENCES


def of_history(house: House, job: str, status: str) -> Iterator[str]:
    """Check the event log: gapless, nothing twice, one terminal status, attempts that rise, legal transitions."""
    events = events_of(house, job)
    numbers = [int(event["id"][-8:]) for event in events]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"the events have gaps or repeats: {numbers}"
    statuses = [event["data"] for event in events if event["type"] == "status"]
    names = [one["status"] for one in statuses]
    if sum(name in TERMINAL for name in names) != (status in TERMINAL) or names[-1] != status:
        yield f"the job is {status}, and its status events are {names}"
    for before, after in pairwise(names):
        if before not in sources(after):
            yield f"an illegal transition: {before} to {after}"
    attempts = [one["attempt"] for one in statuses if one["status"] == "running"]
    if attempts != sorted(set(attempts)):
        yield f"the attempts do not rise: {attempts}"
    for kind in ("snapshot", "metrics"):
        told = [event["data"]["n"] for event in events if event["type"] == kind]
        if told != list(range(1, len(told) + 1)):
            yield f"the {kind} events are {told}"


def of_result(house: House, job: str, reference: Ended) -> Iterator[str]:
    """Check that a job that succeeded made what the undisturbed one made, to the bit."""
    made = collect(house, job)
    for name in ("weights", "pytorch", "snapshots", "metrics"):
        if getattr(made, name) != getattr(reference, name):
            yield f"{name} differ: {_difference(getattr(made, name), getattr(reference, name))}"
    for name, value in reference.result.items():
        if made.result.get(name) != value:
            yield f"result.{name} is {made.result.get(name)} and undisturbed {value}"
    if len(made.metrics) != len({point["step"] for point in made.metrics}):
        yield "a step is in the series twice"
    curve = [event["data"] for event in events_of(house, job) if event["type"] == "metrics"]
    if [point["accuracy"] for point in curve] != [point["accuracy"] for point in reference.result["curve"]]:
        yield f"the curve's events are {curve}"


def _difference(made: Any, reference: Any) -> str:
    if not isinstance(made, list):
        return f"{made} and {reference}"
    missing = [one for one in reference if one not in made]
    added = [one for one in made if one not in reference]
    return f"{len(made)} of {len(reference)}, missing {missing[:2]}, added {added[:2]}"


def of_blobs(house: House) -> Iterator[str]:
    """Check the files of the blob store against the rows, after what the sweeper does."""
    house.tidy()
    folder = house.blobs_disk.folder
    files = {path.name: path for path in (folder / "sha256").rglob("*") if path.is_file()}
    for name, path in files.items():
        if hashlib.sha256(path.read_bytes()).hexdigest() != name:
            yield f"the blob {name} has other bytes"
    referenced = {
        str(row[0])
        for column in REFERENCES
        for row in house.sql(f"SELECT {column.name} FROM {column.table.name} WHERE {column.name} IS NOT NULL")
    }
    if missing := referenced - set(files):
        yield f"blobs are missing: {sorted(missing)}"
    if orphans := set(files) - referenced:
        yield f"blobs are orphaned: {sorted(orphans)}"
    if rows := {str(row[0]) for row in house.sql("SELECT sha256 FROM blobs")} ^ set(files):
        yield f"the rows of blobs and their files differ by {sorted(rows)}"
    if temporary := [path.name for path in (folder / "tmp").glob("*")]:
        yield f"temporary objects are left: {temporary}"


def of_scratch(house: House, job: str) -> Iterator[str]:
    """Check that nothing of an ended job is left in the workers' folders."""
    for name in ("train", "train2"):
        left = Path(house.environment(name)["WBAR_SCRATCH"]) / "jobs" / job
        if left.exists():
            yield f"the folder {left} of an ended job is left: {sorted(path.name for path in left.iterdir())}"


def of_processes(house: House) -> Iterator[str]:
    """Check that no training process is left, and nothing that belongs to no part."""
    if left := settled(house.trainers, 10.0):
        yield f"training processes are left: {left}"
    if left := settled(house.strays, 10.0):
        yield f"processes without a part are left: {[_command(pid) for pid in left]}"
        for pid in left:
            processes.send(pid, processes.signal.SIGKILL)


def _command(pid: int) -> str:
    try:
        return f"{pid} " + Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:80]
    except OSError:
        return str(pid)


def claims(house: House, job: str) -> list[float]:
    """Return when the job was claimed, in seconds since 1970 by the database's clock."""
    return [
        datetime.fromisoformat(event["created_at"]).timestamp()
        for event in events_of(house, job)
        if event["type"] == "status" and event["data"]["status"] == "running"
    ]


def quiet(check: Callable[[], list[str]], seconds: float = 8.0) -> list[str]:
    """Check again for some seconds: the worker may just be tidying up."""
    deadline = time.monotonic() + seconds
    while True:
        found: list[str] = check()
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.25)
