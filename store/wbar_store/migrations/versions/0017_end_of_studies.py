"""When a study has ended

Revision: 0017, after 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

# Studies that have ended before are not told of to webhooks now.
ENDED = """
UPDATE studies SET ended_at = COALESCE(
    (SELECT MAX(jobs.finished_at) FROM study_children JOIN jobs ON jobs.id = study_children.job
     WHERE study_children.study = studies.id), studies.created_at)
WHERE NOT EXISTS (
    SELECT 1 FROM study_children JOIN jobs ON jobs.id = study_children.job
    WHERE study_children.study = studies.id AND jobs.status NOT IN ('succeeded', 'failed', 'cancelled'))
"""


def upgrade() -> None:
    op.add_column("studies", sa.Column("ended_at", sa.Double()))
    op.create_index(op.f("ix_studies_ended_at"), "studies", ["ended_at"])
    op.execute(ENDED)


def downgrade() -> None:
    op.drop_index(op.f("ix_studies_ended_at"), "studies")
    op.drop_column("studies", "ended_at")
