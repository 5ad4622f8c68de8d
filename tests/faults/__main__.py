"""`python -m tests.faults`: seeded faults on the real service, within a time; goes on where its state file ends.

Prints the count by kind and point with the violations; exits 1 if there was one. The evidence (log, events, seed) is kept.
"""

import argparse
import json
import re
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from tests.faults.house import House
from tests.faults.plans import drawn
from tests.faults.postgresql import available
from tests.faults.running import Outcome
from tests.faults.tenancy import Tenancy, possible

TRIALS_IN_A_HOUSE = 40


def keep_evidence(house: House, outcome: Outcome, folder: Path) -> None:
    """Copy the log, the rows and the plan of a trial with violations."""
    target = folder / f"{outcome.database.split()[0]}-{outcome.seed}-{outcome.index}"
    target.mkdir(parents=True, exist_ok=True)
    (target / "outcome.json").write_text(json.dumps(outcome.document(), indent=1))
    shutil.copy(house.folder / "log", target / "log")
    rows = {table: house.sql(f"SELECT * FROM {table}") for table in ("jobs", "events", "blobs", "snapshots")}
    (target / "rows.json").write_text(json.dumps(rows, default=str, indent=1))
    if house.server is None:
        shutil.copy(house.folder / "wbar.db", target / "wbar.db")


def table(outcomes: list[Outcome]) -> str:
    """Return the counts by kind of fault and point, with the violations."""
    done, wrong, missed = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for one in outcomes:
        cell = (one.kind, one.place)
        (done if one.reached else missed)[cell] += 1
        wrong[cell] += bool(one.violations)
    lines = [f"{'fault':22} {'point':30} {'done':>5} {'violations':>10} {'not reached':>11}"]
    for cell in sorted({*done, *missed}):
        lines.append(f"{cell[0]:22} {cell[1]:30} {done[cell]:5} {wrong[cell]:10} {missed[cell]:11}")
    return "\n".join([*lines, f"{sum(done.values())} faults, {sum(wrong.values())} with violations"])


def read(path: Path) -> list[Outcome]:
    """Return the outcomes so far."""
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [Outcome(**{**one, "violations": tuple(one["violations"]), "notes": tuple(one["notes"])}) for one in found]


def do(database: str, asked: argparse.Namespace, until: float) -> None:
    """Do faults on one database until there are as many as asked for, or the time is over."""
    count, seed, state, only = asked.count, asked.seed, asked.state, asked.only
    done = {one.index for one in read(state) if one.seed == seed and one.database.startswith(database)}
    tenancy: Tenancy | None = None
    begun = 0
    apart = asked.hosts == "two" or (asked.hosts == "both" and len(done) // TRIALS_IN_A_HOUSE % 2 == 0)
    try:
        for plan in drawn(seed, database):
            if plan.index >= count or time.monotonic() > until:
                return
            if plan.index in done or (only and not re.search(only, f"{plan.kind} {plan.place}")):
                continue
            if tenancy is not None and begun >= TRIALS_IN_A_HOUSE:
                _end(tenancy, state)
                tenancy, begun, apart = None, 0, apart != (asked.hosts == "both")
            tenancy = tenancy or Tenancy(database, apart)
            if not possible(plan, tenancy.house):
                continue
            outcome = tenancy.trial(plan)
            begun += 1
            with open(state, "a") as file:
                file.write(json.dumps(outcome.document()) + "\n")
            said = "; ".join(outcome.violations) or "ok"
            print(f"{database} {plan.index} {plan.kind} {plan.place}: {said} ({outcome.seconds:.0f} s)", flush=True)
            if outcome.violations:
                keep_evidence(tenancy.house, outcome, state.with_suffix(".evidence"))
                _end(tenancy, state)  # what one trial left must not fail the next
                tenancy, begun = None, 0
    finally:
        if tenancy is not None:
            _end(tenancy, state)


def _end(tenancy: Tenancy, state: Path) -> None:
    left = tenancy.house.stop()
    if left:
        print(f"processes were left after the stop: {left}; see {state}", flush=True)
        with open(state.with_suffix(".left"), "a") as file:
            file.write(f"{left}\n")


def main() -> int:
    """Read the arguments, do the faults, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="plans per database")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--state", type=Path, required=True, help="JSON lines; a rerun goes on where it ends")
    parser.add_argument(
        "--hosts", choices=["one", "two", "both"], default="both", help="whether workers share a folder"
    )
    parser.add_argument("--only", help="a regular expression for kind and place, as the table shows them")
    asked = parser.parse_args()
    databases = ["sqlite", "postgresql"] if asked.database == "both" else [asked.database]
    if "postgresql" in databases and not available():
        print("there is no PostgreSQL server on this machine: SQLite only")
        databases.remove("postgresql")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # everything that was started is stopped then, too
    begun = time.monotonic()
    for number, database in enumerate(databases, start=1):
        until = begun + asked.seconds * number / len(databases)
        do(database, asked, until)
    outcomes = read(asked.state)
    print(table(outcomes))
    return int(any(one.violations for one in outcomes) or asked.state.with_suffix(".left").exists())


if __name__ == "__main__":
    sys.exit(main())
