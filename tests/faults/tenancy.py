"""A house with what every trial needs: ready inputs, and the undisturbed job that each disturbed one must equal."""

from tests.faults.house import House, clock_can_jump
from tests.faults.memory import groups_available
from tests.faults.plans import OF_MEMORY, Plan
from tests.faults.running import Outcome, run
from tests.faults.trial import Trial
from tests.faults.work import Ended, Inputs, undisturbed, upload


class Tenancy:
    """A house with its inputs and the undisturbed jobs."""

    def __init__(self, database: str, apart: bool) -> None:
        self.house = House(database, apart)
        try:
            self.house.start()
            self.inputs: Inputs = upload(self.house)
            self.references: dict[bool, Ended] = {False: undisturbed(self.house, self.inputs.body())}
        except BaseException:
            self.house.stop()
            raise

    def trial(self, plan: Plan) -> Outcome:
        """Run one plan, every part alive before."""
        self.house.start()
        if plan.kind in OF_MEMORY and True not in self.references:
            # After an OOM the job is done in smaller parts, so it is compared with one that was asked for like that.
            self.references[True] = undisturbed(self.house, self.inputs.body(large=True, accumulate=2))
        return run(Trial(self.house, plan, self.inputs, self.references))


def possible(plan: Plan, house: House) -> bool:
    """Whether this machine lets us do the fault."""
    if plan.kind.startswith("disk-full") or plan.kind == "blobs-read-only":
        return house.blobs_disk.mounted
    if plan.kind.startswith("memory-killed"):
        return groups_available()
    return not plan.kind.startswith("clock") or clock_can_jump()
