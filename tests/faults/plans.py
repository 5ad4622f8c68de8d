"""A plan is one fault at one moment of a job or an upload; the matrix has every kind at every point where it means something.

`drawn(seed)` is an endless sequence: the whole matrix in a seeded order, again and again, with seeded moments.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tests.faults.hook.fault_points import POINTS, Point

When = Literal["before", "after"]
Upload = Literal["checkpoint", "dataset"]
Work = Literal["job", "webhook", "parts"] | Upload
UPLOADS: tuple[Upload, ...] = ("checkpoint", "dataset")
MOMENT = "moment"  # a random one, while the job runs

OF_JOB = ("kill-trainer", "kill-worker", "drain", "freeze", "cancel", "pause")
# At a random moment, beside those of a job.
ANYTIME = (
    "kill-api",
    "kill-ingest",
    "kill-sweeper",
    "kill-both-workers",
    "kill-all",
    "freeze-trainer",
    "broker-kill",
    "broker-flush",
    "broker-restart",
    "database-cut",
    "database-restart",
    "disk-full-blobs",
    "disk-full-scratch",
    "blobs-read-only",
    "deliver-five",
    "clock-forward",
    "clock-back",
    "poison",
)
OF_MEMORY = ("memory-killed", "memory-killed-always", "memory-refused")
# Faults of the surroundings are done at these points too: something is being written there.
SURROUNDINGS = ("broker-kill", "database-cut", "database-restart", "disk-full-blobs", "disk-full-scratch")
WRITING = ("state-row", "snapshot-row", "result-row", "state-file", "blob-place", "claim")
TELLING = {"api": "kill-api", "worker": "kill-worker", "sweeper": "kill-sweeper"}  # at the points of webhooks
STORING = ("parts-write", "parts-join")  # of uploads in parts, where the disk may be full, too
TWICE = ("parts-write", "parts-offset")  # passed by the last bytes of an upload as well as by the first
ONLY_POSTGRESQL = ("database-cut", "database-restart")


@dataclass(frozen=True)
class Plan:
    """One fault.

    point, when: a named point, before or after its call; or MOMENT.
    nth: which passing of the point by one process.
    fraction: of the undisturbed job's time, for a MOMENT.
    """

    seed: int
    index: int
    kind: str
    point: str
    when: When
    work: Work
    nth: int
    fraction: float

    @property
    def id(self) -> str:
        """A name for files."""
        return f"{self.seed}-{self.index}"

    @property
    def place(self) -> str:
        """The point as the table shows it."""
        return self.point if self.point == MOMENT else f"{self.when} {self.point}"

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def matrix(database: str) -> list[tuple[str, str, When, Work]]:
    """Return every kind of fault at every place where it means something, on this database."""
    cells: list[tuple[str, str, When, Work]] = []
    for point in POINTS:
        for when in _sides(point):
            match point.where:
                case _ if point.name.endswith("outbox") or point.name.startswith("send-"):
                    cells.append((TELLING[point.where], point.name, when, "webhook"))
                case _ if point.name.startswith("parts-"):
                    kinds = ("kill-api", "disk-full-blobs") if point.name in STORING else ("kill-api",)
                    cells += [(kind, point.name, when, "parts") for kind in kinds]
                case "worker" | "trainer":
                    cells += [(kind, point.name, when, "job") for kind in OF_JOB if _fits(kind, point, when)]
                    if point.name in WRITING:
                        cells += [(kind, point.name, when, "job") for kind in SURROUNDINGS]
                case "api" if uploads := _uploads_through(point):
                    cells += [("kill-api", point.name, when, upload) for upload in uploads]
                case "api":
                    cells += [(kind, point.name, when, "job") for kind in ("kill-api", "kill-all")]
                case "ingest":
                    cells += [("kill-ingest", point.name, when, upload) for upload in _uploads_through(point)]
                case "sweeper":
                    cells.append(("kill-sweeper", point.name, when, "job"))
    cells.append(("race", "claim", "before", "job"))
    cells += [(kind, "phase-loading", "before", "job") for kind in OF_MEMORY]
    cells += [(kind, MOMENT, "before", "job") for kind in (*OF_JOB, *ANYTIME)]
    return [cell for cell in cells if database == "postgresql" or cell[0] not in ONLY_POSTGRESQL]


def _uploads_through(point: Point) -> tuple[Upload, ...]:
    """Return the kinds of upload that pass a point of the API or of validation; none, if jobs do."""
    if point.name.startswith(("api-blob", "ingest-claim", "ingest-start", "ingest-blob")):
        return UPLOADS
    return tuple(upload for upload in UPLOADS if f"-{upload}-" in point.name)


def _sides(point: Point) -> tuple[When, ...]:
    return ("before",) if point.name.startswith(("publish-", "phase-")) else ("before", "after")


def _fits(kind: str, point: Point, when: When) -> bool:
    """Whether there is a training process to kill: between its start and the result's way to the store."""
    if point.name == "in-transaction":
        # Its row is locked: what asks the API for a change of the job would wait for it, and so would the harness.
        return kind in ("kill-trainer", "kill-worker", "freeze") and when == "after"
    without = ("claim", "fetch", "result-blobs", "result-row", "forget-state", "drop-state-row", "blob-collect")
    return kind != "kill-trainer" or not (point.name in without or (point.name, when) == ("start", "before"))


def drawn(seed: int, database: str) -> Iterator[Plan]:
    """Yield plans without end: the whole matrix in an order of the seed, then again in another order."""
    generator = random.Random(f"{seed} {database}")
    index = 0
    while True:
        cells = matrix(database)
        generator.shuffle(cells)
        for kind, point, when, work in cells:
            first = index < len(cells)
            nth = 1 if first or work != "job" else generator.choice((1, 1, 2))
            if point in TWICE:
                nth = generator.choice((1, 2))
            yield Plan(seed, index, kind, point, when, work, nth, round(generator.uniform(0.02, 0.98), 3))
            index += 1
