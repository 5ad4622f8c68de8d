"""The queued jobs that may not begin yet: their study has no slot for them, or they wait for replicas."""

from sqlalchemy import or_

from wbar_store import replica_slots, study_slots

HELD = or_(study_slots.HELD, replica_slots.HELD)
