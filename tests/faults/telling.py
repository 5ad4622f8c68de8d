"""A trial of webhooks: a receiver must be told of every change of a job, whoever is killed on the way from one to the other."""

from collections import Counter
from collections.abc import Iterator

from tests.conftest import wait_until
from tests.faults.jobs import run_job
from tests.faults.trial import Trial
from tests.faults.work import events_of
from tests.receivers import Answering, Receiver, receiver

ALL_TOLD_SECONDS = 45.0


def run_webhook(trial: Trial) -> Iterator[str]:
    """Run a job that a webhook is told of; yield what is wrong with the job, and with what the receiver was told."""
    house = trial.house
    fails_first = trial.plan.point == "send-missed"
    with receiver(lambda n: Answering(500 if fails_first and n == 0 else 204)) as there:
        hook = house.ask("POST", "/v1/webhooks", json={"url": there.url, "events": ["job.*"]}).json()
        try:
            yield from run_job(trial)
            yield from _told(trial, hook, there)
        finally:
            house.ask("DELETE", f"/v1/webhooks/{hook['id']}")


def _told(trial: Trial, hook: dict[str, str], there: Receiver) -> Iterator[str]:
    """Check that no event is lost, none made up, and that what came twice is the same message."""
    house = trial.house

    def statuses() -> list[str]:
        rows = house.sql("SELECT status FROM webhook_deliveries WHERE webhook = :hook", hook=hook["id"])
        return [str(row[0]) for row in rows]

    try:
        wait_until(lambda: set(statuses()) == {"delivered"}, ALL_TOLD_SECONDS)
    except TimeoutError:
        yield f"{ALL_TOLD_SECONDS:g} s later the deliveries are {Counter(statuses())}"
    bodies: dict[str, set[bytes]] = {}
    for one in there.received:
        bodies.setdefault(one.id, set()).add(one.body)
    if changed := [name for name, sent in bodies.items() if len(sent) > 1]:
        yield f"messages came again with another body: {changed}"
    events = {one.id: one.event(hook["secret"]) for one in there.received}
    told = Counter(event.type for event in events.values() if event.data.id == trial.job)
    log = [event["data"]["status"] for event in events_of(house, trial.job) if event["type"] == "status"]
    if told != (happened := Counter(f"job.{status}" for status in log)):
        yield f"there happened {dict(happened)}, and the receiver was told {dict(told)}"
    if strangers := [event.data.id for event in events.values() if event.data.id != trial.job]:
        yield f"the receiver was told of {strangers}"
    if more := len(there.received) - len(bodies):
        trial.notes.append(f"{more} messages came again")
