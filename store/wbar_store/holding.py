"""The queued jobs that may not begin yet: their study has no slot for them, or they wait for replicas.

Whoever lists queued jobs or notifies of them asks HELD, both at once. Where one is claimed, the rows of its study and of the
job that it is a replica of are locked first, so that two claims do not take the study's last slot.
"""

from sqlalchemy import or_

from wbar_store import replica_slots, study_slots

HELD = or_(study_slots.WITHOUT_SLOT, replica_slots.WAITS_FOR_REPLICAS)
