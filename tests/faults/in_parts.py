"""A trial of uploads in parts: what the API has said that it has is never lost, and one object is made of it, once."""

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import httpx

from tests.faults import checks, work
from tests.faults.acting import FAULTS
from tests.faults.house import House
from tests.faults.plans import UPLOADS
from tests.faults.trial import Post, Trial
from wbar_store.validated_uploads import LEASE

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = TUS | {"Content-Type": "application/offset+octet-stream"}
SENT_SECONDS = 120.0


class Sender(threading.Thread):
    """A client of tus: sends the content, as one upload or two partial ones, and goes on where the API says it stands."""

    def __init__(self, house: House, content: bytes, name: str, partial: bool) -> None:
        super().__init__(name="tus", daemon=True)
        self._house, self._content, self._partial = house, content, partial
        self._named = {"Upload-Metadata": f"filename {base64.b64encode(name.encode()).decode()}"}
        self.path = ""
        self.violations: list[str] = []

    def run(self) -> None:
        try:
            if not self._partial:
                self.path = self._send(self._content, **self._named)
                return
            half = len(self._content) // 2
            pieces = self._content[:half], self._content[half:]
            paths = [self._send(one, **{"Upload-Concat": "partial"}) for one in pieces]
            final = {"Upload-Concat": f"final;{' '.join(paths)}"}
            made = {self._create(**final, **self._named) for _ in range(2)}  # as a client does that saw no answer
            if len(made) != 1:
                self.violations.append(f"the same uploads were made one as {made}")
            self.path = made.pop()
        except Exception as error:
            self.violations.append(f"sending failed: {type(error).__name__}: {str(error)[:300]}")

    def _create(self, **headers: str) -> str:
        answer = self._house.ask("POST", "/v1/uploads", headers=TUS | headers)
        assert answer.status_code == 201, answer.text
        return str(answer.headers["location"])

    def _send(self, content: bytes, **headers: str) -> str:
        """Send in two requests at least; the offset must never be less than what was acknowledged."""
        path = self._create(**{"Upload-Length": str(len(content))}, **headers)
        stands, deadline = 0, time.monotonic() + SENT_SECONDS
        while stands < len(content):
            assert time.monotonic() < deadline, f"{path} stands at {stands} of {len(content)}"
            piece = content[stands : stands + len(content) // 2 + 1]
            try:
                answer = self._house.http.patch(path, content=piece, headers=BYTES | {"Upload-Offset": str(stands)})
                said = int(answer.headers["upload-offset"]) if answer.status_code == 204 else None
            except httpx.TransportError:
                said = None
            if said is None:
                time.sleep(0.1)
                said = int(self._house.ask("HEAD", path, headers=TUS).headers["upload-offset"])
            if said < stands:
                self.violations.append(f"{path} had {stands} bytes and has {said}")
            stands = said
        return path


def run_in_parts(trial: Trial) -> Iterator[str]:
    """Send a checkpoint or a dataset in parts while a part of the service is killed; yield what is wrong."""
    house, plan = trial.house, trial.plan
    kind = UPLOADS[plan.index % 2]
    name = f"parts-{plan.id}"
    content = work.another_upload(house, kind, f"trial-{plan.id}")
    house.arm(plan)
    sender = Sender(house, content, name, plan.point == "parts-concat" or plan.fraction > 0.5)
    sender.start()
    made: list[Post] = []

    def make() -> None:
        sender.join(SENT_SECONDS)
        if sender.path:
            made.append(Post(house, f"/v1/{kind}s?name={name}", json={"upload": sender.path.rpartition("/")[2]}))
            made[0].start()

    maker = threading.Thread(target=make, name="make", daemon=True)
    maker.start()
    if trial.wait_at_point():
        trial.fault_at = time.time()
        FAULTS[plan.kind](trial)
    else:
        trial.notes.append("not reached")
    trial.go()
    maker.join(SENT_SECONDS)
    yield from sender.violations
    if not made:
        yield "nothing could be made of the upload"
        return
    document = made[0].first()
    yield from made[0].problems()
    found = work.wait_for(house, f"/v1/{kind}s/{document['id']}", ("ready", "rejected"), LEASE * 2 + 60)
    if (found["status"], found["sha256"]) != ("ready", hashlib.sha256(content).hexdigest()):
        yield f"the {kind} is {found['status']} with the digest {found['sha256']}: {found['error']}"
    rows = house.sql(f"SELECT id FROM {kind}s WHERE name = :name AND status <> 'deleted'", name=name)
    if len(rows) != 1:
        yield f"one upload made {len(rows)} rows"
    yield from _used(trial, sender.path, kind)
    yield from checks.of_processes(house)
    yield from checks.quiet(lambda: list(checks.of_blobs(house)))
    house.ask("DELETE", f"/v1/{kind}s/{document['id']}")
    house.ask("DELETE", sender.path, headers=TUS)


def _used(trial: Trial, path: str, kind: str) -> Iterator[str]:
    """Check that the upload is used, once, and that nothing is left of its parts."""
    house = trial.house
    again = house.ask("POST", f"/v1/{kind}s", json={"upload": path.rpartition("/")[2]})
    if (again.status_code, again.json().get("code")) != (409, "upload_used"):
        yield f"used again, the upload was answered {again.status_code}: {again.text[:200]}"
    house.store.blobs.sweep_parts(
        house.store.uploads.named, older_than=timedelta(seconds=-5)
    )  # what the sweeper does later
    if left := [one.name for one in (house.blobs_disk.folder / "parts").glob("*")]:
        yield f"parts are left: {left}"
    if rows := house.sql("SELECT name FROM upload_parts"):
        yield f"rows of parts are left: {rows}"
